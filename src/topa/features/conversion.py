"""Feature files of other programs, into a store and out of it."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from topa.errors import ConfigError, DataError
from topa.features.index import Entry
from topa.features.pickles import load_tensors
from topa.features.shards import FeatureStore
from topa.features.sources import Failure
from topa.features.store import write_features
from topa.features.writer import StoreWriter
from topa.runs import atomic_path, path_below, sha256_of

__all__ = ["FORMATS", "export_store", "import_features"]

Format = Literal["safetensors", "pth", "npy", "pkl"]
FORMATS: tuple[Format, ...] = get_args(Format)
_SUFFIXES = {".npy", ".pkl", ".pt", ".pth", ".safetensors"}
Progress = Callable[[int, int], None]


def import_features(
    path: str | Path,
    folder: str | Path,
    fingerprint: str,
    *,
    rate: float = 1.0,
    progress: Progress | None = None,
) -> tuple[int, list[Failure]]:
    """Put feature files that another program wrote into a store; no code in them is run.

    Args:
        path: One file of {name: features [n, d]} (.pth, .pkl, .safetensors), or a folder of
            files of one tensor each, named after its video (.npy, .pkl, .pth).
        folder: The store; made if it is not there.
        fingerprint: A name for the encoder that made them. Features of two encoders may be
            compared only where their names are equal.
        rate: Features per second of video.
        progress: Called with the number done and that of all.

    Returns:
        How many were added, and what could not be.

    Raises:
        DataError: There is nothing to import, or a single file cannot be read.
        ConfigError: The rate is not positive.
    """
    if not rate > 0:
        raise ConfigError(f"the rate must be positive, got {rate}", where="rate")
    path = Path(path)
    added, failures = 0, list[Failure]()
    writer: StoreWriter | None = None
    hash_of = cache(sha256_of)  # one file may hold the features of thousands
    items, total = _find_items(path)
    try:
        for done, (name, source, read) in enumerate(items, start=1):
            try:
                rows = _unit_rows(read(), source)
                if writer is None:
                    settings = {"imported": True, "rate": rate}
                    writer = StoreWriter(folder, fingerprint, rows.shape[1], settings)
                if name not in writer:
                    times = [row / rate for row in range(len(rows))]
                    writer.add(Entry(name, str(source), hash_of(source), times=times), rows)
                    added += 1
            except DataError as error:
                failures.append(Failure(name, str(source), str(error)))
            if progress is not None:
                progress(done, total)
    finally:
        if writer is not None:
            writer.__exit__()
    return added, failures


def _find_items(path: Path) -> tuple[Iterator[tuple[str, Path, Callable[[], Tensor]]], int]:
    """Return (name, file, what reads its tensor) of each tensor, and how many there are."""
    if not path.exists():
        raise DataError("file not found", where=path, mend="Check the path.")
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES)
        if not files:
            raise DataError("no feature files in this folder", where=path)
        return ((file.stem, file, lambda file=file: _one(file)) for file in files), len(files)
    found = load_tensors(path)
    if isinstance(found, Tensor):
        found = {path.stem: found}
    return ((name, path, lambda tensor=tensor: tensor) for name, tensor in found.items()), len(
        found
    )


def _one(file: Path) -> Tensor:
    found = load_tensors(file)
    if not isinstance(found, Tensor):
        raise DataError("several tensors where one is needed", where=file)
    return found


def _unit_rows(rows: Tensor, source: Path) -> Tensor:
    """Return features as unit float32 rows [n, d].

    Raises:
        DataError: They are not rows, or a row has no direction.
    """
    if rows.ndim == 1:
        rows = rows[None]
    if rows.ndim != 2 or not len(rows):
        raise DataError(f"features [n, d] are needed, got {list(rows.shape)}", where=source)
    rows = rows.float()
    if not rows.isfinite().all() or not rows.ne(0).any(-1).all():
        raise DataError("a feature is zero or not finite", where=source)
    return functional.normalize(rows, dim=-1)


def export_store(
    store: FeatureStore, path: str | Path, kind: str, progress: Progress | None = None
) -> None:
    """Write a store as one file, or as a folder of one file per id.

    Args:
        store: What to write.
        path: The file (safetensors, pth) or the folder (npy, pkl).
        kind: `safetensors` or `pth`: one file of {id: [n, d]}; `npy` or `pkl`: a folder of
            arrays or tensors, one per id. A slash in an id becomes a folder.
        progress: Called with the number done and that of all.

    Raises:
        ConfigError: There is no such kind.
        DataError: The file of an id would lie outside the folder.
    """
    if kind not in FORMATS:
        raise ConfigError(f"unknown kind {kind!r}", mend=f"Use one of {', '.join(FORMATS)}.")
    path = Path(path)
    if kind == "safetensors":
        write_features(path, store, store.fingerprint)
        return
    if kind == "pth":
        with atomic_path(path) as temporary:
            torch.save({key: rows.clone() for key, rows in store.items()}, temporary)
        return
    # All of them before the first is written.
    files = {key: path_below(path, f"{key}.{kind}") for key in store}
    for done, (key, rows) in enumerate(store.items(), start=1):
        with atomic_path(files[key]) as temporary:
            if kind == "npy":
                np.save(temporary, rows.float().numpy())
            else:
                temporary.write_bytes(pickle.dumps(rows.clone()))
        if progress is not None:
            progress(done, len(store))
