"""The log of predictions: written as they come, gone on with after a stop, split over shards."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from topa.errors import ConfigError, DataError
from topa.runs import read_json, write_json, write_text

T = TypeVar("T")
Row = dict[str, Any]
Progress = Callable[[str, int, int], None]
"""Called with what is counted ("questions", "videos"), how many are done, and how many in all."""

RUN = "run.json"
PREDICTIONS = "predictions.jsonl"


@dataclass(frozen=True)
class Shard:
    """Which part of a run this process does: number `index` (from 0) of `count`."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read "K/N", K from 1.

        Raises:
            ConfigError: It is something else.
        """
        index, slash, count = text.partition("/")
        if not (slash and index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
            raise ConfigError(f"a shard is K/N with 1 <= K <= N, not {text!r}", where="shard")
        return cls(int(index) - 1, int(count))


WHOLE = Shard()


class PredictionLog:
    """Rows of a run in its folder, one JSONL file per shard.

    Args:
        folder: Of the run.
        settings: What the rows depend on; a folder of other settings is refused.
        shard: The part that this process does.

    Raises:
        ConfigError: The folder holds a run of other settings.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any], shard: Shard = WHOLE):
        self.folder, self.shard = Path(folder), shard
        run = {**settings, "shards": shard.count}
        path = self.folder / RUN
        if path.is_file():
            _refuse_other(read_json(path), json.loads(json.dumps(run)), path)
        else:
            write_json(path, run)

    def path(self, index: int | None = None) -> Path:
        """Return the file of a shard, by default of this process's."""
        if self.shard.count == 1:
            return self.folder / PREDICTIONS
        number = (self.shard.index if index is None else index) + 1
        return self.folder / f"predictions-{number}-of-{self.shard.count}.jsonl"

    def read(self, index: int | None = None) -> list[Row]:
        """Return the whole rows of a shard; a last one that was cut off while written is not."""
        path = self.path(index)
        if not path.is_file():
            return []
        lines = path.read_text(encoding="utf-8").split("\n")
        try:
            return [json.loads(line) for line in lines[:-1]]
        except json.JSONDecodeError as error:
            raise DataError(
                f"not valid JSON ({error.msg})", where=path, mend="Delete the file to start again."
            ) from None

    def keep(self, rows: Sequence[Row]) -> None:
        """Write these rows and no others."""
        write_text(self.path(), "".join(_line(row) for row in rows))

    def append(self, rows: Sequence[Row]) -> None:
        """Add rows, flushed to the file before this returns."""
        with open(self.path(), "a", encoding="utf-8") as file:
            file.write("".join(_line(row) for row in rows))

    def gather(self, ids: Sequence[str]) -> list[Row] | None:
        """Return one row per id, in order, out of all shards; None while some are missing.

        The rows of several shards are also written to one file.

        Raises:
            DataError: An id has two rows: shards of different runs lie in this folder.
        """
        rows: dict[str, Row] = {}
        for index in range(self.shard.count):
            for row in self.read(index):
                if row["id"] in rows:
                    raise DataError(f"{row['id']} was answered twice", where=self.folder)
                rows[row["id"]] = row
        if any(name not in rows for name in ids):
            return None
        ordered = [rows[name] for name in ids]
        if self.shard.count > 1:
            write_text(self.folder / PREDICTIONS, "".join(_line(row) for row in ordered))
        return ordered


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def _refuse_other(found: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    keys = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
    if keys:
        raise ConfigError(
            f"this folder holds a run of other settings ({', '.join(sorted(keys))})",
            where=path,
            mend="Choose another --out, or delete the folder.",
        )


def run_units(
    units: Sequence[Sequence[T]],
    name_of: Callable[[T], str],
    work: Callable[[Sequence[T]], list[Row]],
    *,
    log: PredictionLog | None = None,
    shard: Shard = WHOLE,
    stage: str = "questions",
    progress: Progress | None = None,
) -> tuple[list[Row], int]:
    """Do every unit of this shard that the log does not hold whole; write rows as they come.

    A unit is worked on as a whole or not at all, so that the batches, and with them the last
    bits of every score, are the same however often the run was stopped and however many shards
    it has.

    Args:
        units: Items in groups.
        name_of: Id of an item, as the "id" of its row.
        work: Gives the rows of a unit, one per item.
        log: Where rows are kept; nowhere if None.
        shard: The part to do: every `count`-th unit from `index`.
        stage: What is counted.
        progress: Called after each unit.

    Returns:
        The rows of this shard, and how many of them were made now.
    """
    mine = units[shard.index :: shard.count]
    known = {row["id"]: row for row in log.read()} if log is not None else {}
    whole = [all(name_of(item) in known for item in unit) for unit in mine]
    rows = [
        known[name_of(item)]
        for unit, done in zip(mine, whole, strict=True)
        if done
        for item in unit
    ]
    if log is not None:
        log.keep(rows)
    total, kept = sum(map(len, mine)), len(rows)
    for unit, done in zip(mine, whole, strict=True):
        if not done:
            found = work(unit)
            if log is not None:
                log.append(found)
            rows += found
        if progress is not None:
            progress(stage, len(rows), total)
    return rows, len(rows) - kept
