"""All contests by name, their report, and the table that the README shows."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from topa.bench.model import (
    Bench,
    contest_align,
    contest_caption,
    contest_choice,
    scratch_folder,
)
from topa.bench.storage import contest_features, contest_memory, contest_video
from topa.bench.timing import Contest, Result, run_contest
from topa.errors import ConfigError
from topa.runs import environment

NAMES = ("align", "choice", "caption", "memory", "features", "video")
Say = Callable[[str], None]


def run_bench(
    names: Sequence[str] = NAMES, *, repeats: int = 5, llm: str = "embedded", say: Say = print
) -> dict[str, Any]:
    """Run contests and return their results with hardware, load and commit.

    Args:
        names: Which of the six; all by default.
        repeats: Pairs of each.
        llm: `embedded`, or a folder or hub name, for those that need one.
        say: Called with a line before each.

    Raises:
        ConfigError: A name that is not one of the six.
        AssertionError: The two ways of a contest do not give the same.
    """
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        raise ConfigError(
            f"no benchmark is called {', '.join(unknown)}", mend=f"Use some of {', '.join(NAMES)}."
        )
    load = os.getloadavg()[0]
    bench = Bench.load(llm) if {"align", "choice", "caption"} & set(names) else None
    results: list[Result] = []
    for name in names:
        say(f"{name}: both ways must agree, then {repeats} pairs.")
        with make_contest(name, bench) as contest:
            results.append(run_contest(contest, repeats))
    return {
        "results": [result.as_dict() for result in results],
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": commit(),
        "processor": processor(),
        "load_before": round(load, 2),
        "environment": environment(),
    }


@contextlib.contextmanager
def make_contest(name: str, bench: Bench | None) -> Iterator[Contest]:
    """Yield a contest; files it needs go when it is over."""
    with scratch_folder() as folder:
        if name == "memory":
            yield contest_memory()
        elif name == "features":
            yield contest_features(Path(folder))
        elif name == "video":
            yield contest_video(Path(folder))
        else:
            assert bench is not None
            if name == "align":
                yield contest_align(bench, Path(folder))
            else:
                yield contest_choice(bench) if name == "choice" else contest_caption(bench)


def commit() -> str | None:
    """Return the commit of the source, with `+` where files differ from it; None without git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None  # an installed wheel, or no git: the version is in the environment
    return done.stdout.strip()


def processor() -> str:
    """Return the name of the processor."""
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def make_table(report: dict[str, Any]) -> str:
    """Return a report as Markdown: one row a contest, and what it was measured on."""
    lines = [
        "| what | paper's way | topa | faster | by processor time | lowest - highest | target |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["results"]:
        lines.append(
            f"| {row['name']} | {row['reference']:g} {row['unit']} | {row['ours']:g} {row['unit']}"
            f" | **{row['speedup']:g}x** | {row['cpu_speedup']:g}x"
            f" | {row['lowest']:g} - {row['highest']:g} | {row['target']:g}x |"
        )
    machine = report["environment"]
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    lines += [
        "",
        f"Medians of {report['results'][0]['repeats']} pairs taken in turns; {report['processor']}"
        f"{gpu}, {machine['torch_threads']} threads of {machine['cpu_count']} cores, load before"
        f" {report['load_before']:g}, torch {machine['packages']['torch']}, commit"
        f" {report['commit']}, {report['date']}.",
        "",
        *(f"- {row['name']}: {row['setting']}." for row in report["results"]),
    ]
    return "\n".join(lines) + "\n"
