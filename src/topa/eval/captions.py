"""Captions of videos against what people wrote: generated in batches, scored without Java."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from topa.answer import Topa
from topa.data.templates import DESCRIBE_PREFIX, DESCRIBE_QUESTION
from topa.errors import DataError, VideoError
from topa.eval.benchmarks.catalogue import VideoCaption
from topa.eval.caption_metrics import score_captions
from topa.eval.log import WHOLE, PredictionLog, Progress, Row, Shard, run_units
from topa.eval.provenance import commit_of_code, fingerprints_of
from topa.eval.results import SavedReport
from topa.eval.sources import Source
from topa.runs import digest, environment

VIDEOS_PER_UNIT = 8
CAPTION_TOKENS = 40


@dataclass(frozen=True)
class CaptionReport(SavedReport):
    """Scores of captions, and with what they were made.

    Attributes:
        title: What was described.
        n: Videos in the file.
        scores: By metric: `score`, `stderr` over videos, `tokenizer`, or `reason` if it could
            not be computed.
        failures: id and reason of each video without a caption; it scores as an empty one.
        expected: How the videos differ from the published ones; None if they do not.
        settings: All that the captions depend on.
        commit: Of the code.
        environment: Versions and machine.
        seconds: Time of this process.
        videos_per_second: Of this process.
        predictions: One row per video.
    """

    title: str
    n: int
    scores: dict[str, dict[str, Any]]
    failures: list[dict[str, str]]
    expected: str | None
    settings: dict[str, Any]
    commit: str | None
    environment: dict[str, Any]
    seconds: float
    videos_per_second: float
    predictions: list[Row]


@dataclass(frozen=True)
class CaptionEvaluation:
    """One model, videos to describe, and where they come from.

    Attributes:
        topa: The model.
        items: The videos, each once.
        source: Gives their features.
        num_frames: Frames of each, at most.
        title: What they are.
        expected: How they differ from the published ones.
    """

    topa: Topa
    items: Sequence[VideoCaption]
    source: Source
    num_frames: int
    title: str = "videos"
    expected: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """All that the captions depend on, for `run.json`."""
        return {
            "title": self.title,
            "questions": digest(*(item.model_dump_json() for item in self.items)),
            "n": len(self.items),
            "source": self.source.name,
            "method": "caption",
            "prompt": f"{DESCRIBE_QUESTION} | {DESCRIBE_PREFIX}",
            "max_new_tokens": CAPTION_TOKENS,
            "num_frames": self.num_frames,
            "use_memory": self.source.projected,
            "fingerprints": fingerprints_of(self.topa, self.source.projected),
            "template_version": self.topa.model.config.template_version,
        }

    def answer(
        self,
        log: PredictionLog | None = None,
        shard: Shard = WHOLE,
        progress: Progress | None = None,
    ) -> tuple[list[Row], int]:
        """Describe the videos of a shard, and return their rows and how many are new."""
        units = [
            self.items[start : start + VIDEOS_PER_UNIT]
            for start in range(0, len(self.items), VIDEOS_PER_UNIT)
        ]
        return run_units(
            units,
            lambda item: item.video,
            self._describe,
            log=log,
            shard=shard,
            stage="videos",
            progress=progress,
        )

    @torch.inference_mode()
    def _describe(self, unit: Sequence[VideoCaption]) -> list[Row]:
        """Return one row per video; the prompt is that of the paper's notebook."""
        shown: list[Tensor] = []
        ready: list[VideoCaption] = []
        reasons: dict[str, str] = {}
        for item in unit:
            try:
                shown.append(self.source.load(item))
                ready.append(item)
            except (VideoError, DataError) as error:
                reasons[item.video] = str(error)
        prompt = self.topa.builder.open(DESCRIBE_QUESTION, answer_prefix=DESCRIBE_PREFIX)
        texts = self.topa.generate([prompt] * len(ready), shown, CAPTION_TOKENS) if ready else []
        captions = dict(
            zip((item.video for item in ready), map(first_sentence, texts), strict=True)
        )
        return [
            {
                "id": item.video,
                "video": item.video,
                "caption": captions.get(item.video),
                "references": list(item.captions),
                "reason": reasons.get(item.video)
                or (None if captions.get(item.video) else "the caption is empty"),
            }
            for item in unit
        ]

    def report(self, rows: Sequence[Row], seconds: float, answered: int) -> CaptionReport:
        """Return the scores of all rows."""
        return CaptionReport(
            title=self.title,
            n=len(rows),
            scores=score_captions(
                {row["id"]: row["caption"] or "" for row in rows},
                {row["id"]: row["references"] for row in rows},
            ),
            failures=[{"id": row["id"], "reason": row["reason"]} for row in rows if row["reason"]],
            expected=self.expected,
            settings=self.settings,
            commit=commit_of_code(),
            environment=environment(),
            seconds=round(seconds, 2),
            videos_per_second=round(answered / seconds, 2) if seconds > 0 else 0.0,
            predictions=list(rows),
        )


def first_sentence(text: str) -> str:
    """Return the first sentence of what follows "It is a video of": references are one each."""
    line = text.strip().split("\n")[0]
    head, stop, _ = line.partition(". ")
    return (head + stop.strip()).strip()
