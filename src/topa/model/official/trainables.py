"""The authors' checkpoint_N.pth, and its tensors under the names of topa and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from topa.errors import CheckpointError, ConfigError
from topa.features.pickles import load_tree

__all__ = ["OfficialCheckpoint", "name_for_topa", "name_officially", "read_checkpoint"]

_GATE = re.compile(r"layers\.(\d+)\.attention\.gate([12])")
_LAYER = re.compile(
    r"language_model\..*\blayers\.(\d+)\.\w+\.topa_adapter\.(prompt|gate|video_bias)"
)
_OUTER = ("visual_proj.weight", "temporal_emb.weight")
_QUERY = "adapter_query.weight"


@dataclass(frozen=True)
class OfficialCheckpoint:
    """What a checkpoint_N.pth holds. L layers of the LLM, k of them with an adapter.

    Attributes:
        path: The file.
        tensors: `adapter_query.weight` [k * length, D], `visual_proj.weight` [D, d],
            `temporal_emb.weight` [T, D], `layers.N.attention.gate1` and `gate2` [1, H, 1, 1].
        num_layers: L.
        adapter_length: Prompts per layer.
        epoch: The epoch it was saved after, if it says so.
        bias: What gate2 started from, negated, if it says so.
    """

    path: Path
    tensors: dict[str, Tensor]
    num_layers: int
    adapter_length: int
    epoch: int | None = None
    bias: float | None = None

    @property
    def adapted_layers(self) -> int:
        """k: only so many layers, the top ones, are run at all (the authors' code)."""
        return len(self.tensors[_QUERY]) // self.adapter_length

    @property
    def skipped_layers(self) -> int:
        """Lower layers that are left out."""
        return self.num_layers - self.adapted_layers

    @property
    def hidden_size(self) -> int:
        """D of the LLM."""
        return self.tensors[_QUERY].shape[1]

    @property
    def num_heads(self) -> int:
        """Query heads of the LLM."""
        return self.tensors["layers.0.attention.gate1"].numel()


def read_checkpoint(path: str | Path, adapter_length: int | None = None) -> OfficialCheckpoint:
    """Read a checkpoint of the authors' code; only tensors and settings, no code in it is run.

    Args:
        path: checkpoint_N.pth.
        adapter_length: Prompts per layer, where the file does not say: it tells only how many
            there are on all layers. Without it, every layer is taken to have an adapter.

    Raises:
        DataError: The file is damaged, or a pickle that asks for code.
        CheckpointError: It is not such a checkpoint, or its tensors do not fit each other.
    """
    path = Path(path)
    tree = load_tree(path)
    model = tree.get("model") if isinstance(tree, dict) else None
    if not isinstance(model, dict):
        raise CheckpointError(
            'no "model" in it',
            where=path,
            mend="Give a checkpoint_N.pth as the authors' training writes it.",
        )
    tensors = {
        name.removeprefix("module."): tensor.detach()
        for name, tensor in model.items()
        if isinstance(tensor, Tensor)
    }
    num_layers = _check_tensors(tensors, path)
    settings = tree.get("args")
    settings = settings if isinstance(settings, dict) else {}
    length = adapter_length or settings.get("adapter_len")
    rows = len(tensors[_QUERY])
    if length is None and rows % num_layers == 0:
        length = rows // num_layers
    if not length or rows % length or rows // length > num_layers:
        raise CheckpointError(
            f"{rows} adapter prompts do not divide into {length or 'equal parts'} for "
            f"{num_layers} layers",
            where=path,
            mend="Give --adapter-length, the adapter_len of the training.",
        )
    epoch, bias = tree.get("epoch"), settings.get("bias")
    return OfficialCheckpoint(path, tensors, num_layers, int(length), epoch, bias)


def _check_tensors(tensors: Mapping[str, Tensor], path: Path) -> int:
    """Return the number of layers of the LLM.

    Raises:
        CheckpointError: Tensors are missing or unknown, or of shapes that do not fit.
    """
    gates = {name: found for name in tensors if (found := _GATE.fullmatch(name))}
    layers = {int(found[1]) for found in gates.values()}
    wanted = {_QUERY, *_OUTER}
    wanted |= {f"layers.{n}.attention.gate{i}" for n in range(len(layers)) for i in (1, 2)}
    missing, unknown = sorted(wanted - set(tensors)), sorted(set(tensors) - wanted)
    if missing or unknown or not layers:
        odd = f"missing {missing[0]}" if missing else f"unknown {(unknown or ['(no gates)'])[0]}"
        raise CheckpointError(
            f"not the trained tensors of the authors' model: {odd}",
            where=path,
            mend="Give a checkpoint_N.pth as the authors' training writes it.",
        )
    width = tensors[_QUERY].shape[-1]
    fits = {
        "visual_proj.weight": tensors["visual_proj.weight"].shape[0] == width,
        "temporal_emb.weight": tensors["temporal_emb.weight"].shape[-1] == width,
        "gates": len({tensors[name].shape for name in gates}) == 1,
    }
    if wrong := [name for name, fit in fits.items() if not fit]:
        raise CheckpointError(f"{wrong[0]} do not fit the adapter of width {width}", where=path)
    return len(layers)


def name_for_topa(checkpoint: OfficialCheckpoint) -> dict[str, Tensor]:
    """Return the tensors as a topa model with the upper k layers names them."""
    length, skipped = checkpoint.adapter_length, checkpoint.skipped_layers
    named = {name: checkpoint.tensors[name] for name in _OUTER}
    prompts = checkpoint.tensors[_QUERY].split(length)
    for layer, prompt in enumerate(prompts):
        prefix = f"language_model.model.layers.{layer}.self_attn.topa_adapter"
        gates = f"layers.{skipped + layer}.attention.gate"
        named[f"{prefix}.prompt"] = prompt
        named[f"{prefix}.gate"] = checkpoint.tensors[f"{gates}1"].flatten()
        named[f"{prefix}.video_bias"] = checkpoint.tensors[f"{gates}2"].flatten()
    return named


def name_officially(
    tensors: Mapping[str, Tensor], skipped_layers: int = 0, bias: float = 3.5
) -> dict[str, Tensor]:
    """Return the trained tensors of a topa model as the authors' checkpoint names them.

    Args:
        tensors: By topa's names.
        skipped_layers: Lower layers without adapter; their gates, which the authors' model
            has and never uses, get the values they start with.
        bias: Minus what gate2 starts with.

    Raises:
        ConfigError: The model has other trained tensors than the authors'.
    """
    layers: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        found = _LAYER.fullmatch(name)
        if found:
            layers.setdefault(int(found[1]), {})[found[2]] = tensor
        elif name not in _OUTER:
            raise ConfigError(
                f"{name} has no place in the authors' format",
                mend='Only models of variant "adapter" with one slot a frame can be exported.',
            )
    if not layers or sorted(layers) != list(range(len(layers))):
        raise ConfigError(
            "not every layer that is run has an adapter",
            mend="The authors' code would leave out the lower layers; export cannot say otherwise.",
        )
    ordered = [layers[n] for n in range(len(layers))]
    prompts = [layer["prompt"] for layer in ordered]
    named = {_QUERY: torch.cat(prompts), **{name: tensors[name] for name in _OUTER}}
    start = {"gate": 0.0, "video_bias": -bias}
    for n in range(skipped_layers + len(ordered)):
        for i, kind in enumerate(("gate", "video_bias"), start=1):
            first = ordered[0][kind]
            if n < skipped_layers:
                value = torch.full_like(first, start[kind])
            else:
                value = ordered[n - skipped_layers][kind]
            named[f"layers.{n}.attention.gate{i}"] = value.reshape(1, -1, 1, 1)
    return {name: tensor.detach().contiguous() for name, tensor in named.items()}
