"""What a run leaves behind: its Tideos, its failures and its account, out of the journals."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from topa.runs import atomic_path, write_json
from topa.tideo.journal import list_journals, read_rows
from topa.tideo.schema import Tideo

TIDEOS = "tideos.jsonl"
FAILURES = "failures.jsonl"
REPORT = "report.json"


def read_results(run: str | Path) -> Iterator[Tideo]:
    """Yield the finished Tideos of a run, each once, in the order of its journals.

    Raises:
        DataError: It is no folder of a run.
    """
    seen: set[str] = set()
    for row in _rows(run):
        if row["t"] == "done" and row["key"] not in seen:
            seen.add(row["key"])
            yield Tideo.model_validate(row["result"])


def read_failures(run: str | Path) -> list[dict[str, Any]]:
    """Return seed, reason and raw replies of what failed and was not finished later.

    Raises:
        DataError: It is no folder of a run.
    """
    raw: dict[str, list[str]] = {}
    failures: dict[str, dict[str, Any]] = {}
    for row in _rows(run):
        key = row["key"]
        if row["t"] == "answer":
            raw.setdefault(key, []).append(row["text"])
        elif row["t"] == "done":
            raw.pop(key, None)
            failures.pop(key, None)
        elif row["t"] == "failed":
            texts = [*raw.pop(key, []), *([row["text"]] if row["text"] else [])]
            failures[key] = {"key": key, **row["item"], "reason": row["why"], "replies": texts}
    return list(failures.values())


def write_results(run: str | Path, report: dict[str, Any]) -> int:
    """Write tideos.jsonl, failures.jsonl and report.json of a run, each whole or not at all.

    Returns:
        The number of Tideos.
    """
    run = Path(run)
    written = write_lines(
        run / TIDEOS, (tideo.model_dump_json(exclude_none=True) for tideo in read_results(run))
    )
    failures = (json.dumps(row, ensure_ascii=False) for row in read_failures(run))
    write_lines(run / FAILURES, failures)
    write_json(run / REPORT, report)
    return written


def write_lines(path: str | Path, lines: Iterable[str]) -> int:
    """Write lines to a file one by one, whole or not at all, and return their number."""
    count = 0
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for line in lines:
            file.write(line + "\n")
            count += 1
    return count


def _rows(run: str | Path) -> Iterator[dict[str, Any]]:
    for path in list_journals(run):
        yield from read_rows(path)
