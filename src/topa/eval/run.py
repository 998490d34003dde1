"""Accuracy of a model on a file of questions: every question counts, none is guessed."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from topa.answer import METHODS, Method, Topa
from topa.data.templates import TEMPLATE_VERSION
from topa.errors import ConfigError, DataError, VideoError
from topa.eval.metrics import accuracy_report
from topa.eval.questions import VideoQuestion
from topa.features.store import encode_tideos, frame_rows
from topa.model.topa import TopaForConditionalGeneration
from topa.runs import environment, write_json
from topa.tideo.schema import Tideo

Progress = Callable[[str, int, int], None]
"""Called with the stage ("videos" are read, then "questions" answered), prompts done, and all."""


@dataclass(frozen=True)
class Report:
    """What an evaluation found, and with what.

    Attributes:
        accuracy: Share of all questions answered rightly; a failure is a wrong answer.
        n: Questions in the file.
        right: Questions answered rightly.
        chance: Expected accuracy of guessing.
        stderr: Standard error of the accuracy, clustered by video; None with one video.
        kinds: The same figures for each known kind of question.
        failures: qid and reason of each question that could not be answered.
        method: How options were scored.
        blind: Whether the video was masked.
        use_memory: Whether image features were projected through a memory.
        num_frames: Frames sampled from each video, at most.
        fingerprints: Of checkpoint, LLM, encoder and memory (None without one).
        template_version: Version of the prompts.
        environment: Versions and machine.
        seconds: Time taken, without loading the model.
        predictions: qid, answer, predicted (None for a failure) and probabilities.
    """

    accuracy: float
    n: int
    right: int
    chance: float
    stderr: float | None
    kinds: dict[str, dict[str, Any]]
    failures: list[dict[str, str]]
    method: str
    blind: bool
    use_memory: bool
    num_frames: int
    fingerprints: dict[str, str | None]
    template_version: str
    environment: dict[str, Any]
    seconds: float
    predictions: list[dict[str, Any]]

    def as_dict(self, *, predictions: bool = True) -> dict[str, Any]:
        """Return the fields for JSON, with or without the predictions."""
        fields = asdict(self)
        if not predictions:
            del fields["predictions"]
        return fields

    def save(self, path: str | Path) -> None:
        """Write the report as JSON, whole or not at all."""
        write_json(path, self.as_dict())


def tideo_features(tideos: Sequence[Tideo], topa: Topa) -> dict[str, Tensor]:
    """Return the text features [frames, d] of each Tideo by its id, for `evaluate`."""
    features = encode_tideos(tideos, topa.encoder)
    return {tideo.id: features.of(i) for i, tideo in enumerate(tideos)}


def evaluate(
    topa: Topa,
    questions: Sequence[VideoQuestion],
    *,
    videos: str | Path | None = None,
    features: Mapping[str, Tensor] | None = None,
    method: Method | None = None,
    blind: bool = False,
    use_memory: bool = True,
    num_frames: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Answer every question and report the accuracy over all of them.

    Every video is read once. One that is missing or cannot be read makes its questions wrong
    and is listed in `failures`; there is no default answer. A blind evaluation reads the
    videos too, so that both rest on the same failures.

    Args:
        topa: The model.
        questions: The questions; their order is kept.
        videos: Folder of the videos.
        features: Instead of videos: text features [n, d] by video name, which need no
            projection (see `tideo_features`).
        method: How options are scored; the checkpoint's own by default.
        blind: Mask the videos.
        use_memory: Project image features through the memory, if the model has one.
        num_frames: Frames to sample from each video; the model's T by default.
        progress: Called as the work goes on.

    Raises:
        ConfigError: Arguments that cannot be used together, or no such folder.
    """
    start = time.monotonic()
    method = topa.model.config.scoring if method is None else method
    count = topa.model.config.num_frames if num_frames is None else num_frames
    _check(topa, questions, videos, features, method, blind, count)
    projected = features is None and use_memory and topa.memory is not None

    def load(video: str) -> Tensor:
        if features is None:
            assert videos is not None
            return _read_video(topa, Path(videos) / video, count, blind, projected)
        if video not in features:
            raise DataError("no features of this video", where=video)
        return frame_rows(features[video], count)

    shown, reasons = _load_all([question.video for question in questions], load, progress)
    scores = _score_all(topa, questions, shown, method, blind, progress)
    predictions, failures = _predict(questions, scores, reasons)
    figures = accuracy_report(
        [row["predicted"] == row["answer"] for row in predictions],
        [question.video for question in questions],
        [len(question.options) for question in questions],
        [question.kind for question in questions],
    )
    return Report(
        **figures,
        failures=failures,
        method=method,
        blind=blind,
        use_memory=projected,
        num_frames=count,
        fingerprints=fingerprints_of(topa, projected),
        template_version=TEMPLATE_VERSION,
        environment=environment(),
        seconds=round(time.monotonic() - start, 2),
        predictions=predictions,
    )


