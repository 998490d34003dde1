"""The paper's own way, plainly written: everything padded to 150, every position through the head.

What it does as the authors' code does: one padded row per option, no cache while generating,
logits of all positions, adapter keys and values repeated for every row, attention scores in
plain products. What it does not repeat are the errors (see docs/training.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from topa.data.templates import Prompt
from topa.model.adapter import VideoSpan
from topa.model.topa import TopaForConditionalGeneration

LENGTH = 150
ATTENTION = "topa_paper"


def paper_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    topa_video: VideoSpan | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The adapter's attention as one product over prompts and tokens, with repeated heads.

    Args:
        module: The attention module with its `topa_adapter`.
        query: [B, H, Q, d], after rotary positions.
        key: [B, Hkv, K, d].
        value: [B, Hkv, K, d].
        attention_mask: [B or 1, 1, Q, K], added to the scores.
        scaling: Factor of the scores.
        topa_video: Where the video lies.

    Returns:
        [B, Q, H, d] and None.
    """
    adapter: Any = module.topa_adapter
    batch, heads, _, width = query.shape
    groups = heads // key.shape[1]
    prompt = adapter.prompt.to(query.dtype)
    length = len(prompt)
    shape = (1, length, -1, width)
    prompt_key = module.k_proj(prompt).view(shape).transpose(1, 2).repeat(batch, 1, 1, 1)  # type: ignore[operator]
    prompt_value = module.v_proj(prompt).view(shape).transpose(1, 2).repeat(batch, 1, 1, 1)  # type: ignore[operator]
    keys = torch.cat([prompt_key, key], 2).repeat_interleave(groups, 1)
    values = torch.cat([prompt_value, value], 2).repeat_interleave(groups, 1)
    scores = (query @ keys.transpose(2, 3)) * (scaling or width**-0.5)
    assert attention_mask is not None, "eager_mask makes one"
    tokens = scores[..., length:] + attention_mask
    if topa_video is not None:
        biased = topa_video.after[:, None, :, None] & topa_video.slot_keys[:, None, None, :]
        tokens = tokens + biased * adapter.video_bias.to(query.dtype)[None, :, None, None]
    gated = scores[..., :length].softmax(-1) * adapter.gate.tanh()[None, :, None, None]
    weights = torch.cat([gated.to(query.dtype), tokens.softmax(-1)], -1)
    return (weights @ values).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, paper_attention)
AttentionMaskInterface.register(ATTENTION, eager_mask)


class PaperModel:
    """A TOPA model with an adapter, run as the paper's code runs its own.

    Args:
        model: The model; its weights are shared, its attention function is set in every call.
        length: What every row is padded to.
    """

    def __init__(self, model: TopaForConditionalGeneration, length: int = LENGTH):
        self.model, self.length = model, length

    def logits(self, rows: Sequence[tuple[Tensor, Tensor]], features: Tensor) -> Tensor:
        """Return [B, length, vocabulary] logits of all positions.

        Args:
            rows: For each row its token ids and slot numbers, [n] each.
            features: [B, T, d].
        """
        ids = torch.zeros(len(rows), self.length, dtype=torch.long)
        slots = torch.full((len(rows), self.length), -1, dtype=torch.long)
        for row, (tokens, places) in enumerate(rows):
            ids[row, : len(tokens)] = tokens
            slots[row, : len(places)] = places
        llm = self.model.language_model
        before = llm.config._attn_implementation
        llm.set_attn_implementation(ATTENTION)
        try:
            return self.model(
                input_ids=ids, slot_index=slots, features=features, use_cache=False
            ).logits
        finally:
            llm.set_attn_implementation(before)

    def nll(self, prompts: Sequence[Prompt], features: Tensor) -> tuple[Tensor, Tensor]:
        """Return [B] summed negative log-likelihood of each row's label, and their lengths [B].

        Args:
            prompts: Prompts of one branch each, the last segment its label.
            features: [B, T, d].
        """
        rows = [flatten(prompt) for prompt in prompts]
        logits = self.logits(rows, features)
        labels = torch.full((len(rows), self.length), -100)
        for row, (prompt, (ids, _)) in enumerate(zip(prompts, rows, strict=True)):
            first = len(ids) - len(prompt.segments[-1].ids)
            labels[row, first : len(ids)] = ids[first:]
        found = F.cross_entropy(
            logits[:, :-1].reshape(-1, logits.shape[-1]).float(),
            labels[:, 1:].reshape(-1),
            reduction="none",
            ignore_index=-100,
        ).view(len(rows), -1)
        return found.sum(1), (labels[:, 1:] >= 0).sum(1)

    def continue_greedily(self, prompt: Prompt, features: Tensor, count: int) -> list[int]:
        """Return `count` tokens, each from a forward pass over the whole padded row."""
        ids, slots = flatten(prompt)
        for _ in range(count):
            logits = self.logits([(ids, slots)], features[None])
            ids = torch.cat([ids, logits[0, len(ids) - 1].argmax()[None]])
            slots = torch.cat([slots, torch.tensor([-1])])
        return ids[-count:].tolist()


def flatten(prompt: Prompt) -> tuple[Tensor, Tensor]:
    """Return token ids and slot numbers, [n] each, of a prompt without branches."""
    ids = [token for segment in prompt.segments for token in segment.ids]
    slots = [slot for segment in prompt.segments for slot in segment.slots]
    return torch.tensor(ids), torch.tensor(slots)


def option_rows(prompt: Prompt) -> list[Prompt]:
    """Return one prompt of a single branch for each option of a one-question prompt."""
    trunk = prompt.segments[: prompt.options[0][0]]
    return [Prompt([*trunk, prompt.segments[place]]) for place in prompt.options[0]]
