"""BLEU, ROUGE-L and CIDEr(-D) of captions, in Python, equal to those of the MS-COCO scripts.

The definitions are those of the papers with the choices of the public scripts (pycocoevalcap),
which published numbers rest on: corpus BLEU with the closest reference length, ROUGE-L with
beta = 1.2 and the largest precision and recall over references, CIDEr-D with its clipping and
length penalty under the name CIDEr. Tests compare them to 1e-4.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from topa.errors import DataError
from topa.eval.meteor import score_meteor
from topa.eval.ptb import TOKENIZER, tokenize_caption

MAX_N = 4
BETA = 1.2  # ROUGE-L: how much more recall counts than precision
SIGMA = 6.0  # CIDEr-D: width of the length penalty
_SMALL, _TINY = 1e-9, 1e-15  # as the BLEU script avoids 0/0
RESAMPLES = 1000


def score_captions(
    captions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    meteor: bool = True,
) -> dict[str, dict[str, Any]]:
    """Return every caption metric.

    Args:
        captions: One per video; an empty one (no caption could be made) scores nothing.
        references: At least one per video.
        meteor: Also METEOR, which starts Java.

    Returns:
        By metric: `score` (CIDEr runs to 10, the others to 1), `stderr` over videos (bootstrap
        with 1,000 resamples for BLEU, which is a figure of the whole set), `n`, `tokenizer`; a
        metric that could not be computed has a `reason` instead.

    Raises:
        DataError: There are no captions, or other videos than in the references, or a video
            without a reference.
    """
    if not captions or set(captions) != set(references):
        raise DataError("one caption for each video with references is needed", where="captions")
    if empty := [name for name, texts in references.items() if not texts]:
        raise DataError("no reference", where=empty[0])
    names = list(captions)
    # Through one text and back: a few tokens (1 1/2) hold a space, and the scripts split there.
    found = [" ".join(tokenize_caption(captions[name])) for name in names]
    wanted = [[" ".join(tokenize_caption(text)) for text in references[name]] for name in names]
    scores: dict[str, dict[str, Any]] = {}
    statistics = bleu_statistics(found, wanted)
    errors = _bootstrap_bleu(statistics)
    for n, value in enumerate(bleu(statistics)):
        scores[f"BLEU-{n + 1}"] = {"score": value, "stderr": errors[n]}
    scores["ROUGE-L"] = _mean(
        [rouge_l(text, refs) for text, refs in zip(found, wanted, strict=True)]
    )
    scores["CIDEr"] = _mean(cider(found, wanted))
    if meteor:
        scores["METEOR"] = score_meteor(found, wanted)
    for row in scores.values():
        row |= {"n": len(names), "tokenizer": TOKENIZER}
    return scores


def _mean(values: Sequence[float]) -> dict[str, Any]:
    array = np.asarray(values, dtype=np.float64)
    error = float(array.std(ddof=1) / math.sqrt(len(array))) if len(array) > 1 else None
    return {"score": float(array.mean()), "stderr": error}


def _ngrams(text: str) -> Counter[tuple[str, ...]]:
    words = text.split()
    return Counter(
        tuple(words[i : i + n]) for n in range(1, MAX_N + 1) for i in range(len(words) - n + 1)
    )


def bleu_statistics(captions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """Return what BLEU is made of, [videos, 2 + 2 * 4]: lengths, then guessed and right n-grams.

    Args:
        captions: Tokens joined by spaces.
        references: Likewise, for each caption.
    """
    rows = []
    for text, refs in zip(captions, references, strict=True):
        length = len(text.split())
        # Papineni et al. (2002), with the reference length closest to the caption's.
        closest = min((abs(len(ref.split()) - length), len(ref.split())) for ref in refs)[1]
        most: Counter[tuple[str, ...]] = Counter()
        for ref in refs:
            most |= _ngrams(ref)
        right = [0] * MAX_N
        for gram, count in _ngrams(text).items():
            right[len(gram) - 1] += min(count, most[gram])
        guessed = [max(0, length - n) for n in range(MAX_N)]
        rows.append([length, closest, *guessed, *right])
    return np.asarray(rows, dtype=np.float64)


def bleu(statistics: np.ndarray) -> list[float]:
    """Return BLEU-1 .. BLEU-4 of a whole set from its `bleu_statistics`."""
    total = statistics.sum(0)
    length, closest = total[0], total[1]
    guessed, right = total[2 : 2 + MAX_N], total[2 + MAX_N :]
    ratio = (length + _TINY) / (closest + _SMALL)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, scores = 1.0, []
    for n in range(MAX_N):
        product *= (right[n] + _TINY) / (guessed[n] + _SMALL)
        scores.append(float(product ** (1 / (n + 1)) * penalty))
    return scores


def _bootstrap_bleu(statistics: np.ndarray, seed: int = 0) -> list[float | None]:
    """Return the deviation of BLEU-1 .. BLEU-4 over resamples of the videos."""
    count = len(statistics)
    if count < 2:
        return [None] * MAX_N
    draws = np.random.default_rng(seed).integers(0, count, (RESAMPLES, count))
    # [resamples, videos] counts times [videos, statistics]; bleu() sums one row.
    weights = np.stack([np.bincount(draw, minlength=count) for draw in draws])
    resampled = np.asarray([bleu(row[None]) for row in weights @ statistics])
    return [float(value) for value in resampled.std(0, ddof=1)]


def rouge_l(caption: str, references: Sequence[str]) -> float:
    """Return ROUGE-L (Lin, 2004) of one caption: an F-measure of longest common subsequences.

    Args:
        caption: Tokens joined by spaces.
        references: Likewise.
    """
    words = caption.split(" ")
    common = [(_common_length(ref.split(" "), words), len(ref.split(" "))) for ref in references]
    precision = max(length / len(words) for length, _ in common)
    recall = max(length / size for length, size in common)
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _common_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for word in first:
        before = 0
        for j, other in enumerate(second, start=1):
            above = row[j]
            row[j] = before + 1 if word == other else max(row[j], row[j - 1])
            before = above
    return row[-1]


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Return CIDEr-D (Vedantam et al., 2015) of each caption, 0 to 10.

    Document frequencies are those of the references given: a figure depends on the whole set,
    and is 0 for a set of one video.

    Args:
        captions: Tokens joined by spaces.
        references: Likewise, for each caption.
    """
    grams = [[_ngrams(ref) for ref in refs] for refs in references]
    frequency: Counter[tuple[str, ...]] = Counter()
    for refs in grams:
        frequency.update({gram for ref in refs for gram in ref})
    documents = math.log(len(references))

    def weigh(counts: Counter[tuple[str, ...]]) -> tuple[list[dict[tuple[str, ...], float]], int]:
        vectors: list[dict[tuple[str, ...], float]] = [{} for _ in range(MAX_N)]
        for gram, count in counts.items():
            idf = documents - math.log(max(1, frequency[gram]))
            vectors[len(gram) - 1][gram] = count * idf
        # The scripts take the number of bigrams as the length.
        return vectors, sum(count for gram, count in counts.items() if len(gram) == 2)

    scores = []
    for text, refs in zip(captions, grams, strict=True):
        hypothesis, length = weigh(_ngrams(text))
        total = 0.0
        for ref in refs:
            vectors, ref_length = weigh(ref)
            total += _similarity(hypothesis, vectors, length - ref_length)
        scores.append(10.0 * total / len(refs))
    return scores


def _similarity(
    first: Sequence[Mapping[tuple[str, ...], float]],
    second: Sequence[Mapping[tuple[str, ...], float]],
    difference: int,
) -> float:
    """Return the mean over n of clipped cosines, times the Gaussian length penalty."""
    total = 0.0
    for hypothesis, reference in zip(first, second, strict=True):
        value = sum(
            min(weight, reference[gram]) * reference[gram]
            for gram, weight in hypothesis.items()
            if gram in reference
        )
        norms = math.sqrt(
            sum(w * w for w in hypothesis.values()) * sum(w * w for w in reference.values())
        )
        total += value / norms if norms else value
    return total / MAX_N * math.exp(-(difference**2) / (2 * SIGMA**2))
