"""Accuracy and its clustered standard error, against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from topa.eval.metrics import accuracy_report, clustered_error


def test_with_one_question_per_video_it_is_the_usual_standard_error():
    values = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0])
    found = clustered_error(values, [f"v{i}" for i in range(7)])
    assert found == pytest.approx(values.std(ddof=1) / math.sqrt(7))


def test_questions_that_repeat_each_other_add_nothing():
    """Five copies of each answer: as uncertain as one answer per video."""
    once = np.array([1.0, 0.0, 0.0, 1.0])
    alone = clustered_error(once, ["a", "b", "c", "d"])
    assert clustered_error(np.repeat(once, 5), list("aaaaabbbbbcccccddddd")) == pytest.approx(alone)


def test_videos_of_different_sizes():
    # Mean 1/2; residuals summed by video: 1/2, -1/2, 0; 3/2 * (1/4 + 1/4) = 3/4.
    values = np.array([1.0, 1.0, 0.0, 0.0, 1.0, 0.0])
    assert clustered_error(values, list("aaabcc")) == pytest.approx(math.sqrt(0.75) / 6)


@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from("abcde")), min_size=2, max_size=40).filter(
        lambda rows: len({group for _, group in rows}) > 1
    )
)
def test_it_is_the_sandwich_of_a_regression_on_a_constant(rows):
    """Cameron and Miller's matrices, written out: (X'X)^-1 (sum of X'uu'X) (X'X)^-1."""
    values = np.array([float(right) for right, _ in rows])
    design = np.ones((len(rows), 1))
    bread = np.linalg.inv(design.T @ design)
    residuals = values - design @ (bread @ design.T @ values)
    names = sorted({group for _, group in rows})
    filling = np.zeros((1, 1))
    for name in names:
        inside = [i for i, (_, group) in enumerate(rows) if group == name]
        part = design[inside].T @ residuals[inside]
        filling += np.outer(part, part)
    variance = len(names) / (len(names) - 1) * (bread @ filling @ bread)[0, 0]
    found = clustered_error(values, [group for _, group in rows])
    assert found == pytest.approx(math.sqrt(max(variance, 0.0)), abs=1e-9)


def test_one_video_leaves_the_error_unknown():
    assert clustered_error(np.array([1.0, 0.0, 1.0]), ["a", "a", "a"]) is None
    assert accuracy_report([True, False], ["a", "a"], [2, 2])["stderr"] is None


def test_chance_is_the_mean_of_one_over_the_options():
    report = accuracy_report([True, False, True, True], list("abcd"), [2, 4, 5, 5])
    assert report["chance"] == pytest.approx((0.5 + 0.25 + 0.2 + 0.2) / 4)
    assert (report["accuracy"], report["n"], report["right"]) == (0.75, 4, 3)


def test_each_known_kind_has_its_own_figures():
    report = accuracy_report(
        [True, False, True, True, False],
        ["a", "a", "b", "b", "c"],
        [5, 5, 5, 5, 2],
        ["temporal", "causal", "temporal", "causal", None],
    )
    assert list(report["kinds"]) == ["causal", "temporal"]
    assert report["kinds"]["temporal"] == {
        "accuracy": 1.0,
        "n": 2,
        "right": 2,
        "chance": pytest.approx(0.2),
        "stderr": pytest.approx(0.0),
    }
    assert report["kinds"]["causal"]["accuracy"] == 0.5
    assert report["n"] == 5


def test_lists_of_different_lengths_and_no_questions_are_refused():
    with pytest.raises(ValueError, match="for each question"):
        accuracy_report([True], ["a", "b"], [2])
    with pytest.raises(ValueError, match="not defined"):
        accuracy_report([], [], [])
