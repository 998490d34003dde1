"""What a Tideo (textual video) is, and reading Tideos from JSONL with the line that is wrong."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from topa.errors import DataError
from topa.runs import read_jsonl, write_text

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Source = Literal["howto", "ego4d", "webvid", "wordnet", "topic", "unknown"]
"""The style of a seed: the paper's four, a free topic, or not recorded (official data)."""

Kind = Literal["temporal", "causal", "descriptive"]
MAX_OPTIONS = 26  # options are lettered (A) to (Z)


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Frame(_Record):
    """One textual frame: what a camera would see at one moment.

    Attributes:
        caption: One sentence about the frame.
        objects: 1 to 5 noun phrases, its key objects.
    """

    caption: Text
    objects: list[Text] = Field(min_length=1, max_length=5)

    @property
    def texts(self) -> list[str]:
        """The caption followed by the object captions."""
        return [self.caption, *self.objects]


class Question(_Record):
    """A multiple-choice question with its open-ended answer.

    Attributes:
        question: The question.
        options: 2 to 26 different answers.
        answer: Index of the right option.
        open_answer: The right answer in free words, if written.
        kind: What the question asks for, if known.
    """

    question: Text
    options: list[Text] = Field(min_length=2, max_length=MAX_OPTIONS)
    answer: int = Field(ge=0)
    open_answer: Text | None = None
    kind: Kind | None = None

    @model_validator(mode="after")
    def _answer_is_an_option(self) -> Question:
        if self.answer >= len(self.options):
            raise ValueError(f"answer {self.answer} is not one of {len(self.options)} options")
        if len({option.casefold() for option in self.options}) < len(self.options):
            raise ValueError("two options are the same")
        return self


class Tideo(_Record):
    """A textual video.

    Attributes:
        id: Unique in its file.
        source: The style of seed it grew from.
        seed: The short text it grew from, if recorded.
        frames: 5 to 15 frames in time order.
        caption: Dense description of the whole.
        qas: 3 to 6 questions.
    """

    id: Text
    source: Source
    seed: Text | None = None
    frames: list[Frame] = Field(min_length=5, max_length=15)
    caption: Text
    qas: list[Question] = Field(min_length=3, max_length=6)


Record = TypeVar("Record", bound=BaseModel)


def describe_errors(error: ValidationError) -> str:
    """Return every problem of a pydantic error in one line, as `field: problem; ...`."""
    return "; ".join(
        f"{'.'.join(map(str, item['loc'])) or 'record'}: {item['msg']}" for item in error.errors()
    )


def read_records(path: str | Path, model: type[Record], key: str) -> list[Record]:
    """Read a JSONL file of records that each have a key of their own, in the order of the file.

    Args:
        path: The file.
        model: What a record is.
        key: Its field that no other record of the file may share.

    Raises:
        DataError: The file is missing or empty, a line is not a valid record, or a key occurs
            twice; names file and line.
    """
    records: list[Record] = []
    seen: dict[Any, int] = {}
    for number, row in read_jsonl(path):
        place = f"{path}, line {number}"
        try:
            record = model.model_validate(row)
        except ValidationError as error:
            raise DataError(describe_errors(error), where=place) from None
        name = getattr(record, key)
        if name in seen:
            raise DataError(
                f"{key} {name!r} is also on line {seen[name]}",
                where=place,
                mend=f"Give every line its own {key}.",
            )
        seen[name] = number
        records.append(record)
    if not records:
        raise DataError("no records in the file", where=path)
    return records


def read_tideos(path: str | Path) -> list[Tideo]:
    """Read a JSONL file of Tideos.

    Raises:
        DataError: As `read_records`.
    """
    return read_records(path, Tideo, "id")


def write_tideos(path: str | Path, tideos: Iterable[Tideo]) -> None:
    """Write Tideos as JSONL, whole or not at all."""
    write_text(path, "".join(tideo.model_dump_json(exclude_none=True) + "\n" for tideo in tideos))
