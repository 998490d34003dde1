"""The Parquet index beside each shard of a feature store: what its rows are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import ArrowInvalid

from topa.errors import DataError
from topa.runs import atomic_path, sha256_of

__all__ = ["Entry", "read_index", "write_index"]

_SHARD_HASH = b"sha256"
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("sha256", pa.string()),
        ("size", pa.int64()),
        ("modified", pa.int64()),
        ("duration", pa.float64()),
        ("times", pa.list_(pa.float64())),
        ("captions", pa.list_(pa.string())),
        ("start", pa.int64()),
        ("rows", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Entry:
    """What the index says of one video or Tideo.

    Attributes:
        id: Its name in the store.
        source: File it comes from.
        sha256: Of that file.
        size: Of that file, in bytes.
        modified: When that file was last changed, in nanoseconds.
        duration: Of the video in seconds, if known.
        times: When each frame comes on screen, in seconds; empty for a Tideo.
        captions: Of each frame; empty for a video.
        start: First row in its shard.
        rows: Number of frames.
        shard: Name of its shard.
    """

    id: str
    source: str
    sha256: str
    size: int = 0
    modified: int = 0
    duration: float | None = None
    times: list[float] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    start: int = 0
    rows: int = 0
    shard: str = ""


def read_index(path: Path) -> tuple[list[Entry], str]:
    """Return the entries of an index file, and the sha256 of its shard.

    Raises:
        DataError: The file is missing or damaged.
    """
    try:
        table = pq.read_table(path, partitioning=None)
        shard = (table.schema.metadata or {})[_SHARD_HASH].decode()
        found = [Entry(**row, shard=path.stem) for row in table.to_pylist()]
    except (ArrowInvalid, OSError, KeyError, TypeError) as error:
        raise DataError(
            f"not a whole index ({error})", where=path, mend="Delete this shard, and encode again."
        ) from None
    return found, shard


def write_index(shard: Path, entries: Sequence[Entry]) -> None:
    """Write the index of a shard that holds the rows of these entries one after the other."""
    rows, start = [], 0
    for entry in entries:
        row = {**asdict(entry), "start": start}
        rows.append({name: row[name] for name in _SCHEMA.names})
        start += entry.rows
    metadata = {_SHARD_HASH: sha256_of(shard).encode()}
    table = pa.Table.from_pylist(rows, schema=_SCHEMA.with_metadata(metadata))
    with atomic_path(shard.with_suffix(".parquet")) as temporary:
        pq.write_table(table, temporary)
