"""Reading annotation files of benchmarks, with the record that is wrong named."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from topa.data.questions import VideoQuestion
from topa.errors import DataError
from topa.runs import read_json
from topa.tideo.schema import describe_errors

T = TypeVar("T", bound=BaseModel)
_NAMES: dict[Any, str] = {str: "a text", list: "a list", int | float: "a number"}


def find_file(root: Path, names: str, folder: str) -> Path | None:
    """Return the first file of alternative names in a folder, or in its subfolder `folder`.

    Args:
        root: Where to look.
        names: File names parted by "|".
        folder: Name of the benchmark, as a subfolder.
    """
    for name in names.split("|"):
        for path in (root / name, root / folder / name):
            if path.is_file():
                return path
    return None


def need_file(root: Path, names: str, folder: str, source: str) -> Path:
    """Return what `find_file` finds.

    Raises:
        DataError: There is no such file; says where to get it.
    """
    path = find_file(root, names, folder)
    if path is None:
        raise DataError(
            f"{' or '.join(names.split('|'))} not found",
            where=root,
            mend=f"Get it from {source}.",
        )
    return path


def build(kind: type[T], where: str, fields: Mapping[str, Any]) -> T:
    """Return a checked question or caption.

    Raises:
        DataError: A field is missing or wrong; names the record.
    """
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise DataError(describe_errors(error), where=where) from None


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, record) of a JSON list of objects.

    Raises:
        DataError: Not a JSON list of objects.
    """
    yield from number_records(read_json(path), str(path))


def number_records(
    values: Any, where: str, what: str = "record"
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, record) of what is to be a list of objects.

    Args:
        values: Read from JSON.
        where: Place of the list.
        what: What to call an object.

    Raises:
        DataError: Not a list of objects.
    """
    if not isinstance(values, list):
        raise DataError(f"a list is needed, got {type(values).__name__}", where=where)
    for number, record in enumerate(values, start=1):
        place = f"{where}, {what} {number}"
        if not isinstance(record, dict):
            raise DataError(f"an object is needed, got {type(record).__name__}", where=place)
        yield place, record


def read_table(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (place, row) of a CSV file with a header.

    Raises:
        DataError: A column is missing, a row is too short, or the file is not UTF-8 text.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            missing = [name for name in columns if name not in (rows.fieldnames or ())]
            if missing:
                raise DataError(f"columns missing: {', '.join(missing)}", where=path)
            for row in rows:
                where = f"{path}, line {rows.line_num}"
                if any(row[name] is None for name in columns):
                    raise DataError("the row has too few columns", where=where)
                yield where, row
    except UnicodeDecodeError as error:
        raise DataError(f"not a UTF-8 text file ({error.reason})", where=path) from None
    except csv.Error as error:
        raise DataError(f"not a table of comma-separated values ({error})", where=path) from None


def take(record: Mapping[str, Any], name: str, where: str, kind: type | UnionType = object) -> Any:
    """Return a field of a record.

    Args:
        record: The record.
        name: Of the field.
        where: Place of the record.
        kind: What it has to be, where more is done with it than to check it by `build`.

    Raises:
        DataError: It is missing, or something else.
    """
    if name not in record:
        raise DataError(f"{name}: missing", where=where)
    value = record[name]
    if not isinstance(value, kind):
        raise DataError(f"{name}: {_NAMES[kind]} is needed, got {value!r}"[:200], where=where)
    return value


def whole(value: Any, name: str, where: str) -> int:
    """Return a whole number, written as one or as text.

    Raises:
        DataError: It is none.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if isinstance(value, bool) or not number.is_integer():
        raise DataError(f"{name}: a whole number is needed, got {value!r}", where=where)
    return int(number)


def refuse_repeated(questions: Sequence[VideoQuestion], path: Path) -> list[VideoQuestion]:
    """Return the questions, all of different qids and at least one.

    Raises:
        DataError: There are none, or a qid occurs twice.
    """
    if not questions:
        raise DataError("no questions in the file", where=path)
    seen: set[str] = set()
    for question in questions:
        if question.qid in seen:
            raise DataError(f"question {question.qid!r} occurs twice", where=path)
        seen.add(question.qid)
    return list(questions)
