"""Measuring questions: likelihoods, letters, similarities and words, clip by clip."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from topa.answer import Topa
from topa.data.asked import question_text
from topa.data.questions import VideoQuestion
from topa.data.templates import Prompt, PromptBuilder
from topa.errors import ConfigError
from topa.model.methods import score_similarity
from topa.model.scoring import score_options

QUESTIONS_PER_PROMPT = 10
ANSWER_TOKENS = 12

Group = tuple[list[VideoQuestion], Tensor]
"""Questions about one clip, and its features [n, d]."""


def find_overlong(
    builder: PromptBuilder, question: VideoQuestion, measures: set[str], limit: int
) -> str | None:
    """Return why a question does not fit the LLM, None if it does; nothing is ever cut off.

    Args:
        builder: Builds its prompts.
        question: The question.
        measures: What is to be measured.
        limit: Tokens the LLM has positions for.
    """
    lengths = []
    text, options = question_text(question), question.options
    if {"likelihood", "blind_likelihood"} & measures:
        lengths.append(_longest_path(builder.likelihood([(text, options)])))
    if {"letters", "blind_letters", "generation", "blind_generation"} & measures:
        lengths.append(_longest_path(builder.choice(text, options)) + ANSWER_TOKENS)
    longest = max(lengths, default=0)
    if longest <= limit:
        return None
    return f"the prompt has {longest} tokens, the LLM reads {limit}"


def _longest_path(prompt: Prompt) -> int:
    ends: list[int] = []
    for segment in prompt.segments:
        before = ends[segment.parent] if segment.parent >= 0 else 0
        ends.append(before + len(segment.ids))
    return max(ends)


@torch.inference_mode()
def measure(topa: Topa, groups: Sequence[Group], wanted: set[str]) -> dict[str, dict[str, Any]]:
    """Measure questions.

    Args:
        topa: The model.
        groups: Questions by clip.
        wanted: Of `topa.eval.choosing.measures_of`.

    Returns:
        Measures by qid: lists of one number per option, or words.
    """
    found: dict[str, dict[str, Any]] = {item.qid: {} for items, _ in groups for item in items}
    if wanted & {"likelihood", "blind_likelihood"}:
        _measure_likelihood(topa, groups, wanted, found)
    if wanted & {"letters", "blind_letters"}:
        _measure_letters(topa, groups, wanted, found)
    if "similarity" in wanted:
        for items, features in groups:
            choices = [(item.question, item.options) for item in items]
            (scores,) = score_similarity(topa.encoder, [choices], [features])
            for item, row in zip(items, scores, strict=True):
                found[item.qid]["similarity"] = _numbers(row)
    if wanted & {"generation", "blind_generation"}:
        _measure_generation(topa, groups, wanted, found)
    return found


def _measure_likelihood(
    topa: Topa, groups: Sequence[Group], wanted: set[str], found: dict[str, dict[str, Any]]
) -> None:
    parts = [
        (items[start : start + QUESTIONS_PER_PROMPT], features)
        for items, features in groups
        for start in range(0, len(items), QUESTIONS_PER_PROMPT)
    ]
    prompts = [
        topa.builder.likelihood([(question_text(item), item.options) for item in items])
        for items, _ in parts
    ]
    shown = [features for _, features in parts]
    for name, blind in (("likelihood", False), ("blind_likelihood", True)):
        if name not in wanted:
            continue
        scores = score_options(topa.model, prompts, shown, blind=blind)
        for (items, _), rows in zip(parts, scores, strict=True):
            for item, row in zip(items, rows, strict=True):
                found[item.qid][name] = _numbers(row)
    for (items, _), prompt in zip(parts, prompts, strict=True):
        for item, branches in zip(items, prompt.options, strict=True):
            found[item.qid]["tokens"] = [len(prompt.segments[i].ids) for i in branches]


def _measure_letters(
    topa: Topa, groups: Sequence[Group], wanted: set[str], found: dict[str, dict[str, Any]]
) -> None:
    asked = list(_one_by_one(groups))
    prompts = [topa.builder.choice(question_text(item), item.options) for item, _ in asked]
    shown = [features for _, features in asked]
    for name, blind in (("letters", False), ("blind_letters", True)):
        if name in wanted:
            scores = score_options(topa.model, prompts, shown, blind=blind)
            for (item, _), rows in zip(asked, scores, strict=True):
                found[item.qid][name] = _numbers(rows[0])


def _measure_generation(
    topa: Topa, groups: Sequence[Group], wanted: set[str], found: dict[str, dict[str, Any]]
) -> None:
    asked = list(_one_by_one(groups))
    # The choice prompt without the branches of its letters.
    prompts = [
        Prompt(topa.builder.choice(question_text(item), item.options).segments[:2])
        for item, _ in asked
    ]
    for name, blind in (("generation", False), ("blind_generation", True)):
        if name not in wanted:
            continue
        for start in range(0, len(asked), 8):
            rows = slice(start, start + 8)
            shown = [features[:0] if blind else features for _, features in asked[rows]]
            texts = topa.generate(prompts[rows], shown, ANSWER_TOKENS)
            for (item, _), text in zip(asked[rows], texts, strict=True):
                found[item.qid][name] = text


def _one_by_one(groups: Sequence[Group]) -> Iterator[tuple[VideoQuestion, Tensor]]:
    for items, features in groups:
        for item in items:
            yield item, features


def _numbers(row: Tensor) -> list[float]:
    """Return float32 scores as numbers that are read back to the same float32."""
    return [float(f"{value:.9g}") for value in row.tolist()]


def token_limit(topa: Topa) -> int:
    """Return how many tokens the LLM has positions for.

    Raises:
        ConfigError: Its configuration does not say.
    """
    limit = getattr(topa.model.language_config, "max_position_embeddings", None)
    if not isinstance(limit, int):
        raise ConfigError("the LLM does not say how many tokens it reads", where="max_position")
    return limit
