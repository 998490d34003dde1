"""Attention with a bias on the video per head, in the fused kernels of torch.

The bias is g2[h] where the query lies after the video and the key is a video slot: a product of
something of the query and something of the key. So it is one more channel of both,

    [q, g2 a / c] [k, s]^T c = q k^T c + g2 a s        (a, s: 0 or 1; c: the scale of the scores)

which is exact, has a gradient, and leaves the kernel nothing to read but q, k and v. As a mask the
same bias would take a number for every head, query and key in every layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache

_CHANNELS = 8  # fused kernels of GPUs want head widths that are multiples of it


@dataclass
class VideoSpan:
    """Where the video lies, for the attention bias; P positions of the prompt, Q queries.

    Attributes:
        slot_keys: [B, P] True where the key is a video slot; keys past P are none.
        after: [B, Q] True where the query lies after the last video slot.
        key_starts: For each layer, the position of its first cached key, where a sliding window
            has let go of earlier ones; None if all are there.
        prompts: k_A and v_A of each layer, kept as long as the cache of keys; None without one.
        tokens: [K] of a `Batch` whose tokens are one row of states; None: states are [B, S].
        places: [B, S] of the same batch.
    """

    slot_keys: Tensor
    after: Tensor
    key_starts: list[int] | None = None
    prompts: dict[int, tuple[Tensor, Tensor]] | None = field(default=None, repr=False)
    tokens: Tensor | None = None
    places: Tensor | None = None

    def slots_at(self, layer: int, keys: int) -> Tensor:
        """Return [B, K] True at the video slots among the keys that a layer attends to."""
        start = self.key_starts[layer] if self.key_starts else 0
        known = self.slot_keys[:, start : start + keys]
        return F.pad(known, (0, keys - known.shape[1]))

    def to(self, device: torch.device | str, **kwargs: Any) -> VideoSpan:
        """Return the same on another device: layers of one LLM may lie on several."""
        return VideoSpan(
            self.slot_keys.to(device, **kwargs),
            self.after.to(device, **kwargs),
            self.key_starts,
            self.prompts,
            None if self.tokens is None else self.tokens.to(device, **kwargs),
            None if self.places is None else self.places.to(device, **kwargs),
        )


def span_video(
    slot_index: Tensor | None, past: int, queries: int, cache: Cache | None = None
) -> VideoSpan | None:
    """Return where the video lies for queries past .. past + queries - 1; None without a video.

    Args:
        slot_index: [B, P] slot number at each position of the prompt, -1 at text.
        past: Tokens that the cache holds.
        queries: Q.
        cache: Of earlier positions.
    """
    if slot_index is None:
        return None
    slots = slot_index >= 0
    positions = torch.arange(slots.shape[1], device=slots.device)
    last = torch.where(slots, positions, -1).amax(1)
    query = torch.arange(past, past + queries, device=slots.device)
    span = VideoSpan(slots, query[None, :] > last[:, None])
    if cache is not None:
        starts = [cache.get_mask_sizes(queries, i)[1] for i in range(len(cache.layers))]
        span.key_starts = starts if any(starts) else None
        if not torch.is_grad_enabled():
            span.prompts = vars(cache).setdefault("topa_prompts", {})
    return span


def spread(states: Tensor, places: Tensor) -> Tensor:
    """Return packed states [1, H, K, d] where they stand in their prompts, [B, H, S, d]."""
    rows = states[0].transpose(0, 1)
    # As an embedding: its gradient is summed in a fixed order, on a GPU too.
    return F.embedding(places, rows.flatten(1)).unflatten(-1, rows.shape[1:]).transpose(1, 2)


def pack(states: Tensor, tokens: Tensor) -> Tensor:
    """Return the states of the computed tokens [1, H, K, d] of [B, H, S, d]."""
    rows = states.transpose(1, 2).flatten(0, 1)
    return F.embedding(tokens, rows.flatten(1)).unflatten(-1, rows.shape[1:]).transpose(0, 1)[None]


@dataclass
class VideoBias:
    """What is added to scores: gate[h] * after[b, i] * slots[b, j].

    Attributes:
        gate: [H] g2 of each head.
        after: [B, Q] 0 or 1.
        slots: [B, K] 0 or 1.
    """

    gate: Tensor
    after: Tensor
    slots: Tensor

    def factors(self, dtype: torch.dtype, scaling: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return the part of the query over `scaling` [B, H, Q, 1] and of the key [B, 1, K, 1]."""
        gate = (self.gate / scaling).to(dtype)[None, :, None, None]
        after = self.after.to(gate.device, dtype)[:, None, :, None]
        return gate * after, self.slots.to(gate.device, dtype)[:, None, :, None]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    bias: VideoBias | None = None,
    is_causal: bool = True,
) -> Tensor:
    """Return softmax(q k^T scaling + mask + bias) v with grouped heads, [B, H, Q, d].

    Args:
        query: [B, H, Q, d].
        key: [B, Hkv, K, d].
        value: [B, Hkv, K, d].
        mask: [B, 1, Q, K], bool (True = visible) or additive. None: query i sees keys 0 .. i, a
            single query all; this is how transformers says it, also before an empty static cache.
        scaling: Factor of the scores.
        dropout: Probability of dropping a weight.
        softcap: Scores are bent to lie within it, before mask and bias are added (Gemma 2).
        bias: Of the video.
        is_causal: False: without a mask every query sees every key.
    """
    queries, width = query.shape[2], value.shape[3]
    causal = is_causal and mask is None and queries > 1
    if causal and key.shape[2] > queries:
        key, value = key[:, :, :queries], value[:, :, :queries]
        if bias is not None:
            bias = VideoBias(bias.gate, bias.after, bias.slots[:, :queries])
    if queries == 1:
        return _attend_one(query, key, value, mask, scaling, dropout, softcap, bias)
    if softcap is None and bias is not None:
        query, key, value = _carry(query, key, value, scaling, bias)
        bias = None
    # The CPU kernel's backward is several times slower than matrix products at these sizes.
    slow = query.device.type == "cpu" and torch.is_grad_enabled() and dropout == 0.0
    if softcap is None and (mask is None or not slow):
        # With a mask, the kernels of CUDA know no grouped heads.
        if mask is not None and query.is_cuda:
            groups = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        out = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=causal,
            scale=scaling,
            dropout_p=dropout,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    else:
        if causal:
            ones = torch.ones(queries, queries, dtype=torch.bool, device=query.device)
            mask = ones.tril()[None, None]
        out = _multiply(query, key, value, mask, scaling, dropout, softcap, bias)
    return out[..., :width]


