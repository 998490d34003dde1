"""A closed-form start of the projector: from frame features to the LLM's token embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from topa.data.templates import PromptBuilder
from topa.features.encoder import Encoder
from topa.features.store import TideoFeatures
from topa.model.topa import TopaForConditionalGeneration
from topa.tideo.schema import Frame, Tideo

_RIDGE = 1.0
_CHUNK, _ROWS = 512, 8192  # Tideos and frames at a time: memory does not grow with the set


def slot_texts(frame: Frame, slots_per_frame: int) -> list[str]:
    """Return what each slot of a frame is to say: the caption, and shares of the objects."""
    if slots_per_frame == 1:
        return [" ".join(frame.texts)]
    shares = [
        " ".join(frame.objects[share :: slots_per_frame - 1]) or frame.caption
        for share in range(slots_per_frame - 1)
    ]
    return [frame.caption, *shares]


@torch.no_grad()
def start_words(
    model: TopaForConditionalGeneration,
    builder: PromptBuilder,
    words: Sequence[str],
    encoder: Encoder,
) -> None:
    """Fill the dictionary, and let the projector add nothing to the words at first."""
    assert model.words is not None
    model.words.fill(encoder.encode_text(words), [builder.tokenize(f" {word}") for word in words])
    model.visual_proj.weight.zero_()


@torch.no_grad()
def start_projector(
    model: TopaForConditionalGeneration,
    builder: PromptBuilder,
    tideos: Sequence[Tideo],
    features: TideoFeatures,
) -> float:
    """Set the projector by ridge regression to the mean token embedding of each frame's texts.

    The predictions are scaled to the mean norm of a token embedding, since means of many
    embeddings are shorter than any of them.

    Returns:
        The share of the target's variance that the regression explains (R^2).
    """
    table: Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    # The sums are float64 on the CPU, wherever the LLM lies: not every device has float64.
    embedding, slots = table.float().cpu(), model.config.slots_per_frame
    gram = torch.zeros(features.frames.shape[1], features.frames.shape[1], dtype=torch.float64)
    cross = torch.zeros(len(gram), slots * embedding.shape[1], dtype=torch.float64)
    total, squares = torch.zeros(cross.shape[1], dtype=torch.float64), 0.0
    for first in range(0, len(tideos), _CHUNK):
        part = tideos[first : first + _CHUNK]
        start, end = features.frame_offsets[[first, first + len(part)]].tolist()
        inputs = features.frames[start:end].double()
        targets = _slot_targets(part, embedding, slots, builder).double()
        gram += inputs.T @ inputs
        cross += inputs.T @ targets
        total += targets.sum(0)
        squares += float(targets.square().sum())
    weight = ridge(gram, cross, _RIDGE)
    lengths = [
        (rows.double() @ weight).view(len(rows), slots, -1).norm(dim=-1).sum()
        for rows in features.frames.split(_ROWS)
    ]
    number = len(features.frames)
    scale = embedding.norm(dim=1).mean() * number * slots / sum(lengths)
    model.visual_proj.weight.copy_((weight * scale).T)
    # |Y - XW|^2 and |Y - mean|^2 from the sums alone.
    residual = squares - 2 * (weight * cross).sum() + (weight * (gram @ weight)).sum()
    return float(1 - residual / (squares - total.square().sum() / number))


def _slot_targets(
    tideos: Sequence[Tideo], embedding: Tensor, slots: int, builder: PromptBuilder
) -> Tensor:
    """Return [frames, slots * D]: the mean token embedding of what each slot is to say."""
    rows = [
        embedding[torch.tensor(builder.tokenize(f" {text}"))].mean(0)
        for tideo in tideos
        for frame in tideo.frames
        for text in slot_texts(frame, slots)
    ]
    return torch.stack(rows).view(-1, slots * embedding.shape[1])


def ridge(gram: Tensor, cross: Tensor, strength: float) -> Tensor:
    """Return W [d, D] that minimises |X W - Y|^2 + strength |W|^2.

    Args:
        gram: [d, d], X^T X.
        cross: [d, D], X^T Y.
        strength: Of the penalty.
    """
    return torch.linalg.solve(gram + strength * torch.eye(len(gram), dtype=gram.dtype), cross)
