"""Scores of options: log-likelihoods from one packed forward pass per group of prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from topa.data.collate import Batch, collate
from topa.data.templates import Prompt
from topa.model.packing import span_means
from topa.model.topa import TopaForConditionalGeneration

__all__ = ["score_options", "span_means"]


@torch.inference_mode()
def score_options(
    model: TopaForConditionalGeneration,
    prompts: Sequence[Prompt],
    features: Sequence[Tensor],
    *,
    blind: bool = False,
    batch_size: int = 8,
    progress: Callable[[int], None] | None = None,
) -> list[list[Tensor]]:
    """Return the mean token log-likelihood of every option of every question.

    A prompt is one forward pass however many questions and options it holds; prompts of
    similar length share a batch.

    Args:
        model: The model, in evaluation mode.
        prompts: Prompts whose `options` are to be scored.
        features: [n, d] features of each prompt's video.
        blind: Mask the video.
        batch_size: Prompts per forward pass.
        progress: Called with the number of prompts done.

    Returns:
        For each prompt, for each of its questions, float32 [number of options] on the CPU.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    scores: list[list[Tensor]] = [[] for _ in prompts]
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = collate(
                [prompts[i] for i in rows], [features[i] for i in rows], model.config.num_frames
            )
            if blind:
                batch.frame_mask = torch.zeros_like(batch.frame_mask)
            batch = batch.to(model.device)
            per_prompt = _split(_span_scores(model, batch), [prompts[i] for i in rows])
            for i, questions in zip(rows, per_prompt, strict=True):
                scores[i] = questions
            if progress is not None:
                progress(start + len(rows))
    finally:
        model.train(was_training)
    return scores


def _span_scores(model: TopaForConditionalGeneration, batch: Batch) -> Tensor:
    log_probs = model.target_log_probs(batch)
    return span_means(log_probs, batch.target_spans, len(batch.span_groups)).cpu()


def _split(spans: Tensor, prompts: Sequence[Prompt]) -> list[list[Tensor]]:
    """Hand the spans of a batch back to the questions they came from."""
    result, start = [], 0
    for prompt in prompts:
        labelled = [i for i, segment in enumerate(prompt.segments) if segment.is_label]
        place = {segment: start + k for k, segment in enumerate(labelled)}
        result.append([spans[[place[i] for i in options]] for options in prompt.options])
        start += len(labelled)
    return result
