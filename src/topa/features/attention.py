"""Softmax attention to the rows of a memory, a chunk at a time, and how the rows are kept."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from topa.errors import ConfigError

__all__ = ["STORAGES", "attend", "chunks", "pack_rows"]

STORAGES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
}
_SCORES = 2048  # rows whose scores are held at once where there is no fused kernel


def pack_rows(features: torch.Tensor, storage: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return rows [n, d] in the type they are kept in, and for int8 the scale [n, 1] of each.

    Raises:
        ConfigError: There is no such storage.
    """
    if storage not in STORAGES:
        raise ConfigError(
            f"unknown storage {storage!r}", where="memory", mend=f"Use one of {list(STORAGES)}."
        )
    if storage != "int8":
        return features.to(STORAGES[storage]).contiguous(), None
    scales = features.abs().amax(1, keepdim=True).float() / 127
    return (features / scales).round().to(torch.int8).contiguous(), scales


def chunks(
    features: torch.Tensor, size: int, scales: torch.Tensor | None = None
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (first row, float32 rows) of consecutive pieces; views where they are float32."""
    if size < 1:
        raise ValueError(f"a chunk needs at least one row, got {size}")
    for start in range(0, len(features), size):
        rows = features[start : start + size].float()
        yield start, rows if scales is None else rows * scales[start : start + size]


def attend(queries: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return softmax(q r^T) r [b, d] and its log-sum-exp [b, 1], for scaled queries [b, d]."""
    if queries.device.type == "cpu":
        return _attend_fused(queries, rows)
    return _attend_plain(queries, rows)


def _attend_fused(queries: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return softmax(q r^T) r [b, d] and its log-sum-exp [b, 1], on a CPU.

    The rows are dealt out as heads of PyTorch's attention kernel, one for each thread: unlike
    `scaled_dot_product_attention` the kernel itself also returns the log-sum-exp that joins
    the parts exactly. Rows that are left over when all have as many are a part of their own.
    """
    heads = min(torch.get_num_threads(), len(rows))
    even = len(rows) // heads * heads
    found = []
    for part in (rows[:even].view(heads, -1, rows.shape[1]), rows[None, even:]):
        if part.shape[1]:
            keys, each = part[None], queries.expand(1, len(part), *queries.shape)
            found.append(
                torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                    each, keys, keys, scale=1.0
                )
            )
    mixed, logsums = (torch.cat(parts, 1)[0] for parts in zip(*found, strict=True))
    return (mixed * logsums.softmax(0)[..., None]).sum(0), logsums.logsumexp(0)[:, None]


def _attend_plain(queries: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `_attend_fused` does, in plain operations for any device."""
    top = queries.new_full((len(queries), 1), -torch.inf)
    total = queries.new_zeros(len(queries), 1)
    mixed = torch.zeros_like(queries)
    for piece in rows.split(_SCORES):
        scores = queries @ piece.T
        new_top = torch.maximum(top, scores.amax(1, keepdim=True))
        decay = (top - new_top).exp()
        weights = (scores - new_top).exp()
        total = total * decay + weights.sum(1, keepdim=True)
        mixed = torch.addmm(mixed * decay, weights, piece)
        top = new_top
    return mixed / total, top + total.log()
