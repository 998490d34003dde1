"""Many Tideos in little memory: the place of each in a file, read when it is asked for."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np
from pydantic import ValidationError

from topa.errors import DataError
from topa.runs import atomic_path, cache_dir, sha256_of
from topa.tideo.schema import Tideo, describe_errors
from topa.tideo.textvid import BUNDLED, list_files, load_tideos, read_file

_RECENT = 256  # Tideos kept as read: a sample asks several times for its own


class TideoShelf(Sequence[Tideo]):
    """Tideos of JSONL files, in any order; 24 bytes of memory for each.

    Processes may share one: every read names its place in the file.

    Args:
        paths: The files.
        places: [n, 3] int64: number of the file, and where the line begins and ends in it.
    """

    def __init__(self, paths: Sequence[Path], places: np.ndarray):
        self.paths, self.places = list(paths), places
        self._files: dict[int, BinaryIO] = {}
        self._recent = lru_cache(maxsize=_RECENT)(self._read)

    def __reduce__(self) -> tuple[Any, ...]:
        return TideoShelf, (self.paths, self.places)  # not the open files

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Tideo: ...
    @overload
    def __getitem__(self, index: slice) -> TideoShelf: ...
    def __getitem__(self, index: int | slice) -> Tideo | TideoShelf:
        if isinstance(index, slice):
            return TideoShelf(self.paths, self.places[index])
        if not -len(self) <= index < len(self):
            raise IndexError(f"Tideo {index} of {len(self)}")
        return self._recent(int(index))

    def __add__(self, other: TideoShelf) -> TideoShelf:
        """Return the Tideos of both, one after the other."""
        moved = other.places + np.array([len(self.paths), 0, 0])
        return TideoShelf([*self.paths, *other.paths], np.concatenate([self.places, moved]))

    def take(self, rows: Sequence[int] | np.ndarray) -> TideoShelf:
        """Return the Tideos at some positions, in their order."""
        return TideoShelf(self.paths, self.places[np.asarray(rows, dtype=np.int64)])

    def _read(self, index: int) -> Tideo:
        number, start, end = self.places[index].tolist()
        path = self.paths[number]
        if number not in self._files:
            self._files[number] = open(path, "rb")  # noqa: SIM115 (closed with the shelf)
        line = os.pread(self._files[number].fileno(), end - start, start)
        try:
            return Tideo.model_validate_json(line)
        except ValidationError as error:
            raise DataError(
                f"no Tideo at byte {start} any more ({describe_errors(error)})",
                where=path,
                mend="Leave the file as it is while it is read, and start again.",
            ) from None


def open_shelf(source: str) -> TideoShelf:
    """Return the Tideos that `load_tideos` returns, every one checked, none of them in memory.

    JSONL is read where it lies. The bundled ones and Parquet are written to the cache as JSONL,
    once.

    Raises:
        DataError: As `load_tideos`.
    """
    if source in BUNDLED:
        name = "train" if source == "textvid" else source
        with resources.as_file(
            resources.files("topa.tideo") / "textvid_mini" / f"{name}.jsonl.xz"
        ) as path:
            return _index([_copy(sha256_of(path), load_tideos(source))])
    paths = [
        _copy(sha256_of(path), read_file(path)) if path.suffix == ".parquet" else path
        for path in list_files(source)
    ]
    return _index(paths)


def _copy(key: str, tideos: Iterable[Tideo]) -> Path:
    """Return the file of the cache that holds Tideos, written if it is not there."""
    path = cache_dir("tideos") / f"{key}.jsonl"
    if not path.is_file():
        with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            for tideo in tideos:
                file.write(tideo.model_dump_json(exclude_none=True) + "\n")
    return path


def _index(paths: Sequence[Path]) -> TideoShelf:
    """Check every line of the files and note its place.

    Raises:
        DataError: A file is missing, a line is no Tideo, an id comes twice, or there are none.
    """
    places = array("q")
    seen: dict[str, tuple[int, int]] = {}
    for number, path in enumerate(paths):
        for line_number, start, line in _lines(path):
            place = f"{path}, line {line_number}"
            try:
                tideo = Tideo.model_validate_json(line)
            except ValidationError as error:
                raise DataError(describe_errors(error), where=place) from None
            if tideo.id in seen:
                file, before = seen[tideo.id]
                raise DataError(
                    f"id {tideo.id!r} is also in {paths[file]}, line {before}",
                    where=place,
                    mend="Give every line its own id.",
                )
            seen[tideo.id] = (number, line_number)
            places.extend((number, start, start + len(line)))
    if not places:
        raise DataError("no Tideos in the file", where=paths[0])
    return TideoShelf(paths, np.array(places, dtype=np.int64).reshape(-1, 3))


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Yield number, first byte and text of the lines of a file that are not blank."""
    if not path.is_file():
        raise DataError("file not found", where=path, mend="Check the path.")
    start = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, start, line
            start += len(line)
