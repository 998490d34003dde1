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
    embedding = table.float()
    slots = model.config.slots_per_frame
    targets = torch.stack(
        [
            torch.cat(
                [
                    embedding[torch.tensor(builder.tokenize(f" {text}"))].mean(0)
                    for text in slot_texts(frame, slots)
                ]
            )
            for tideo in tideos
            for frame in tideo.frames
        ]
    )
    weight = ridge(features.frames.to(targets), targets, _RIDGE)
    predicted = features.frames @ weight
    norms = predicted.view(len(predicted), slots, -1).norm(dim=-1)
    scale = embedding.norm(dim=1).mean() / norms.mean()
    model.visual_proj.weight.copy_((weight * scale).T)
    residual = (targets - predicted).square().sum()
    return float(1 - residual / (targets - targets.mean(0)).square().sum())


def ridge(inputs: Tensor, targets: Tensor, strength: float) -> Tensor:
    """Return W [d, D] that minimises |inputs W - targets|^2 + strength |W|^2."""
    gram = inputs.T @ inputs + strength * torch.eye(inputs.shape[1], dtype=inputs.dtype)
    return torch.linalg.solve(gram, inputs.T @ targets)
