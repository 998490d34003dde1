"""Sampling rules against what the paper and the benchmarks do, by formulas written apart."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topa.errors import ConfigError
from topa.features.sampling import RULES, sample_times

RATE = Fraction(25)


def frames(rule: str, count: int, total: int, start: int = 0) -> list[int]:
    """Return numbers of the frames that are on screen at the times of a rule."""
    first = Fraction(start) / RATE
    times = sample_times(rule, count, first, first + total / RATE, RATE)
    return [int(time * RATE) - start for time in times]


@pytest.mark.parametrize("total", [8, 10, 250, 251, 7919])
@pytest.mark.parametrize("count", [1, 8, 16])
def test_benchmark_rules_are_those_of_the_benchmarks(total, count):
    linspace = np.linspace(0, total - 1, count).astype(int).tolist()
    assert frames("linspace", count, total) == linspace
    step = total / (count + 1)
    assert frames("vlmevalkit", count, total) == [int(i * step) for i in range(1, count + 1)]
    segment = float(total - 1) / count
    mvbench = [int(segment / 2 + np.round(segment * i)) for i in range(count)]
    assert frames("mvbench", count, total) == mvbench


def test_the_papers_rule_counts_seconds():
    end = Fraction(33)
    assert sample_times("paper", 10, Fraction(0), end, RATE) == [0, 3, 6, 9, 13, 16, 19, 23, 26, 29]
    assert sample_times("paper", 10, Fraction(0), Fraction(7, 2), RATE) == [0, 1, 2, 3]


def test_frames_per_second_begin_at_the_start():
    times = sample_times("middle", 10, Fraction(1), Fraction(3), RATE, Fraction(2))
    assert times == [1, Fraction(3, 2), 2, Fraction(5, 2)]


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(RULES),
    st.integers(1, 40),
    st.fractions(0, 100, max_denominator=50),
    st.fractions(Fraction(1, 10), 1000, max_denominator=50),
)
def test_times_ascend_within_the_interval(rule, count, start, length):
    times = sample_times(rule, count, start, start + length, RATE)
    assert times == sorted(times)
    assert 1 <= len(times) <= count
    # A video shorter than a frame still has one, whose middle lies beyond its end.
    assert start <= times[0]
    assert times[-1] < start + max(length, 1 / RATE) + 1 / RATE


def test_an_unknown_rule_is_refused():
    with pytest.raises(ConfigError, match="unknown rule"):
        sample_times("random", 10, Fraction(0), Fraction(1), RATE)
