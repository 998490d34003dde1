"""TextVid-mini: the Tideos that come with the package (CC0-1.0)."""

from __future__ import annotations

import lzma
from collections.abc import Iterator
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from topa.errors import DataError
from topa.tideo.schema import Tideo, describe_errors, read_tideos

Split = Literal["train", "everyday", "heldout"]
BUNDLED = ("textvid", "everyday", "heldout")


@cache
def load_textvid(split: Split = "train") -> tuple[Tideo, ...]:
    """Return the Tideos of a split.

    Args:
        split: "train", "everyday" (plain clips, also for training), or "heldout", which is
            for evaluation only.
    """
    path = resources.files("topa.tideo") / "textvid_mini" / f"{split}.jsonl.xz"
    lines = lzma.decompress(path.read_bytes()).decode("utf-8").splitlines()
    return tuple(Tideo.model_validate_json(line) for line in lines)


def load_tideos(source: str) -> list[Tideo]:
    """Return Tideos by name ("textvid", "everyday", "heldout"), or from a file or folder.

    A file is JSONL or Parquet; a folder is that of a run, of shards, or a packed dataset.

    Raises:
        DataError: It is missing or holds something that is not a Tideo.
    """
    if source == "textvid":
        return list(load_textvid("train"))
    if source in ("everyday", "heldout"):
        return list(load_textvid("everyday" if source == "everyday" else "heldout"))
    paths = list_files(source)
    if len(paths) == 1 and paths[0].suffix != ".parquet":
        return read_tideos(paths[0])
    tideos: list[Tideo] = []
    places: dict[str, str] = {}
    for path in paths:
        for tideo in read_file(path):
            if tideo.id in places:
                raise DataError(f"id {tideo.id!r} is also in {places[tideo.id]}", where=path)
            places[tideo.id] = path.name
            tideos.append(tideo)
    return tideos


def inspect_tideos(source: str) -> tuple[list[Tideo], list[tuple[str, int, str]]]:
    """Return the valid Tideos of a source, and file, line and reason of everything else in it.

    Lines of JSONL are judged one by one. Parquet and the bundled sets are read as by
    `load_tideos`: they have a schema already.

    Raises:
        DataError: A file is missing or holds nothing.
    """
    paths = [] if source in BUNDLED else list_files(source)
    if not paths or any(path.suffix == ".parquet" for path in paths):
        return load_tideos(source), []
    tideos: list[Tideo] = []
    problems: list[tuple[str, int, str]] = []
    seen: dict[str, str] = {}
    for path in paths:
        for number, found in _judge_lines(path):
            if isinstance(found, str):
                problems.append((str(path), number, found))
            elif found.id in seen:
                reason = f"id {found.id!r} is also on {seen[found.id]}"
                problems.append((str(path), number, reason))
            else:
                seen[found.id] = f"line {number}" if len(paths) == 1 else f"{path}, line {number}"
                tideos.append(found)
    return tideos, problems


def _judge_lines(path: Path) -> Iterator[tuple[int, Tideo | str]]:
    """Yield the number of each line, and its Tideo or what is wrong with it."""
    if not path.is_file():
        raise DataError("file not found", where=path, mend="Check the path.")
    empty = True
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                empty = False
                try:
                    yield number, Tideo.model_validate_json(line)
                except ValidationError as error:
                    yield number, describe_errors(error)
    if empty:
        raise DataError("no Tideos in the file", where=path)


def list_files(source: str | Path) -> list[Path]:
    """Return the files of Tideos at a path: itself, or those of a run, a dataset or of shards.

    Raises:
        DataError: The folder holds none.
    """
    path = Path(source)
    if not path.is_dir():
        return [path]
    if (path / "tideos.jsonl").is_file():
        return [path / "tideos.jsonl"]
    folder = path / "data" if (path / "data").is_dir() else path
    found = sorted([*folder.glob("*.jsonl"), *folder.glob("*.parquet")])
    if not found:
        raise DataError("no files of Tideos in the folder", where=path)
    return found


def read_file(path: Path) -> Iterator[Tideo]:
    """Yield the Tideos of a file, JSONL or Parquet.

    Raises:
        DataError: It is missing or holds something that is not a Tideo.
    """
    if path.suffix != ".parquet":
        yield from read_tideos(path)
        return
    from topa.tideo.pack import read_parquet

    for number, row in enumerate(read_parquet(path), start=1):
        try:
            yield Tideo.model_validate(row)
        except ValidationError as error:
            raise DataError(describe_errors(error), where=f"{path}, row {number}") from None