def _check(
    topa: Topa,
    questions: Sequence[VideoQuestion],
    videos: str | Path | None,
    features: Mapping[str, Tensor] | None,
    method: str,
    blind: bool,
    num_frames: int,
) -> None:
    """Refuse what would otherwise fail once per video, or only after all have been read."""
    if not questions:
        raise ConfigError("there are no questions", where="evaluate")
    if (videos is None) == (features is None):
        raise ConfigError("either videos or features are needed", where="evaluate")
    if videos is not None and not Path(videos).is_dir():
        raise ConfigError("no such folder of videos", where=videos, mend="Check the path.")
    if method not in METHODS:
        raise ConfigError(f"unknown method {method!r}", mend=f"Use one of {', '.join(METHODS)}.")
    if blind and method == "similarity":
        raise ConfigError("similarity has no blind form", where="method")
    most = topa.model.config.num_frames
    if not 1 <= num_frames <= most:
        raise ConfigError(
            f"{num_frames} frames asked for, the model has slots for {most}",
            where="num_frames",
            mend=f"Ask for 1 to {most}.",
        )


def _read_video(topa: Topa, path: Path, num_frames: int, blind: bool, use_memory: bool) -> Tensor:
    """Return the features [n, d] of a video; zeros where nobody will see them."""
    clip = topa.watch(path, num_frames=num_frames)
    if blind:
        return torch.zeros(len(clip.images), topa.encoder.dim)
    return topa.encode(clip, use_memory=use_memory)


def _load_all(
    videos: Iterable[str], load: Callable[[str], Tensor], progress: Progress | None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return features, and reasons where there are none, of each different video."""
    shown: dict[str, Tensor] = {}
    reasons: dict[str, str] = {}
    names = list(dict.fromkeys(videos))
    for done, name in enumerate(names, start=1):
        try:
            shown[name] = load(name)
        except (VideoError, DataError) as error:
            reasons[name] = str(error)
        if progress is not None:
            progress("videos", done, len(names))
    return shown, reasons


def _score_all(
    topa: Topa,
    questions: Sequence[VideoQuestion],
    shown: Mapping[str, Tensor],
    method: Method,
    blind: bool,
    progress: Progress | None,
) -> dict[str, Tensor]:
    """Return the scores [number of options] of each question by qid, video by video."""
    groups: dict[str, list[VideoQuestion]] = {name: [] for name in shown}
    for question in questions:
        if question.video in groups:
            groups[question.video].append(question)
    # Selection needs one prompt per question, the other methods one per video.
    total = sum(map(len, groups.values())) if method == "selection" else len(groups)

    def count(done: int) -> None:
        if progress is not None:
            progress("questions", done, total)

    scores = topa.score(
        [[(item.question, item.options) for item in group] for group in groups.values()],
        list(shown.values()),
        method=method,
        blind=blind,
        progress=count,
    )
    return {
        item.qid: found
        for group, rows in zip(groups.values(), scores, strict=True)
        for item, found in zip(group, rows, strict=True)
    }


def _predict(
    questions: Sequence[VideoQuestion],
    scores: Mapping[str, Tensor],
    reasons: Mapping[str, str],
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Return one prediction per question, in order, and the failures among them."""
    predictions: list[dict[str, Any]] = []
    failures: list[dict[str, str]] = []
    for question in questions:
        found = scores.get(question.qid)
        row: dict[str, Any] = {"qid": question.qid, "answer": question.answer}
        if found is None or not found.isfinite().all():
            reason = reasons.get(question.video, "the scores of the options are not finite")
            failures.append({"qid": question.qid, "reason": reason})
            row.update(predicted=None, probabilities=None)
        else:
            row.update(predicted=int(found.argmax()), probabilities=found.softmax(-1).tolist())
        predictions.append(row)
    return predictions, failures


def fingerprints_of(topa: Topa, use_memory: bool = True) -> dict[str, str | None]:
    """Return the identity of checkpoint, LLM, encoder and memory (None where not used)."""
    memory = topa.memory if use_memory else None
    return {
        "checkpoint": fingerprint_of_trainables(topa.model),
        "llm": topa.model.config.llm_fingerprint,
        "encoder": topa.encoder.fingerprint,
        "memory": None if memory is None else memory.fingerprint_of_content,
    }


def fingerprint_of_trainables(model: TopaForConditionalGeneration) -> str:
    """Return a short hash of names, shapes and float32 values of the trained tensors."""
    hashed = hashlib.sha256()
    for name, parameter in sorted(model.trainable_parameters()):
        values = parameter.detach().float().cpu().contiguous()
        hashed.update(f"{name}{list(values.shape)}".encode())
        hashed.update(values.numpy().data)
    return f"checkpoint-{hashed.hexdigest()[:16]}"
