"""Contests: agreement first, then pairs in turns; and the table that is made of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from topa.bench import timing
from topa.bench.run import NAMES, make_table, run_bench
from topa.bench.timing import Contest, run_contest
from topa.errors import ConfigError
from topa.runs import read_json

ROOT = Path(__file__).parents[2]


class Clock:
    """Moves on by what each way says it takes."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(timing.time, "process_time", lambda: self.now / 2)

    def way(self, name, seconds, log, result=1):
        turns = iter(seconds)

        def run():
            log.append(name)
            self.now += next(turns)
            return result

        return run


def agree(a, b):
    assert a == b


def test_ratios_of_pairs_taken_in_turns(monkeypatch):
    clock, log = Clock(monkeypatch), []
    contest = Contest(
        "choice",
        "questions/s",
        10,
        clock.way("ours", [9, 1, 2, 1], log),
        clock.way("reference", [9, 8, 8, 4], log),
        agree,
        "",
        8.0,
    )
    found = run_contest(contest, 3)
    # Ratios 8, 4, 4; medians of seconds 1 and 8.
    assert (found.speedup, found.lowest, found.highest) == (4.0, 4.0, 8.0)
    assert (found.ours, found.reference, found.cpu_speedup) == (10.0, 1.25, 4.0)
    assert log == ["ours", "reference", *["reference", "ours", "ours", "reference"], *log[6:]]
    assert log[6:] == ["reference", "ours"]


def test_what_does_not_agree_is_not_timed(monkeypatch):
    clock, log = Clock(monkeypatch), []
    ways = clock.way("ours", [1], log), clock.way("reference", [1], log, result=2)
    with pytest.raises(AssertionError):
        run_contest(Contest("choice", "", 1, *ways, agree, "", 1.0), 3)
    assert log == ["ours", "reference"]


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match=r"no benchmark is called speed\. Use some of align"):
        run_bench(["speed"])


def test_the_table_of_the_readme_is_that_of_the_last_measurement():
    report = read_json(ROOT / "benchmarks" / "results.json")
    assert [row["name"] for row in report["results"]] == list(NAMES)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    start, end = "<!-- topa bench -->\n", "<!-- /topa bench -->"
    assert start in readme
    assert readme.partition(start)[2].partition(end)[0] == make_table(report)
