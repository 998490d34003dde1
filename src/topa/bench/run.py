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
from topa.bench.timing import Contest, run_contest
from topa.errors import ConfigError
from topa.runs import environment, read_json, write_json, write_text

NAMES = ("align", "choice", "caption", "memory", "features", "video")
Say = Callable[[str], None]


def run_bench(
    names: Sequence[str] = NAMES,
    *,
    repeats: int = 5,
    llm: str = "embedded",
    say: Say = print,
    save: Path | None = None,
) -> dict[str, Any]:
    """Run contests and return their results with hardware, load and commit.

    Args:
        names: Which of the six; all by default.
        repeats: Pairs of each.
        llm: `embedded`, or a folder or hub name, for those that need one.
        say: Called with a line before each.
        save: Written after every contest, JSON and a table (.md) beside it; results of other
            contests that are there are kept, so that a run can be stopped and done in parts.

    Raises:
        ConfigError: A name that is not one of the six.
        AssertionError: The two ways of a contest do not give the same.
    """
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        raise ConfigError(
            f"no benchmark is called {', '.join(unknown)}", mend=f"Use some of {', '.join(NAMES)}."
        )
    bench = Bench.load(llm) if {"align", "choice", "caption"} & set(names) else None
    rows: dict[str, dict[str, Any]] = {}
    if save is not None and save.is_file():
        rows = {row["name"]: row for row in read_json(save)["results"]}
    for name in names:
        say(f"{name}: both ways must agree, then {repeats} pairs.")
        load = round(os.getloadavg()[0], 1)
        with make_contest(name, bench) as contest:
            found = run_contest(contest, repeats).as_dict()
        rows[name] = {**found, "load": load, "commit": commit(), "date": today()}
        if save is not None:
            report = make_report([rows[name] for name in NAMES if name in rows])
            write_json(save, report)
            write_text(save.with_suffix(".md"), make_table(report))
    return make_report([rows[name] for name in names])


def make_report(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return results with the machine they come from."""
    return {"results": rows, "processor": processor(), "environment": environment()}


def today() -> str:
    """Return the date."""
    return datetime.now(UTC).strftime("%Y-%m-%d")


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
    machine, rows = report["environment"], report["results"]
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    loads = sorted(row["load"] for row in rows)
    lines += [
        "",
        f"Medians of {_each(rows, 'repeats')} pairs taken in turns; {report['processor']}{gpu},"
        f" {machine['torch_threads']} threads of {machine['cpu_count']} cores, load of other work"
        f" {loads[0]:g} to {loads[-1]:g}, torch {machine['packages']['torch']}, commit"
        f" {_each(rows, 'commit')}, {_each(rows, 'date')}.",
        "",
        *(f"- {row['name']}: {row['setting']}.{_list_details(row['details'])}" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def _list_details(details: dict[str, Any]) -> str:
    """Return further figures as a sentence; none where there are none."""
    known = [f"{name.replace('_', ' ')} {value}" for name, value in details.items()]
    return f" Measured beside: {', '.join(known)}." if known else ""


def _each(rows: Sequence[dict[str, Any]], name: str) -> str:
    """Return the values of a field, each once."""
    return ", ".join(sorted({str(row[name]) for row in rows}))
