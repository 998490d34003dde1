"""Questions about videos: from a JSONL file, or from Tideos."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from topa.tideo.schema import MAX_OPTIONS, Text, Tideo, read_records


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
        DataError: As `read_records`; the key is `qid`.
    """
    return read_records(path, VideoQuestion, "qid")


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
