"""Questions about videos: from a JSONL file, or from Tideos."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from topa.errors import DataError
from topa.runs import read_jsonl
from topa.tideo.schema import MAX_OPTIONS, Text, Tideo, describe_errors


class VideoQuestion(BaseModel):
    """A multiple-choice question about one video. Further fields are kept in `model_extra`.

    Attributes:
        qid: Unique in its file.
        video: File name of the video inside the folder of videos, or the id of a Tideo.
        question: The question.
        options: 2 to 26 answers; benchmarks have questions with two equal ones.
        answer: Index of the right option; None where only a test server knows it.
        captions: Reference descriptions of the video, if there are any.
        kind: What the question asks for, if known.
        start: Where the part of the video that is asked about begins, in seconds.
        end: Where it ends.
        subtitles: What is said there, if it is to be read along.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    qid: Text
    video: Text
    question: Text
    options: list[Text] = Field(min_length=2, max_length=MAX_OPTIONS)
    answer: int | None = Field(ge=0, strict=True)
    captions: list[Text] = []
    kind: Text | None = None
    start: float | None = Field(None, ge=0, allow_inf_nan=False)
    end: float | None = Field(None, ge=0, allow_inf_nan=False)
    subtitles: Text | None = None

    @model_validator(mode="after")
    def _answer_is_an_option(self) -> VideoQuestion:
        if self.answer is not None and self.answer >= len(self.options):
            raise ValueError(f"answer {self.answer} is not one of {len(self.options)} options")
        if self.end is not None and self.end < (self.start or 0):
            raise ValueError(f"end {self.end} s is before start {self.start or 0} s")
        return self


def read_questions(path: str | Path) -> list[VideoQuestion]:
    """Read a JSONL file of questions, in the order of the file.

    Raises:
        DataError: The file is missing or empty, a line is not a valid question, or a qid
            occurs twice; names file and line.
    """
    questions: list[VideoQuestion] = []
    seen: dict[str, int] = {}
    for number, row in read_jsonl(path):
        try:
            question = VideoQuestion.model_validate(row)
        except ValidationError as error:
            raise DataError(describe_errors(error), where=f"{path}, line {number}") from None
        if question.qid in seen:
            raise DataError(
                f"qid {question.qid!r} is also on line {seen[question.qid]}",
                where=f"{path}, line {number}",
                mend="Give every question a qid of its own.",
            )
        seen[question.qid] = number
        questions.append(question)
    if not questions:
        raise DataError("no questions in the file", where=path)
    return questions


def from_tideos(tideos: Iterable[Tideo]) -> list[VideoQuestion]:
    """Return the questions of Tideos, the k-th of a Tideo with qid `<id>-<k>`, k from 0."""
    return [
        VideoQuestion(
            qid=f"{tideo.id}-{k}",
            video=tideo.id,
            question=item.question,
            options=item.options,
            answer=item.answer,
            captions=[tideo.caption],
            kind=item.kind,
        )
        for tideo in tideos
        for k, item in enumerate(tideo.qas)
    ]
