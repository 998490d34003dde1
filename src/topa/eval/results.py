"""The figures of a run: accuracy beside its chance, its blind and its similarity baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from topa.eval.log import Row
from topa.eval.metrics import accuracy_report
from topa.eval.provenance import commit_of_code
from topa.runs import environment, write_json


class SavedReport:
    """How reports, which are dataclasses with `predictions`, become JSON."""

    def as_dict(self, *, predictions: bool = True) -> dict[str, Any]:
        """Return the fields for JSON, with or without the predictions."""
        fields = asdict(self)  # type: ignore[call-overload]
        if not predictions:
            del fields["predictions"]
        return fields

    def save(self, path: str | Path) -> None:
        """Write the report as JSON, whole or not at all."""
        write_json(path, self.as_dict())


@dataclass(frozen=True)
class Report(SavedReport):
    """What an evaluation found, and with what.

    Attributes:
        title: What was asked.
        accuracy: Share of the questions answered rightly; a failure is a wrong answer. None
            where no right answer is public.
        n: Questions in the file whose right answer is known.
        asked: Questions in the file.
        right: Questions answered rightly.
        chance: Expected accuracy of guessing.
        stderr: Standard error of the accuracy, clustered by video; None with one video.
        kinds: The same figures for each known kind of question, with blind and similarity.
        baselines: `blind` and `similarity` figures of the same questions, where measured.
        failures: id and reason of each question that could not be answered.
        method: How options were scored.
        blind: Whether the video was masked.
        use_memory: Whether image features were projected through a memory.
        num_frames: Frames sampled from each video, at most.
        expected: How the questions differ from the published ones; None if they do not.
        fingerprints: Of checkpoint, LLM, encoder and memory (None without one).
        template_version: Version of the prompts.
        commit: Of the code, if it runs from a checkout.
        settings: All that the predictions depend on.
        environment: Versions and machine.
        seconds: Time taken, without loading the model; summed over the processes of a run that
            was stopped and gone on with.
        questions_per_second: In that time.
        predictions: One row per question, as in predictions.jsonl.
    """

    title: str
    accuracy: float | None
    n: int
    asked: int
    right: int
    chance: float | None
    stderr: float | None
    kinds: dict[str, dict[str, Any]]
    baselines: dict[str, dict[str, Any]]
    failures: list[dict[str, str]]
    method: str
    blind: bool
    use_memory: bool
    num_frames: int
    expected: str | None
    fingerprints: dict[str, str | None]
    template_version: str
    commit: str | None
    settings: dict[str, Any]
    environment: dict[str, Any]
    seconds: float
    questions_per_second: float
    predictions: list[Row]


def make_report(
    settings: Mapping[str, Any],
    title: str,
    rows: Sequence[Row],
    seconds: float,
    answered: int,
    *,
    context: bool = False,
    expected: str | None = None,
) -> Report:
    """Return the figures of rows.

    Args:
        settings: Of the run.
        title: What was asked.
        rows: One per question, in order.
        seconds: Time of this process.
        answered: Rows it made.
        context: Whether the rows hold blind and similarity answers.
        expected: How the questions differ from the published ones.
    """
    known = [row for row in rows if row["answer"] is not None]
    figures = figures_of(known, "predicted")
    baselines = {}
    if context:
        for name in ("blind", "similarity"):
            # A question that could not be shown at all is wrong in every row of the table.
            if any(row.get(name) is not None for row in known):
                baselines[name] = figures_of(known, name)
    kinds = figures.pop("kinds")
    for name, found in kinds.items():
        for baseline, of_baseline in baselines.items():
            found[baseline] = of_baseline["kinds"][name]["accuracy"]
    return Report(
        **figures,
        title=title,
        asked=len(rows),
        kinds=kinds,
        baselines=baselines,
        failures=[{"id": row["id"], "reason": row["reason"]} for row in rows if row["reason"]],
        method=settings["method"],
        blind=settings["blind"],
        use_memory=settings["use_memory"],
        num_frames=settings["num_frames"],
        expected=expected,
        fingerprints=dict(settings["fingerprints"]),
        template_version=settings["template_version"],
        commit=commit_of_code(),
        settings=dict(settings),
        environment=environment(),
        seconds=round(seconds, 2),
        questions_per_second=round(answered / seconds, 2) if seconds > 0 else 0.0,
        predictions=list(rows),
    )


def figures_of(rows: Sequence[Row], name: str) -> dict[str, Any]:
    """Return `accuracy_report` of the answers in a column of rows; no accuracy without rows."""
    if not rows:
        return {
            "accuracy": None,
            "n": 0,
            "right": 0,
            "chance": None,
            "stderr": None,
            "kinds": {},
        }
    return accuracy_report(
        [row[name] == row["answer"] for row in rows],
        [row["video"] for row in rows],
        [row["options"] for row in rows],
        [row["kind"] for row in rows],
    )
