"""The feature store: a folder of safetensors shards, each beside a Parquet index of what it holds.

A shard is written whole, flushed and renamed into place before its index is, and the index is
what counts: a reader sees finished shards only, at any time, and a writer that is killed
loses no more than what it had not written yet. Nothing in a store is ever changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from topa.errors import DataError
from topa.features.index import Entry, read_index
from topa.features.store import check_fingerprint
from topa.runs import read_json

__all__ = ["FeatureStore"]

FORMAT = 1
HEADER = "store.json"


class FeatureStore(Mapping[str, torch.Tensor]):
    """Features by id, mapped from disk: opening a store reads its index, not its features.

    Args:
        folder: A store.
        fingerprint: Of the encoder that is needed; None to take any.

    Raises:
        DataError: There is no store, or its index is damaged.
        FingerprintError: Another encoder made it.
    """

    def __init__(self, folder: str | Path, fingerprint: str | None = None):
        self.folder = Path(folder)
        header = self.folder / HEADER
        if not header.is_file():
            raise DataError(
                "there is no feature store", where=folder, mend="Make one with `topa encode`."
            )
        self.header: dict[str, Any] = read_json(header)
        if not isinstance(self.header, dict) or self.header.get("format") != FORMAT:
            raise DataError("not a feature store of this version", where=header)
        for name, kind in (("fingerprint", str), ("dim", int), ("settings", dict)):
            if not isinstance(self.header.get(name), kind):
                raise DataError(f"{name} is missing or damaged", where=header)
        check_fingerprint(self.header["fingerprint"], fingerprint, where=folder)
        self.entries: dict[str, Entry] = {}
        self._read_shards: set[str] = set()
        self._open: dict[str, Any] = {}
        self.refresh()

    @property
    def fingerprint(self) -> str:
        """Of the encoder of all features."""
        return str(self.header["fingerprint"])

    @property
    def dim(self) -> int:
        """Size of a feature."""
        return int(self.header["dim"])

    @property
    def settings(self) -> dict[str, Any]:
        """How frames were chosen."""
        return dict(self.header["settings"])

    def shards(self) -> list[Path]:
        """Return the finished shards by name."""
        indexes = sorted(self.folder.glob("shard-*.parquet"))
        return [path.with_suffix(".safetensors") for path in indexes]

    def refresh(self) -> None:
        """Take in what a writer has added since.

        Raises:
            DataError: An index is damaged, or an id occurs twice.
        """
        for shard in self.shards():
            if shard.stem in self._read_shards:
                continue
            for entry in read_index(shard.with_suffix(".parquet"))[0]:
                if entry.id in self.entries:
                    raise DataError(
                        f"{entry.id!r} is also in {self.entries[entry.id].shard}",
                        where=shard,
                        mend="Encode into a new store.",
                    )
                self.entries[entry.id] = entry
            self._read_shards.add(shard.stem)

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __getitem__(self, key: str) -> torch.Tensor:
        """Return the features [rows, d] of an id, in the type they are stored in.

        Raises:
            KeyError: There is no such id.
            DataError: Its shard is missing or damaged.
        """
        entry = self.entries[key]
        try:
            rows = self._shard(entry.shard).get_slice("features")[
                entry.start : entry.start + entry.rows
            ]
        except (SafetensorError, OSError) as error:
            raise DataError(
                f"the shard of {key!r} cannot be read ({error})",
                where=self.folder / f"{entry.shard}.safetensors",
                mend="Run `topa features verify`.",
            ) from None
        return rows

    def _shard(self, name: str) -> Any:
        if name not in self._open:
            path = self.folder / f"{name}.safetensors"
            self._open[name] = safe_open(path, framework="pt").__enter__()
        return self._open[name]

    @property
    def rows(self) -> int:
        """Number of frame features."""
        return sum(entry.rows for entry in self.entries.values())

    def blocks(self) -> Iterator[tuple[list[Entry], torch.Tensor]]:
        """Yield the entries and the float32 features [n, d] of one shard after the other."""
        groups: dict[str, list[Entry]] = {}
        for entry in self.entries.values():
            groups.setdefault(entry.shard, []).append(entry)
        for name, entries in groups.items():
            yield entries, self._shard(name).get_tensor("features").float()
