"""Accuracy with its chance level and a standard error that knows of videos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def accuracy_report(
    right: Sequence[bool],
    groups: Sequence[str],
    num_options: Sequence[int],
    kinds: Sequence[str | None] | None = None,
) -> dict[str, Any]:
    """Return accuracy, n, right, chance, stderr, and the same for each kind of question.

    Args:
        right: Whether each of n questions was answered rightly.
        groups: Video of each question.
        num_options: Number of options of each question; chance is the mean of 1 / options.
        kinds: Kind of each question, where known; "causal/CW" counts for "causal" too.

    Returns:
        `accuracy`, `chance` and `stderr` as fractions; `stderr` is None where a single video
        leaves it unknown. `kinds` holds one such report per known kind, sorted by name.

    Raises:
        ValueError: No questions, or sequences of different lengths.
    """
    kinds = [None] * len(right) if kinds is None else kinds
    if not len(right) == len(groups) == len(num_options) == len(kinds):
        raise ValueError("one group, number of options and kind is needed for each question")
    if not right:
        raise ValueError("the accuracy of no questions is not defined")
    report = _summary(right, groups, num_options)
    report["kinds"] = {}
    for kind in _all_kinds(kinds):
        inside = f"{kind}/"
        rows = [i for i, k in enumerate(kinds) if k == kind or (k or "").startswith(inside)]
        report["kinds"][kind] = _summary(
            [right[i] for i in rows], [groups[i] for i in rows], [num_options[i] for i in rows]
        )
    return report


def _all_kinds(kinds: Sequence[str | None]) -> list[str]:
    """Return every kind, and every kind of kinds, sorted by name."""
    names = {kind for kind in kinds if kind is not None}
    return sorted(names | {name.split("/")[0] for name in names})


def _summary(
    right: Sequence[bool], groups: Sequence[str], num_options: Sequence[int]
) -> dict[str, Any]:
    return {
        "accuracy": float(np.mean(np.asarray(right, dtype=np.float64))),
        "n": len(right),
        "right": int(sum(right)),
        "chance": float(np.mean(1 / np.asarray(num_options, dtype=np.float64))),
        "stderr": clustered_error(np.asarray(right, dtype=np.float64), groups),
    }


def clustered_error(values: np.ndarray, groups: Sequence[str]) -> float | None:
    """Return the cluster-robust standard error of the mean of values [n], or None.

    Questions on one video are not independent, so residuals are summed within each of G
    videos before squaring: sqrt(G / (G - 1) * sum_g (sum_i in g (x_i - mean))^2) / n, which
    is the estimator of Cameron and Miller (2015, "A Practitioner's Guide to Cluster-Robust
    Inference") for a regression on a constant; lmms-eval clusters its errors in the same
    spirit. With one question per video it is the usual standard error.

    Args:
        values: [n] scores.
        groups: Cluster of each.
    """
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    count = len(names)
    if count < 2:
        return None
    sums = np.bincount(index, weights=values - values.mean(), minlength=count)
    return float(np.sqrt(count / (count - 1) * np.square(sums).sum()) / len(values))
