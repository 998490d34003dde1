"""Files in the authors' layouts, and their model written out from the formula."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

WIDTH, HEADS, KEY_HEADS, LAYERS, HIDDEN = 32, 4, 2, 3, 48
FRAMES, FEATURE, ADAPTER = 4, 10, 3


@dataclass(frozen=True)
class AuthorsModel:
    """The authors' model, computed from the tensors of their files in float64.

    Written from the formula of the method and Meta's layout: rotary positions turn pairs of
    neighbours, only the top layers are run, and all T video slots count as positions.
    """

    params: dict
    llm: dict[str, Tensor]
    trained: dict[str, Tensor]
    adapter_length: int
    theta: float = 10000.0

    def logits(self, ids: Tensor, video: Tensor, start: int, seen: Tensor | None = None) -> Tensor:
        """Return [S, vocabulary].

        Args:
            ids: [S] tokens.
            video: [T, d] features.
            start: Position of the first of T slots.
            seen: [S] False at slots that no query sees (but itself).
        """
        weights = {name: tensor.double() for name, tensor in (self.llm | self.trained).items()}
        frames = len(weights["temporal_emb.weight"])
        hidden = weights["tok_embeddings.weight"][ids].clone()
        slots = video.double() @ weights["visual_proj.weight"].T + weights["temporal_emb.weight"]
        hidden[start : start + frames] = slots
        prompts = weights["adapter_query.weight"].split(self.adapter_length)
        count = self.params["n_layers"]
        visible = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
        if seen is not None:
            visible = (visible & seen) | torch.eye(len(ids), dtype=torch.bool)
        for place, layer in enumerate(range(count - len(prompts), count)):
            part = {
                name.removeprefix(f"layers.{layer}."): tensor
                for name, tensor in weights.items()
                if name.startswith(f"layers.{layer}.")
            }
            normed = self._norm(hidden, part["attention_norm.weight"])
            after = start + frames
            hidden = hidden + self._attend(part, normed, prompts[place], visible, start, after)
            normed = self._norm(hidden, part["ffn_norm.weight"])
            gated = torch.nn.functional.silu(normed @ part["feed_forward.w1.weight"].T)
            gated = gated * (normed @ part["feed_forward.w3.weight"].T)
            hidden = hidden + gated @ part["feed_forward.w2.weight"].T
        return self._norm(hidden, weights["norm.weight"]) @ weights["output.weight"].T

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + self.params["norm_eps"]).sqrt() * weight

    def _attend(
        self, part: dict, x: Tensor, prompt: Tensor, visible: Tensor, start: int, after: int
    ) -> Tensor:
        heads = self.params["n_heads"]
        width = self.params["dim"] // heads
        groups = heads // (self.params.get("n_kv_heads") or heads)

        def project(name: str, rows: Tensor) -> Tensor:
            made = (rows @ part[f"attention.{name}.weight"].T).view(len(rows), -1, width)
            made = made.transpose(0, 1)
            return made if name == "wq" else made.repeat_interleave(groups, 0)

        query, key = self._turn(project("wq", x)), self._turn(project("wk", x))
        scores = query @ key.transpose(1, 2) / width**0.5
        scores[:, after:, start:after] += part["attention.gate2"].view(heads, 1, 1)
        scores = scores.masked_fill(~visible, -torch.inf)
        out = scores.softmax(-1) @ project("wv", x)
        extra = (query @ project("wk", prompt).transpose(1, 2) / width**0.5).softmax(-1)
        out = out + part["attention.gate1"].view(heads, 1, 1).tanh() * (
            extra @ project("wv", prompt)
        )
        return out.transpose(0, 1).reshape(len(x), -1) @ part["attention.wo.weight"].T

    def _turn(self, x: Tensor) -> Tensor:
        """Rotate each pair of neighbours (2i, 2i+1) at position p by p * theta^(-2i/d)."""
        width = x.shape[-1]
        speed = self.theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        angle = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * speed
        even, odd = x[..., ::2], x[..., 1::2]
        turned = (
            even * angle.cos() - odd * angle.sin(),
            even * angle.sin() + odd * angle.cos(),
        )
        return torch.stack(turned, -1).flatten(-2)


@pytest.fixture(scope="session")
def make_llm_tensors() -> Callable[..., tuple[dict, dict[str, Tensor]]]:
    """Makes params.json and the tensors of a random LLM in Meta's layout."""

    def make(vocabulary: int = 64, rope_theta: float | None = None) -> tuple[dict, dict]:
        generator = torch.Generator().manual_seed(5)
        draw = lambda *shape: torch.randn(*shape, generator=generator) * 0.3  # noqa: E731
        key_width = WIDTH // HEADS * KEY_HEADS
        shapes = {
            "attention.wq": (WIDTH, WIDTH),
            "attention.wk": (key_width, WIDTH),
            "attention.wv": (key_width, WIDTH),
            "attention.wo": (WIDTH, WIDTH),
            "feed_forward.w1": (HIDDEN, WIDTH),
            "feed_forward.w2": (WIDTH, HIDDEN),
            "feed_forward.w3": (HIDDEN, WIDTH),
        }
        tensors = {"tok_embeddings.weight": draw(vocabulary, WIDTH)}
        for layer in range(LAYERS):
            prefix = f"layers.{layer}"
            tensors |= {f"{prefix}.{name}.weight": draw(*s) for name, s in shapes.items()}
            for norm in ("attention_norm", "ffn_norm"):
                tensors[f"{prefix}.{norm}.weight"] = 1 + draw(WIDTH) / 3
        tensors["norm.weight"] = 1 + draw(WIDTH) / 3
        tensors["output.weight"] = draw(vocabulary, WIDTH)
        params = {
            "dim": WIDTH,
            "n_layers": LAYERS,
            "n_heads": HEADS,
            "n_kv_heads": KEY_HEADS,
            "norm_eps": 1e-5,
            "multiple_of": 16,
            "vocab_size": -1,
        }
        if rope_theta is not None:
            params["rope_theta"] = rope_theta
        return params, tensors

    return make


@pytest.fixture(scope="session")
def write_llm() -> Callable[[Path, dict, dict[str, Tensor]], Path]:
    """Writes an LLM of one shard."""

    def write(folder: Path, params: dict, tensors: dict[str, Tensor]) -> Path:
        folder.mkdir(parents=True)
        (folder / "params.json").write_text(json.dumps(params))
        torch.save(tensors, folder / "consolidated.00.pth")
        return folder

    return write


@pytest.fixture(scope="session")
def make_trained() -> Callable[..., dict[str, Tensor]]:
    """Makes the trained tensors of a checkpoint with an adapter on the top layers."""

    def make(adapted: int = LAYERS, feature: int = FEATURE) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(6)
        draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
        tensors = {
            "adapter_query.weight": draw(adapted * ADAPTER, WIDTH),
            "visual_proj.weight": draw(WIDTH, feature),
            "temporal_emb.weight": draw(FRAMES, WIDTH),
        }
        for layer in range(LAYERS):
            used = layer >= LAYERS - adapted
            gates = (draw(1, HEADS, 1, 1), draw(1, HEADS, 1, 1) - 3.5)
            start = (torch.zeros(1, HEADS, 1, 1), torch.full((1, HEADS, 1, 1), -3.5))
            for i, gate in enumerate(gates if used else start, start=1):
                tensors[f"layers.{layer}.attention.gate{i}"] = gate
        return tensors

    return make
