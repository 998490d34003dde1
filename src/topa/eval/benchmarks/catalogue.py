"""What a benchmark is: its files, splits, counts, where it comes from, and how it is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from topa.data.questions import VideoQuestion
from topa.errors import ConfigError
from topa.tideo.schema import Text


class VideoCaption(BaseModel):
    """A video to describe, with what people wrote about it.

    Attributes:
        video: Name of the video.
        captions: Reference descriptions.
        start: Where the part to describe begins, in seconds.
        end: Where it ends.
    """

    model_config = ConfigDict(frozen=True)

    video: Text
    captions: list[Text] = Field(min_length=1)
    start: float | None = None
    end: float | None = None


Item = VideoQuestion | VideoCaption


@dataclass(frozen=True)
class Split:
    """One published part of a benchmark.

    Attributes:
        files: Original names of the annotation files, all needed; of names parted by "|" one.
        count: Questions (or videos to describe) in the published files; None if open.
        kinds: Published number of questions of each kind, where the file tells kinds.
        answered: Whether the right answers are public.
    """

    files: tuple[str, ...]
    count: int | None = None
    kinds: Mapping[str, int] = field(default_factory=dict)
    answered: bool = True


@dataclass(frozen=True)
class Benchmark:
    """A published benchmark, readable from files at their original names.

    Attributes:
        name: As `topa evaluate` takes it.
        title: In full.
        task: "choice" (questions with options) or "caption".
        splits: By name; the first is the default.
        read: Reads a split: (folder, split, with subtitles) -> items.
        source: Where its files are to be had.
        licence: What its authors say about use.
        paper: Reference.
        feature_rate: Rows per second of the official feature files; needed where questions are
            about a part of a video.
        features: Original names of official feature files or folders.
        frame_rate: Frames per second where videos come as folders of frames.
        metric: What is reported.
        notes: What a user should know.
    """

    name: str
    title: str
    task: Literal["choice", "caption"]
    splits: Mapping[str, Split]
    read: Callable[[Path, str, bool], Sequence[Item]]
    source: str
    licence: str
    paper: str
    feature_rate: float = 1.0
    features: tuple[str, ...] = ()
    frame_rate: float = 3.0
    metric: str = "accuracy"
    notes: str = ""

    @property
    def default_split(self) -> str:
        """The split that is taken when none is named."""
        return next(iter(self.splits))

    def split(self, name: str | None) -> Split:
        """Return a split by name, the default if None.

        Raises:
            ConfigError: There is no such split.
        """
        name = name or self.default_split
        if name not in self.splits:
            raise ConfigError(
                f"{self.title} has no split {name!r}",
                where="split",
                mend=f"Use one of {', '.join(self.splits)}.",
            )
        return self.splits[name]


def name_count(split: Split, items: Sequence[Item]) -> str | None:
    """Return in words how a split differs from the published one, None if it does not.

    Args:
        split: What was published.
        items: What was read.
    """
    problems = []
    if split.count is not None and len(items) != split.count:
        problems.append(f"{len(items):,} items read, the published file has {split.count:,}")
    found: dict[str, int] = {}
    for item in items:
        kind = item.kind if isinstance(item, VideoQuestion) else None
        if kind is not None:
            found[kind] = found.get(kind, 0) + 1
    problems += [
        f"{kind}: {found.get(kind, 0):,} rather than {count:,}"
        for kind, count in split.kinds.items()
        if found.get(kind, 0) != count
    ]
    return "; ".join(problems) or None
