"""Accuracy of a model on questions: every question counts, none is guessed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from topa.answer import Topa
from topa.data.questions import VideoQuestion
from topa.errors import ConfigError, DataError, VideoError
from topa.eval.choosing import choose, measures_of, resolve_method
from topa.eval.log import WHOLE, PredictionLog, Progress, Row, Shard, run_units
from topa.eval.measuring import find_overlong, measure, token_limit
from topa.eval.names import EVAL_METHODS, EvalMethod
from topa.eval.provenance import fingerprint_of_trainables, fingerprints_of
from topa.eval.results import Report, make_report
from topa.eval.sources import Nothing, Source, TextFeatures, VideoFolder
from topa.features.store import encode_tideos
from topa.runs import digest
from topa.tideo.schema import Tideo

__all__ = [
    "Evaluation",
    "Report",
    "evaluate",
    "fingerprint_of_trainables",
    "fingerprints_of",
    "tideo_features",
]

CLIPS_PER_UNIT = 16


def tideo_features(tideos: Sequence[Tideo], topa: Topa) -> dict[str, Tensor]:
    """Return the text features [frames, d] of each Tideo by its id, for `evaluate`."""
    features = encode_tideos(tideos, topa.encoder)
    return {tideo.id: features.of(i) for i, tideo in enumerate(tideos)}


@dataclass(frozen=True)
class Evaluation:
    """One model, questions, where their videos come from, and how options are chosen.

    Attributes:
        topa: The model.
        questions: Of different qids; their order is kept.
        source: Gives the features.
        method: How an option is chosen; the checkpoint's own by default.
        blind: Answer without the video.
        context: Also answer without the video and by similarity, to print beside the accuracy.
        num_frames: Frames of each video, at most.
        title: What the questions are, for the report.
        expected: How they differ from the published ones, None if they do not.
    """

    topa: Topa
    questions: Sequence[VideoQuestion]
    source: Source
    method: EvalMethod | None = None
    blind: bool = False
    context: bool = False
    num_frames: int | None = None
    title: str = "questions"
    expected: str | None = None

    def __post_init__(self) -> None:
        """Refuse what would otherwise fail once per video, or only after all have been read."""
        if not self.questions:
            raise ConfigError("there are no questions", where="evaluate")
        if self.method is not None and self.method not in EVAL_METHODS:
            raise ConfigError(
                f"unknown method {self.method!r}", mend=f"Use one of {', '.join(EVAL_METHODS)}."
            )
        if self.blind and self.method == "similarity":
            raise ConfigError("similarity has no blind form", where="method")
        if isinstance(self.source, Nothing) and not self.blind:
            raise ConfigError(
                "there are no videos",
                where="evaluate",
                mend="Name videos or features, or evaluate blind.",
            )

    @property
    def resolved(self) -> EvalMethod:
        """The method, with "likelihood" as the checkpoint means it."""
        config = self.topa.model.config
        chosen = cast(EvalMethod, self.method or config.scoring)
        return resolve_method(chosen, config.subtract_blind)

    @property
    def wanted(self) -> set[str]:
        """What is measured of every question."""
        wanted = measures_of(self.resolved, self.blind, self.context)
        return wanted - {"similarity"} if isinstance(self.source, Nothing) else wanted

    @property
    def settings(self) -> dict[str, Any]:
        """All that the predictions depend on, for `run.json`."""
        config = self.topa.model.config
        return {
            "title": self.title,
            "questions": digest(*(item.model_dump_json() for item in self.questions)),
            "n": len(self.questions),
            "source": self.source.name,
            "method": self.resolved,
            "blind": self.blind,
            "context": self.context,
            "num_frames": self.num_frames or config.num_frames,
            "use_memory": self.source.projected,
            "fingerprints": fingerprints_of(self.topa, self.source.projected),
            "template_version": config.template_version,
        }

    def answer(
        self,
        log: PredictionLog | None = None,
        shard: Shard = WHOLE,
        progress: Progress | None = None,
    ) -> tuple[list[Row], int]:
        """Answer the questions of a shard, and return their rows and how many are new."""
        groups: dict[tuple[str, float | None, float | None], list[VideoQuestion]] = {}
        for question in self.questions:
            key = (question.video, question.start, question.end)
            groups.setdefault(key, []).append(question)
        clips = list(groups.values())
        units = [
            [item for clip in clips[start : start + CLIPS_PER_UNIT] for item in clip]
            for start in range(0, len(clips), CLIPS_PER_UNIT)
        ]
        return run_units(
            units,
            lambda question: question.qid,
            self._answer_unit,
            log=log,
            shard=shard,
            progress=progress,
        )

    def _answer_unit(self, unit: Sequence[VideoQuestion]) -> list[Row]:
        """Return one row per question; a clip is read once for all questions about it."""
        clips: dict[tuple[str, float | None, float | None], Tensor | str] = {}
        reasons: dict[str, str] = {}
        groups: dict[tuple[str, float | None, float | None], list[VideoQuestion]] = {}
        limit = token_limit(self.topa)
        for item in unit:
            key = (item.video, item.start, item.end)
            if key not in clips:
                clips[key] = self._load(item)
            features = clips[key]
            reason = features if isinstance(features, str) else None
            reason = reason or find_overlong(self.topa.builder, item, self.wanted, limit)
            if reason is not None:
                reasons[item.qid] = reason
            else:
                groups.setdefault(key, []).append(item)
        ready = [
            (items, shown)
            for key, items in groups.items()
            if isinstance(shown := clips[key], Tensor)
        ]
        measures = measure(self.topa, ready, self.wanted) if ready else {}
        return [self._row(item, measures.get(item.qid), reasons.get(item.qid)) for item in unit]

    def _load(self, item: VideoQuestion) -> Tensor | str:
        """Return the features of a clip, or why there are none."""
        try:
            return self.source.load(item)
        except (VideoError, DataError) as error:
            return str(error)

    def _row(self, item: VideoQuestion, found: Mapping[str, Any] | None, reason: str | None) -> Row:
        row: Row = {
            "id": item.qid,
            "video": item.video,
            "kind": item.kind,
            "options": len(item.options),
            "answer": item.answer,
            "predicted": None,
            "probabilities": None,
            "reason": reason,
        }
        if self.context:
            row |= {"blind": None, "similarity": None}
        if found is None:
            return row
        method, options = self.resolved, item.options
        row["predicted"], row["probabilities"], row["reason"] = choose(
            method, found, options, self.blind
        )
        if self.context:
            row["blind"] = choose(method, found, options, blind=True)[0]
            if "similarity" in found:
                row["similarity"] = choose("similarity", found, options)[0]
        broken = any(
            value != value or abs(value) == float("inf")
            for values in found.values()
            if isinstance(values, list)
            for value in values
        )
        if row["reason"] is None and broken:
            row |= {"predicted": None, "probabilities": None}
            row["reason"] = "a score is not finite"
        row["measures"] = None if broken else dict(found)
        return row

    def report(self, rows: Sequence[Row], seconds: float, answered: int) -> Report:
        """Return the figures of all rows."""
        return make_report(
            self.settings,
            self.title,
            rows,
            seconds,
            answered,
            context=self.context,
            expected=self.expected,
        )


def evaluate(
    topa: Topa,
    questions: Sequence[VideoQuestion],
    *,
    videos: str | Path | None = None,
    features: Mapping[str, Tensor] | None = None,
    method: EvalMethod | None = None,
    blind: bool = False,
    context: bool = False,
    use_memory: bool = True,
    num_frames: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Answer every question and report the accuracy over all of them.

    Every clip is read once. One that is missing or cannot be read makes its questions wrong
    and is listed in `failures`; there is no default answer. A blind evaluation of videos reads
    them too, so that both rest on the same failures.

    Args:
        topa: The model.
        questions: The questions; their order is kept.
        videos: Folder of the videos.
        features: Instead of videos: text features [n, d] by video name, which need no
            projection (see `tideo_features`).
        method: How options are scored; the checkpoint's own by default.
        blind: Mask the videos. With neither videos nor features nothing is read.
        context: Also answer without the videos and by similarity.
        use_memory: Project image features through the memory, if the model has one.
        num_frames: Frames to sample from each video; the model's T by default.
        progress: Called as the work goes on.

    Raises:
        ConfigError: Arguments that cannot be used together, or no such folder.
    """
    start = time.monotonic()
    count = check_frames(topa, num_frames)
    if videos is not None and features is not None:
        raise ConfigError("either videos or features are needed", where="evaluate")
    source: Source
    if videos is not None:
        source = VideoFolder(topa, videos, count, use_memory=use_memory)
    elif features is not None:
        source = TextFeatures(features, count)
    elif blind:
        source = Nothing(topa.encoder.dim)
    else:
        raise ConfigError("either videos or features are needed", where="evaluate")
    job = Evaluation(topa, questions, source, method, blind, context, count)
    found, _ = job.answer(progress=progress)
    rows = {row["id"]: row for row in found}
    ordered = [rows[question.qid] for question in questions]
    return job.report(ordered, time.monotonic() - start, len(ordered))


def check_frames(topa: Topa, num_frames: int | None) -> int:
    """Return the number of frames to sample, the model's T if None.

    Raises:
        ConfigError: None are asked for, or more than the model has slots.
    """
    most = topa.model.config.num_frames
    count = most if num_frames is None else num_frames
    if not 1 <= count <= most:
        raise ConfigError(
            f"{count} frames asked for, the model has slots for {most}",
            where="num_frames",
            mend=f"Ask for 1 to {most}.",
        )
    return int(count)
