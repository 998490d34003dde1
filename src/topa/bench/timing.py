"""Two ways of doing the same thing, timed in turns: pairs, medians, and what is said of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

Way = Callable[[], Any]


@dataclass(frozen=True)
class Contest:
    """Two ways of doing the same amount of work.

    Attributes:
        name: One of the six names.
        unit: What is counted per second, e.g. "questions/s".
        amount: How many of them one call does.
        ours: topa's way.
        reference: The paper's way.
        check: Raises AssertionError where their results differ.
        setting: What was compared, in one line.
        target: The speed-up aimed at.
        details: Further figures, of a call after the timing.
    """

    name: str
    unit: str
    amount: float
    ours: Way
    reference: Way
    check: Callable[[Any, Any], None]
    setting: str
    target: float
    details: Callable[[], dict[str, Any]] = dict


@dataclass(frozen=True)
class Result:
    """What a contest gave.

    Attributes:
        name: Of the contest.
        speedup: Median over the pairs of reference seconds / our seconds.
        cpu_speedup: The same of processor seconds, which other work on the machine touches less.
        lowest: Smallest ratio of a pair.
        highest: Largest ratio of a pair.
        ours: Median of our amount per second.
        reference: Median of the reference's.
        unit: Of both.
        repeats: Pairs.
        target: The speed-up aimed at.
        setting: What was compared.
        details: Further figures.
    """

    name: str
    speedup: float
    cpu_speedup: float
    lowest: float
    highest: float
    ours: float
    reference: float
    unit: str
    repeats: int
    target: float
    setting: str
    details: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return asdict(self)


def run_contest(contest: Contest, repeats: int) -> Result:
    """Check that both ways give the same, then time them in turns.

    The two take turns, and who begins changes from pair to pair, so that other work on the
    machine strikes both alike; the check before has warmed both up.

    Raises:
        AssertionError: The results differ.
    """
    contest.check(contest.ours(), contest.reference())
    wall: dict[str, list[float]] = {"ours": [], "reference": []}
    cpu: dict[str, list[float]] = {"ours": [], "reference": []}
    for turn in range(repeats):
        names = ("ours", "reference") if turn % 2 else ("reference", "ours")
        for name in names:
            way: Way = getattr(contest, name)
            start, used = time.perf_counter(), time.process_time()
            way()
            cpu[name].append(time.process_time() - used)
            wall[name].append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(wall["reference"], wall["ours"], strict=True)]
    of_cpu = [a / max(b, 1e-9) for a, b in zip(cpu["reference"], cpu["ours"], strict=True)]
    return Result(
        contest.name,
        _round(statistics.median(ratios)),
        _round(statistics.median(of_cpu)),
        _round(min(ratios)),
        _round(max(ratios)),
        _round(contest.amount / statistics.median(wall["ours"])),
        _round(contest.amount / statistics.median(wall["reference"])),
        contest.unit,
        repeats,
        contest.target,
        contest.setting,
        contest.details(),
    )


def _round(value: float) -> float:
    return float(f"{value:.3g}")
