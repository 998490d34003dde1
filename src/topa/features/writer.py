"""Adding to a feature store: one writer at a time, and nothing half-written."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save_file

from topa.errors import ConfigError, DataError
from topa.features.index import Entry, write_index
from topa.features.shards import FORMAT, HEADER, FeatureStore
from topa.runs import atomic_path, write_json

__all__ = ["DTYPES", "StoreWriter"]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SHARD_BYTES = 64 << 20
FLUSH_SECONDS = 30.0


class StoreWriter:
    """Adds to a store; only one writer at a time, and nothing that is there is touched.

    Use it as a context manager: leaving writes what is pending, also after an interrupt.

    Args:
        folder: A store, or a folder to make one in.
        fingerprint: Of the encoder.
        dim: Size of a feature.
        settings: How frames are chosen; those of the store must be the same.
        dtype: One of DTYPES, how features are stored in a new store.

    Raises:
        ConfigError: Another writer is at work, or the store was made with other settings.
        DataError: The folder holds something else.
        FingerprintError: Another encoder made the store.
    """

    def __init__(
        self,
        folder: str | Path,
        fingerprint: str,
        dim: int,
        settings: Mapping[str, Any],
        dtype: str = "float32",
    ):
        self.folder = Path(folder)
        if dtype not in DTYPES:
            raise ConfigError(f"unknown type {dtype!r}", mend=f"Use one of {', '.join(DTYPES)}.")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = self._take_lock()
        with contextlib.ExitStack() as opened:
            opened.callback(os.close, self._lock)
            header = {
                "format": FORMAT,
                "fingerprint": fingerprint,
                "dim": dim,
                "dtype": dtype,
                "settings": dict(settings),
            }
            self._begin(header)
            opened.pop_all()
        self._pending: dict[str, tuple[Entry, torch.Tensor]] = {}
        self._bytes, self._since = 0, time.monotonic()

    def _begin(self, header: dict[str, Any]) -> None:
        path = self.folder / HEADER
        if path.is_file():
            self.store = FeatureStore(self.folder, header["fingerprint"])
            for name in ("settings", "dtype", "dim"):
                if self.store.header[name] != header[name]:
                    raise ConfigError(
                        f"the store was made with {name} {self.store.header[name]},"
                        f" this is {header[name]}",
                        where=self.folder,
                        mend="Use the same, or another folder.",
                    )
            self._clear_leftovers()
            return
        if others := [found.name for found in self.folder.iterdir() if found.name != ".lock"]:
            raise DataError(
                f"not a feature store, and not empty ({others[0]}, ...)",
                where=self.folder,
                mend="Name another folder.",
            )
        write_json(path, header)
        self.store = FeatureStore(self.folder, header["fingerprint"])

    def _take_lock(self) -> int:
        handle = os.open(self.folder / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system frees it at any end
        except BlockingIOError:
            os.close(handle)
            raise ConfigError(
                "another process is writing to this store",
                where=self.folder,
                mend="Wait for it, or name another folder.",
            ) from None
        return handle

    def _clear_leftovers(self) -> None:
        """Delete shards that a killed writer did not finish: no index names them."""
        finished = {path.name for path in self.store.shards()}
        for path in (*self.folder.glob("shard-*.safetensors"), *self.folder.glob(".shard-*")):
            if path.name not in finished:
                path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.flush()
        finally:
            os.close(self._lock)

    def __contains__(self, key: str) -> bool:
        return key in self.store or key in self._pending

    def add(self, entry: Entry, features: torch.Tensor) -> None:
        """Add features [rows, d]; they are on disk after the next `flush`, at most 30 s later.

        Raises:
            DataError: The id is there already, or rows are not of the store's size or not finite.
        """
        if entry.id in self:
            raise DataError(f"{entry.id!r} is in the store already", where=self.folder)
        if features.ndim != 2 or features.shape[1] != self.store.dim or not len(features):
            raise DataError(
                f"features {list(features.shape)}, needed is [n > 0, {self.store.dim}]",
                where=entry.id,
            )
        if not features.isfinite().all():
            raise DataError("a feature is not finite", where=entry.id)
        rows = features.detach().to("cpu", DTYPES[self.store.header["dtype"]])
        self._pending[entry.id] = (replace(entry, rows=len(rows)), rows)
        self._bytes += rows.nbytes
        if self._bytes >= SHARD_BYTES or time.monotonic() - self._since >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is pending as one shard: its features first, then the index."""
        if self._pending:
            path = self.folder / f"shard-{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.safetensors"
            features = torch.cat([rows for _, rows in self._pending.values()])
            with atomic_path(path) as temporary:
                save_file({"features": features}, temporary)
            write_index(path, [entry for entry, _ in self._pending.values()])
            sync_folder(self.folder)
            self._pending.clear()
            self.store.refresh()
        self._bytes, self._since = 0, time.monotonic()


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to disk, so that a power cut does not undo a rename."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
