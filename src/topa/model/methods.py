"""The ways of choosing among options: likelihood, selection, similarity, and two together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from topa.data.templates import PromptBuilder
from topa.features.encoder import Encoder
from topa.model.scoring import score_options
from topa.model.topa import TopaForConditionalGeneration

Choice = tuple[str, Sequence[str]]
"""A question and its options."""
Scores = list[list[Tensor]]
"""For each video, for each of its questions, scores [number of options]; larger is better."""
Progress = Callable[[int], None]


def score_likelihood(
    model: TopaForConditionalGeneration,
    builder: PromptBuilder,
    choices: Sequence[Sequence[Choice]],
    features: Sequence[Tensor],
    *,
    blind: bool = False,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> Scores:
    """Score options by the mean token log-likelihood of their text after the open prompt.

    If the checkpoint says so, less the same without the video: pointwise mutual information,
    which takes out what the LLM finds likely anyway.
    """
    prompts = [builder.likelihood(questions) for questions in choices]
    scores = score_options(
        model, prompts, features, blind=blind, batch_size=batch_size, progress=progress
    )
    if blind or not model.config.subtract_blind:
        return scores
    prior = score_options(model, prompts, features, blind=True, batch_size=batch_size)
    return [
        [seen - unseen for seen, unseen in zip(a, b, strict=True)]
        for a, b in zip(scores, prior, strict=True)
    ]


def score_selection(
    model: TopaForConditionalGeneration,
    builder: PromptBuilder,
    choices: Sequence[Sequence[Choice]],
    features: Sequence[Tensor],
    *,
    blind: bool = False,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> Scores:
    """Score options by the log-likelihood of their letter.

    Every question is a prompt of its own, since its text lists the options.
    """
    flat = [
        (builder.choice(*question), shown)
        for questions, shown in zip(choices, features, strict=True)
        for question in questions
    ]
    scores = iter(
        score_options(
            model,
            [prompt for prompt, _ in flat],
            [shown for _, shown in flat],
            blind=blind,
            batch_size=batch_size,
            progress=progress,
        )
    )
    return [[next(scores)[0] for _ in questions] for questions in choices]


def score_similarity(
    encoder: Encoder, choices: Sequence[Sequence[Choice]], features: Sequence[Tensor]
) -> Scores:
    """Score options without an LLM: the largest cosine of "question option" with any frame."""
    scores = []
    for questions, shown in zip(choices, features, strict=True):
        texts = [f"{question} {option}" for question, options in questions for option in options]
        cosines = (encoder.encode_text(texts) @ shown.T).amax(1)
        scores.append(list(cosines.split([len(options) for _, options in questions])))
    return scores


def combine(first: Scores, second: Scores) -> Scores:
    """Add two kinds of scores, each standardised over the options of a question."""
    return [
        [_standardise(x) + _standardise(y) for x, y in zip(a, b, strict=True)]
        for a, b in zip(first, second, strict=True)
    ]


def _standardise(scores: Tensor) -> Tensor:
    """Return scores [n] with mean 0 and deviation 1; zeros where all are equal."""
    centred = scores - scores.mean()
    deviation = centred.square().mean().sqrt()
    return centred / deviation if deviation > 0 else centred
