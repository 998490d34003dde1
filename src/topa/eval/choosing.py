"""Choosing an option: what each method measures, how it decides, and a strict parser."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from topa.data.templates import LETTERS
from topa.eval.names import EvalMethod
from topa.model.methods import combine

Measures = Mapping[str, Any]
"""What was measured of one question: `likelihood` (mean token log-likelihood of each option),
`tokens` (of each option), `letters`, `similarity`, `generation` (words), and `blind_` forms of
those of the LLM."""

_LIKELIHOODS = ("likelihood", "likelihood-raw", "likelihood-normalised", "likelihood-pmi")


def resolve_method(method: EvalMethod, subtract_blind: bool) -> EvalMethod:
    """Return the method that "likelihood" stands for in a checkpoint; others as they are."""
    if method != "likelihood":
        return method
    return "likelihood-pmi" if subtract_blind else "likelihood-normalised"


def measures_of(method: EvalMethod, blind: bool, context: bool) -> set[str]:
    """Return what has to be measured for a method.

    Args:
        method: A resolved method.
        blind: The answers are to be those without the video.
        context: Blind and similarity answers are wanted beside it.
    """
    basic = {"combined": "likelihood", "selection": "letters", "generation": "generation"}
    measure = "likelihood" if method in _LIKELIHOODS else basic.get(method)
    wanted = {"similarity"} if context and not blind else set()
    if method in ("similarity", "combined") and not blind:
        wanted.add("similarity")
    if measure is not None:
        wanted.add(f"blind_{measure}" if blind else measure)
        if context or (method in ("likelihood-pmi", "combined") and not blind):
            wanted.add(f"blind_{measure}")
    if method == "similarity" and context:
        wanted.add("blind_likelihood")
    if wanted & {"likelihood", "blind_likelihood"}:
        wanted.add("tokens")
    return wanted


def choose(
    method: EvalMethod, measures: Measures, options: Sequence[str], blind: bool = False
) -> tuple[int | None, list[float] | None, str | None]:
    """Return the chosen option, the options' probabilities, and the reason if none is chosen.

    The probabilities are the softmax of the scores: what the method compares, as shares. There
    are none for generation.

    Args:
        method: A resolved method.
        measures: Of the question.
        options: Its options.
        blind: Answer without the video.
    """
    prefix = "blind_" if blind else ""
    if method == "generation":
        text = measures[f"{prefix}generation"]
        found = parse_choice(text, options)
        reason = None if found is not None else f"no option in the answer {text[:80]!r}"
        return found, None, reason
    scores = _scores(method, measures, blind)
    if not scores.isfinite().all():
        return None, None, "the scores of the options are not finite"
    return int(scores.argmax()), scores.softmax(-1).tolist(), None


def _scores(method: EvalMethod, measures: Measures, blind: bool) -> Tensor:
    """Return scores [number of options]; larger is better."""

    def measured(name: str) -> Tensor:
        return torch.tensor(measures[name], dtype=torch.float64)

    prefix = "blind_" if blind else ""
    if method == "similarity":
        # Blind similarity does not exist: what is shown beside it is the blind likelihood.
        return measured("blind_likelihood" if blind else "similarity")
    if method == "selection":
        return measured(f"{prefix}letters")
    mean = measured(f"{prefix}likelihood")
    if method == "likelihood-raw":
        return mean * measured("tokens")
    if method == "likelihood-normalised" or blind:
        return mean
    mutual = mean - measured("blind_likelihood")
    if method == "likelihood-pmi":
        return mutual
    return combine([[mutual]], [[measured("similarity")]])[0][0]


def parse_choice(text: str, options: Sequence[str]) -> int | None:
    """Return the option that an answer names without doubt, or None; nothing is guessed.

    Accepted are the letter of an option at the beginning, "(B)", "B", "B." or "B) ...", alone or
    followed by the words of an answer; and the words of exactly one option, whole.

    Args:
        text: What the LLM wrote after "The correct choice is".
        options: The options.
    """
    text = text.strip()
    match = re.match(r"\(([A-Z])\)|([A-Z])(?=$|[.):,]|\s*\n)", text)
    if match:
        letter = match[1] or match[2]
        index = LETTERS.index(letter)
        return index if index < len(options) else None
    words = _plain(text)
    same = [i for i, option in enumerate(options) if words and _plain(option) == words]
    return same[0] if len(same) == 1 else None


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s]", " ", text.casefold()).split())
