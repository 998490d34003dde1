"""The authors' features of Tideos (`<idx>.pkl`, a row per text) and their memory (`memory.pkl`)."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from topa.errors import DataError
from topa.features.memory import Memory
from topa.features.pickles import load_tensors
from topa.features.store import TideoFeatures, mean_rows
from topa.runs import atomic_path, path_below
from topa.tideo.official import OfficialRecords
from topa.tideo.schema import Tideo

NO_CAPTION = "(caption not recorded)"


def read_tideo_features(
    records: OfficialRecords, folder: str | Path
) -> tuple[dict[str, Tensor], list[tuple[str, str]]]:
    """Return frame features [frames, d] by id out of files with one row per text.

    A frame's feature is the normalised mean of its normalised texts (paper, section 3.3).

    Args:
        records: Of the `textvid.json` that the features belong to.
        folder: With `<idx>.pkl` files; they are read as data, no code in them is run.

    Returns:
        Unit float32 rows by id, and id and reason of what cannot be used.
    """
    found: dict[str, Tensor] = {}
    failures: list[tuple[str, str]] = []
    for tideo in records.tideos:
        counts = records.texts[tideo.id]
        path = Path(folder) / f"{tideo.id}.pkl"
        try:
            rows = load_tensors(path)
        except DataError as error:
            failures.append((tideo.id, error.what))
            continue
        if not isinstance(rows, Tensor) or rows.ndim != 2 or len(rows) != sum(counts):
            shape = list(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
            failures.append((tideo.id, f"{sum(counts)} rows of texts are needed, got {shape}"))
            continue
        rows = rows.float()
        if not rows.isfinite().all() or not rows.norm(dim=-1).all():
            failures.append((tideo.id, "a row is zero or not finite"))
            continue
        offsets = torch.tensor([0, *counts]).cumsum(0)
        found[tideo.id] = mean_rows(functional.normalize(rows, dim=-1), offsets)
    return found, failures


def read_memory(
    path: str | Path, fingerprint: str, captions: Sequence[str] | None = None
) -> Memory:
    """Return the memory of a `memory.pkl`, [n, d]; its rows are normalised.

    Args:
        path: The file, read as data.
        fingerprint: Names the encoder that made it.
        captions: One per row, where they are known.

    Raises:
        DataError: It is no such file, or a row is zero or not finite (named).
    """
    rows = load_tensors(path)
    if not isinstance(rows, Tensor) or rows.ndim != 2:
        raise DataError("one tensor [n, d] is needed", where=path)
    rows = rows.float()
    norms = rows.norm(dim=-1)
    wrong = ((norms > 0) & norms.isfinite()).logical_not()
    if wrong.any():
        raise DataError(f"row {int(wrong.nonzero()[0])} is zero or not finite", where=path)
    texts = [NO_CAPTION] * len(rows) if captions is None else list(captions)
    return Memory(rows / norms[:, None], texts, fingerprint)


def write_tideo_features(
    folder: str | Path, tideos: Sequence[Tideo], features: TideoFeatures
) -> None:
    """Write `<idx>.pkl` for each Tideo, a float tensor with one row per text of all frames.

    Raises:
        DataError: The file of an id would lie outside the folder.
    """
    paths = [path_below(folder, f"{tideo.id}.pkl") for tideo in tideos]
    for i, path in enumerate(paths):
        first = int(features.text_offsets[features.frame_offsets[i]])
        last = int(features.text_offsets[features.frame_offsets[i + 1]])
        _write_pickle(path, features.texts[first:last])


def write_memory(path: str | Path, memory: Memory) -> None:
    """Write a `memory.pkl`, a float tensor [n, d]."""
    _write_pickle(Path(path), memory.features)


def _write_pickle(path: Path, rows: Tensor) -> None:
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        pickle.dump(rows.cpu().clone(), file)
