"""Features of Tideos as files that are mapped, not read: processes of a machine share them."""

from __future__ import annotations

import fcntl
import hashlib
import os
import warnings
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from topa.errors import DataError
from topa.features.encoder import Encoder
from topa.features.store import TideoFeatures, encode_tideos
from topa.runs import cache_dir, read_json, write_json
from topa.tideo.schema import Tideo

Progress = Callable[[int, int], None]

_CHUNK = 1024  # Tideos encoded at a time: a text that comes twice in them is encoded once


@dataclass(frozen=True)
class _Outline:
    """How many texts and frames there are, and the name of their files.

    Attributes:
        key: Digest of the encoder and of all texts in order.
        frame_offsets: [tideos + 1], as in `TideoFeatures`.
        text_offsets: [frames + 1], as in `TideoFeatures`.
    """

    key: str
    frame_offsets: Tensor
    text_offsets: Tensor


def map_tideos(
    tideos: Sequence[Tideo],
    encoder: Encoder,
    *,
    keep_texts: bool = True,
    progress: Progress | None = None,
) -> TideoFeatures:
    """Return the features of Tideos out of mapped files of the cache, made if they are not there.

    A step touches only the rows it needs, and the system may drop the others from memory. While
    they are made, those of a thousand Tideos are in memory; a stop loses no more than these.

    Args:
        tideos: Textual videos; gone through in order, twice.
        encoder: Of the texts.
        keep_texts: Keep the features of single texts beside those of frames: without them a
            set takes a fourth of the room, and texts of a frame cannot be left out.
        progress: Called with the number of Tideos done and that of all.

    Raises:
        DataError: There are no Tideos.
    """
    if not tideos:
        raise DataError("no Tideos to encode", where="map_tideos", mend="Pass at least one.")
    outline = _outline(tideos, encoder.fingerprint)
    kind = "texts" if keep_texts else "frames"
    folder = cache_dir("features", f"mapped-{outline.key}-{kind}")
    sizes = {"frames": len(outline.text_offsets) - 1}
    if keep_texts:
        sizes["texts"] = int(outline.text_offsets[-1])
    with open(folder / "lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run may be at the same; freed at any end
        _fill(folder, tideos, encoder, list(sizes), progress)
    found = {name: _map(folder / f"{name}.f32", rows, encoder.dim) for name, rows in sizes.items()}
    return TideoFeatures(
        texts=found.get("texts", torch.zeros(0, encoder.dim)),
        text_offsets=outline.text_offsets,
        frame_offsets=outline.frame_offsets,
        frames=found["frames"],
        fingerprint=encoder.fingerprint,
    )


def _outline(tideos: Sequence[Tideo], fingerprint: str) -> _Outline:
    """Count and digest the texts of all frames."""
    found = hashlib.sha256(fingerprint.encode())
    frames, texts = array("q", [0]), array("q", [0])
    for tideo in tideos:
        frames.append(len(tideo.frames))
        for frame in tideo.frames:
            texts.append(len(frame.texts))
            for text in frame.texts:
                found.update(text.encode() + b"\0")
            found.update(b"\1")
        found.update(b"\2")
    offsets = (torch.from_numpy(np.array(counts)).cumsum(0) for counts in (frames, texts))
    return _Outline(found.hexdigest()[:32], *offsets)


def _fill(
    folder: Path,
    tideos: Sequence[Tideo],
    encoder: Encoder,
    names: Sequence[str],
    progress: Progress | None,
) -> None:
    """Write the rows of every Tideo to the files of a folder, from where it stopped."""
    record = folder / "state.json"
    state = read_json(record) if record.is_file() else {"tideos": 0, **dict.fromkeys(names, 0)}
    while state["tideos"] < len(tideos):
        part = tideos[state["tideos"] : state["tideos"] + _CHUNK]
        made = encode_tideos(list(part), encoder, cache=False)
        for name in names:
            rows: Tensor = getattr(made, name)
            _put(folder / f"{name}.f32", rows, state[name])
            state[name] += len(rows)
        state["tideos"] += len(part)
        write_json(record, state)
        if progress is not None:
            progress(state["tideos"], len(tideos))


def _put(path: Path, rows: Tensor, first: int) -> None:
    """Write rows [n, d] behind the first ones of a file; what a stop left behind these goes.

    Raises:
        DataError: The first ones are not all there.
    """
    kept = first * rows.shape[1] * 4
    if first and (not path.is_file() or path.stat().st_size < kept):
        # Made longer, it would hold zeros for them.
        raise DataError(
            f"less than the {kept} bytes that were written",
            where=path,
            mend="Delete its folder; the features are then encoded again.",
        )
    with open(path, "r+b" if first else "w+b") as file:
        file.truncate(kept)
        file.seek(0, os.SEEK_END)
        file.write(rows.float().contiguous().numpy().tobytes())
        file.flush()
        os.fsync(file.fileno())


def _map(path: Path, rows: int, dim: int) -> Tensor:
    """Return a file of float32 as [rows, dim], which must not be written to.

    Raises:
        DataError: It has another size.
    """
    size = path.stat().st_size if path.is_file() else 0
    if size != rows * dim * 4:
        raise DataError(
            f"{size} bytes, {rows * dim * 4} are expected",
            where=path,
            mend="Delete its folder; the features are then encoded again.",
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(np.memmap(path, np.float32, "r", shape=(rows, dim)))
