"""Checking a feature store against what its indexes say, and against the sources."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from topa.errors import DataError
from topa.features.index import Entry, read_index
from topa.features.shards import HEADER
from topa.features.sources import hash_of
from topa.runs import read_json, sha256_of

__all__ = ["StoreCheck", "verify_store"]

_UNIT_TOLERANCE = {torch.float32: 1e-3, torch.float16: 5e-3, torch.bfloat16: 2e-2}


@dataclass
class StoreCheck:
    """What was found in a store.

    Attributes:
        entries: Number of videos and Tideos.
        rows: Number of frame features.
        shards: Number of finished shards.
        problems: One sentence for each thing that is wrong; empty for a whole store.
        leftovers: Files of a writer that is at work or was killed; no harm.
    """

    entries: int = 0
    rows: int = 0
    shards: int = 0
    problems: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)


def verify_store(
    folder: str | Path,
    *,
    sources: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> StoreCheck:
    """Read all of a store and compare it with its indexes.

    Every shard must have the sha256 that its index gives, unit rows of the store's size, and
    exactly the rows that its entries name; no id may occur twice.

    Args:
        folder: The store.
        sources: Also read every source file again and compare its sha256.
        progress: Called with the number of shards done and that of all.

    Raises:
        DataError: There is no feature store.
    """
    folder = Path(folder)
    header = read_json(folder / HEADER)
    found, seen = StoreCheck(), dict[str, str]()
    indexes = sorted(folder.glob("shard-*.parquet"))
    for done, index in enumerate(indexes, start=1):
        try:
            entries, expected = read_index(index)
        except DataError as error:
            found.problems.append(str(error))
            continue
        found.problems += _check_shard(index.with_suffix(".safetensors"), expected, entries, header)
        for entry in entries:
            if entry.id in seen:
                found.problems.append(f"{entry.id!r} is in {seen[entry.id]} and in {index.stem}")
            seen[entry.id] = index.stem
            if sources:
                found.problems += _check_source(entry)
        found.shards += 1
        found.entries += len(entries)
        found.rows += sum(entry.rows for entry in entries)
        if progress is not None:
            progress(done, len(indexes))
    finished = {path.with_suffix(".safetensors").name for path in indexes}
    parts = (*folder.glob("shard-*.safetensors"), *folder.glob(".shard-*"))
    found.leftovers = sorted(path.name for path in parts if path.name not in finished)
    return found


def _check_shard(path: Path, expected: str, entries: list[Entry], header: dict) -> list[str]:
    """Return what is wrong with one shard."""
    if not path.is_file():
        return [f"{path.name}: the file is missing"]
    if sha256_of(path) != expected:
        return [f"{path.name}: the file has changed since it was written"]
    try:
        with safe_open(path, framework="pt") as file:
            features = file.get_tensor("features")
    except SafetensorError as error:
        return [f"{path.name}: not a whole safetensors file ({error})"]
    problems, row = [], 0
    for entry in entries:
        if entry.start != row or entry.rows < 1:
            problems.append(f"{path.name}: {entry.id!r} does not begin where the one before ends")
        row = entry.start + entry.rows
    if features.shape != (row, header["dim"]):
        problems.append(f"{path.name}: {list(features.shape)}, named are [{row}, {header['dim']}]")
    tolerance = _UNIT_TOLERANCE.get(features.dtype, 0.0)
    wrong = ((features.float().norm(dim=-1) - 1).abs() <= tolerance).logical_not()
    if wrong.any():
        problems.append(f"{path.name}: {int(wrong.sum())} rows are not unit vectors")
    return problems


def _check_source(entry: Entry) -> list[str]:
    """Return what is wrong with the file an entry was made from."""
    path = Path(entry.source)
    if not path.exists():
        return [f"{entry.id!r}: its source {entry.source} is missing"]
    if hash_of(path) != entry.sha256:
        return [f"{entry.id!r}: its source {entry.source} has changed"]
    return []
