"""The authors' `textvid.json`: read record by record, and written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from topa.errors import DataError
from topa.tideo.results import write_lines
from topa.tideo.schema import Source, Tideo, describe_errors

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_CHUNK = 1 << 20
_MARK = re.compile(r"^\s*\(?([A-Z])[).:]\s*")
_LETTER = re.compile(r"^\s*\(?([A-Z])(?:[).:\s]|$)")


@dataclass
class OfficialRecords:
    """What a `textvid.json` holds.

    Attributes:
        tideos: Records that fit.
        texts: Id -> number of texts of each frame as written, which its features follow.
        problems: Index in the file (from 0), idx, and what is wrong, of those that do not fit.
    """

    tideos: list[Tideo] = field(default_factory=list)
    texts: dict[str, list[int]] = field(default_factory=dict)
    problems: list[tuple[int, str, str]] = field(default_factory=list)


def read_official(path: str | Path, *, source: Source = "unknown") -> OfficialRecords:
    """Read a `textvid.json`: a list of {idx, frames, global_video_caption, QAs}.

    A frame is a dict of texts in order: its caption, then its objects. Records that are no
    Tideos are named in `problems`; none is changed to fit, and none is dropped unseen.

    Args:
        path: The file; it is read piece by piece.
        source: The style to record, as the file does not say.

    Raises:
        DataError: The file is missing or is not a JSON list.
    """
    found = OfficialRecords()
    seen: dict[str, int] = {}
    for index, record in enumerate(iterate_list(path)):
        name = str(record.get("idx", "")) if isinstance(record, dict) else ""
        try:
            tideo, counts = convert_record(record, source)
        except ValidationError as error:
            found.problems.append((index, name, describe_errors(error)))
            continue
        except DataError as error:
            found.problems.append((index, name, error.what))
            continue
        if tideo.id in seen:
            found.problems.append((index, name, f"idx also at {seen[tideo.id]}"))
            continue
        seen[tideo.id] = index
        found.tideos.append(tideo)
        found.texts[tideo.id] = counts
    return found


def convert_record(record: Any, source: Source = "unknown") -> tuple[Tideo, list[int]]:
    """Return the Tideo of one record, and the number of texts of each of its frames.

    Raises:
        DataError: A field is missing or is of another kind.
        ValidationError: It does not fit the schema of a Tideo.
    """
    if not isinstance(record, dict):
        raise DataError(f"an object is needed, got {type(record).__name__}")
    missing = {"idx", "frames", "global_video_caption", "QAs"} - record.keys()
    if missing:
        raise DataError(f"no field {sorted(missing)[0]!r}")
    frames = [_texts_of(frame, i) for i, frame in enumerate(_list(record["frames"], "frames"))]
    values = {
        "id": str(record["idx"]),
        "source": source,
        "seed": record.get("seed"),
        "frames": [{"caption": texts[0], "objects": texts[1:]} for texts in frames],
        "caption": record["global_video_caption"],
        "qas": [_convert_question(item, i) for i, item in enumerate(_list(record["QAs"], "QAs"))],
    }
    return Tideo.model_validate(values), [len(texts) for texts in frames]


def _texts_of(frame: Any, number: int) -> list[str]:
    if not isinstance(frame, dict):
        raise DataError(f"frames.{number}: a dict of texts is needed")
    texts: list[str] = []
    for value in frame.values():
        texts += value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise DataError(f"frames.{number}: holds something other than texts")
    return texts


def _convert_question(item: Any, number: int) -> dict[str, Any]:
    if not isinstance(item, dict) or not {"question", "options", "answer"} <= item.keys():
        raise DataError(f"QAs.{number}: question, options and answer are needed")
    options = item["options"]
    options = list(options.values()) if isinstance(options, dict) else options
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise DataError(f"QAs.{number}: options are not a list of texts")
    marks = [_MARK.match(option) for option in options]
    letters = [mark[1] if mark else None for mark in marks]
    if letters == list(_LETTERS[: len(options)]):
        # Letters belong to the prompt, which writes its own.
        options = [_MARK.sub("", option) for option in options]
    answer = item["answer"]
    letter = _LETTER.match(answer) if isinstance(answer, str) else None
    if letter is None:
        raise DataError(f"QAs.{number}: answer {answer!r} is no letter")
    return {
        "question": item["question"],
        "options": options,
        "answer": _LETTERS.index(letter[1]),
        "open_answer": item.get("answer_open_ended"),
    }


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(f"{name}: a list is needed")
    return value


def to_official(tideo: Tideo) -> dict[str, Any]:
    """Return a Tideo as a record of `textvid.json`.

    Its source and seed and the kinds of its questions have no place there.
    """
    return {
        "idx": int(tideo.id) if re.fullmatch(r"0|[1-9]\d{0,15}", tideo.id) else tideo.id,
        "frames": [
            {
                "frame_caption": frame.caption,
                **{f"object_{i}": text for i, text in enumerate(frame.objects, start=1)},
            }
            for frame in tideo.frames
        ],
        "global_video_caption": tideo.caption,
        "QAs": [
            {
                "question": item.question,
                "options": item.options,
                "answer": _LETTERS[item.answer],
                **({"answer_open_ended": item.open_answer} if item.open_answer else {}),
            }
            for item in tideo.qas
        ],
    }


def write_official(path: str | Path, tideos: Iterable[Tideo]) -> int:
    """Write a `textvid.json`, whole or not at all, and return the number of records."""
    count = 0

    def lines() -> Iterator[str]:
        nonlocal count
        yield "["
        before = ""
        for tideo in tideos:
            yield before + json.dumps(to_official(tideo), ensure_ascii=False)
            before, count = ",", count + 1
        yield "]"

    write_lines(path, lines())
    return count


def iterate_list(path: str | Path) -> Iterator[Any]:
    """Yield the items of a JSON list of any size, a piece of the file at a time.

    Raises:
        DataError: The file is missing, or is not a JSON list; says at which item.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError("file not found", where=path, mend="Check the path.")
    try:
        yield from _iterate_list(path)
    except UnicodeDecodeError as error:
        raise DataError(f"not a UTF-8 text file ({error.reason})", where=path) from None
    except RecursionError:
        raise DataError("lists within lists without end", where=path) from None


def _iterate_list(path: Path) -> Iterator[Any]:
    decoder = json.JSONDecoder()
    with open(path, encoding="utf-8") as file:
        text = file.read(_CHUNK).lstrip()
        if not text.startswith("["):
            raise DataError("a JSON list is needed", where=path)
        text, count = text[1:], 0
        while True:
            text = text.lstrip().removeprefix(",").lstrip() if count else text.lstrip()
            if text.startswith("]"):
                return
            try:
                value, end = decoder.raw_decode(text)
                if end == len(text):
                    raise ValueError("the item may go on")
            except ValueError:
                more = file.read(max(_CHUNK, len(text)))
                if not more:
                    raise DataError(
                        "the list breaks off or is not JSON", where=f"{path}, item {count}"
                    ) from None
                text += more
                continue
            yield value
            text, count = text[end:], count + 1