def _carry(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, bias: VideoBias
) -> tuple[Tensor, Tensor, Tensor]:
    """Return query, key and value with more channels, the first of which carries the bias."""
    extra = _CHANNELS - query.shape[-1] % _CHANNELS
    of_query, of_key = bias.factors(query.dtype, scaling)
    of_key = of_key.expand(-1, key.shape[1], -1, -1)
    query = torch.cat([query, F.pad(of_query, (0, extra - 1))], -1)
    key = torch.cat([key, F.pad(of_key, (0, extra - 1))], -1)
    return query, key, F.pad(value, (0, extra))


def _attend_one(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    dropout: float,
    softcap: float | None,
    bias: VideoBias | None,
) -> Tensor:
    """Attend from one query: the heads of a group become the queries of their key head.

    The bias is a row for each head here; to copy the keys for a further channel would cost more.
    """
    batch, heads, _, width = query.shape
    groups = key.shape[1]
    if bias is not None:
        of_query, of_key = bias.factors(query.dtype)
        row = of_query * of_key.transpose(-1, -2)  # [B, H, 1, K]
        if mask is None:
            mask = row
        elif mask.dtype == torch.bool:
            mask = row.masked_fill(~mask, torch.finfo(row.dtype).min)
        else:
            mask = row + mask
    if mask is not None:
        mask = mask.expand(batch, heads, 1, -1).reshape(batch, groups, heads // groups, -1)
    packed = query.reshape(batch, groups, heads // groups, width)
    if softcap is not None:
        out = _multiply(packed, key, value, mask, scaling, dropout, softcap, None)
    else:
        out = F.scaled_dot_product_attention(
            packed, key, value, attn_mask=mask, scale=scaling, dropout_p=dropout
        )
    return out.reshape(batch, heads, 1, -1)


def _multiply(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    dropout: float,
    softcap: float | None,
    bias: VideoBias | None,
) -> Tensor:
    """Attend by two matrix products; the bias is added after soft-capping."""
    batch, heads, length, width = query.shape
    groups = heads // key.shape[1]
    grouped = query.reshape(batch, heads // groups, groups * length, width)
    scores = (grouped @ key.transpose(-1, -2)) * scaling
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    scores = scores.view(batch, heads, length, key.shape[2])
    if bias is not None:
        of_query, of_key = bias.factors(scores.dtype)
        scores = torch.addcmul(scores, of_query, of_key.transpose(-1, -2))
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask
    exact = torch.promote_types(scores.dtype, torch.float32)
    weights = scores.softmax(-1, dtype=exact).to(query.dtype)
    weights = weights.view(batch, heads // groups, groups * length, key.shape[2])
    weights = F.dropout(weights, dropout)
    return (weights @ value).view(batch, heads, length, value.shape[-1])
