"""The paper's ablations, one command each: what a part of the method is worth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from topa.answer import Topa
from topa.data.questions import VideoQuestion
from topa.errors import ConfigError
from topa.eval.choosing import choose
from topa.eval.comparison import compare_rows
from topa.eval.jobs import Job, Task, open_job
from topa.eval.log import PredictionLog, Progress, Row
from topa.eval.names import EVAL_METHODS, AblationName, EvalMethod
from topa.eval.results import Report, make_report
from topa.eval.run import Evaluation
from topa.features.memory import Memory

QUESTIONS = {
    "frames": "How many frames does it need?",
    "projection": "What is the projection through the memory (Eq. 2) worth?",
    "blind": "What does the video add to the LLM's own guess?",
    "tasks": "What is training on multiple choice worth?",
    "scoring": "Which way of choosing an option is best?",
    "memory-size": "How large must the memory be?",
    "data-size": "Is pre-alignment still worth it where there are videos to fine-tune on?",
}
FRAMES = (1, 2, 5, 10)
MEMORY_SIZES = (100, 1000)

Say = Callable[[str], None]


@dataclass(frozen=True)
class Arm:
    """One setting of an ablation, evaluated.

    Attributes:
        name: The setting.
        report: Its figures.
    """

    name: str
    report: Report


def run_evaluation_arms(
    name: AblationName,
    job: Job,
    task: Task,
    *,
    values: Sequence[int] | None = None,
    out: Path,
    say: Say,
    progress: Progress | None = None,
) -> list[Arm]:
    """Evaluate one checkpoint under every setting of an ablation that needs no training.

    Args:
        name: frames, projection, blind, scoring or memory-size.
        job: What to evaluate, and on what.
        task: What the job asks.
        values: Numbers of frames or of memory rows.
        out: Folder; each setting has one of its own in it and is gone on with.
        say: Called before each setting.
        progress: Called as the work goes on.

    Raises:
        ConfigError: The ablation cannot be made with these settings.
    """
    check_task(name, job, task)
    topa = Topa.from_pretrained(job.checkpoint, memory=job.memory)
    if name == "scoring":
        return _scoring_arms(topa, job, task, out, say, progress)
    arms = []
    for label, changed, model in _variants(name, job, topa, values):
        say(f"{name}: {label}")
        arms.append(Arm(label, evaluate_arm(model, changed, task, out / _folder(label), progress)))
    return arms


def check_task(name: AblationName, job: Job, task: Task) -> None:
    """Refuse what an ablation cannot be made on.

    Raises:
        ConfigError: Captions, or text features where image features are needed.
    """
    if not all(isinstance(item, VideoQuestion) for item in task.items):
        raise ConfigError("ablations are made on questions with options", where=task.title)
    if name in ("projection", "memory-size") and job.videos is None and job.features is None:
        raise ConfigError(
            "text features are not projected, there is nothing to compare",
            where=name,
            mend="Name --videos or --features.",
        )
    if name != "blind" and job.blind:
        raise ConfigError("a blind run has none of this", where=name, mend="Leave out --blind.")


def _variants(
    name: AblationName, job: Job, topa: Topa, values: Sequence[int] | None
) -> Iterator[tuple[str, Job, Topa]]:
    """Yield (name, job, model) of every setting."""
    if name == "frames":
        most = topa.model.config.num_frames
        for count in values or [n for n in FRAMES if n < most] + [most]:
            label = "1 frame" if count == 1 else f"{count} frames"
            yield label, replace(job, num_frames=count), topa
    elif name == "projection":
        memory = topa.memory
        if memory is not None and memory.image_mean is not None:
            every = torch.arange(len(memory))
            softmax = replace_memory(topa, take_rows(memory, every, image_mean=None))
            yield "with projection", job, softmax
            yield "mean shift", job, topa
        else:
            yield "with projection", job, topa
        yield "without", replace(job, use_memory=False), topa
    elif name == "blind":
        if job.videos or job.features or job.name == "heldout":
            yield "seeing", job, topa
        yield "blind", replace(job, blind=True, context=False), topa
    else:
        memory = topa.memory
        if memory is None:
            raise ConfigError("this checkpoint has no memory", where="memory-size")
        for size in [n for n in values or MEMORY_SIZES if n < len(memory)]:
            yield f"{size:,} rows", job, replace_memory(topa, sample_memory(memory, size))
        yield f"{len(memory):,} rows (all)", job, topa


def sample_memory(memory: Memory, size: int, seed: int = 0) -> Memory:
    """Return a memory of `size` rows drawn without replacement, in their order."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(memory), generator=draw)[:size].sort().values
    return take_rows(memory, rows, memory.image_mean)


def take_rows(memory: Memory, rows: torch.Tensor, image_mean: torch.Tensor | None) -> Memory:
    """Return a memory of some rows [n] of another, and the mean of images [d] of a mean shift."""
    return Memory(
        memory.rows(rows),
        [memory.captions[i] for i in rows.tolist()],
        memory.fingerprint,
        memory.temperature,
        storage=memory.storage,
        image_mean=image_mean,
    )


def replace_memory(topa: Topa, memory: Memory) -> Topa:
    """Return the same model with another memory."""
    return Topa(topa.model, topa.builder, topa.encoder, memory)


def evaluate_arm(
    topa: Topa, job: Job, task: Task, folder: Path, progress: Progress | None
) -> Report:
    """Evaluate one setting; what its folder holds already is not done again."""
    opened = open_job(job, task, topa)
    evaluation = opened.evaluation
    assert isinstance(evaluation, Evaluation)
    log = PredictionLog(folder, evaluation.settings)
    evaluation.answer(log, progress=progress)
    rows = log.gather(opened.ids)
    assert rows is not None
    return evaluation.report(rows, 0.0, 0)


def _scoring_arms(
    topa: Topa, job: Job, task: Task, out: Path, say: Say, progress: Progress | None
) -> list[Arm]:
    """Evaluate all methods: three passes measure what seven of them compare."""
    arms: dict[EvalMethod, Arm] = {}
    measured: tuple[tuple[EvalMethod, tuple[EvalMethod, ...]], ...] = (
        (
            "combined",
            (
                "likelihood-raw",
                "likelihood-normalised",
                "likelihood-pmi",
                "similarity",
                "combined",
            ),
        ),
        ("selection", ("selection",)),
        ("generation", ("generation",)),
    )
    options = {item.qid: item.options for item in task.items if isinstance(item, VideoQuestion)}
    for method, given in measured:
        say(f"scoring: {method}")
        changed = replace(job, method=method, context=True)
        report = evaluate_arm(topa, changed, task, out / method, progress)
        for other in given:
            found = report if other == method else _choose_again(report, other, options)
            arms[other] = Arm(other, found)
    return [arms[method] for method in EVAL_METHODS if method in arms]


def _choose_again(report: Report, method: EvalMethod, options: dict[str, list[str]]) -> Report:
    """Return what another method makes of the same measures."""
    rows: list[Row] = []
    for row in report.predictions:
        found = row.get("measures")
        changed = dict(row)
        if found:
            predicted, probabilities, reason = choose(method, found, options[row["id"]])
            changed |= {"predicted": predicted, "probabilities": probabilities, "reason": reason}
            if method != "similarity":
                changed["blind"] = choose(method, found, options[row["id"]], blind=True)[0]
        rows.append(changed)
    settings = {**report.settings, "method": method}
    return make_report(settings, report.title, rows, 0.0, 0, context=True, expected=report.expected)


def summarise_arms(name: AblationName, arms: Sequence[Arm]) -> dict[str, Any]:
    """Return an ablation as data: each setting with its figures and its paired difference.

    Args:
        name: Of the ablation.
        arms: Its settings, on the same questions.
    """
    rows = []
    for i, arm in enumerate(arms):
        report, base = arm.report, arms[_reference(name, i, arms)]
        difference = None
        if arm is not base:
            (difference,) = compare_rows(base.report.predictions, report.predictions)["metrics"]
        rows.append(
            {
                "setting": arm.name,
                "accuracy": report.accuracy,
                "stderr": report.stderr,
                "n": report.n,
                "chance": report.chance,
                "baselines": {
                    key: {"accuracy": row["accuracy"], "stderr": row["stderr"]}
                    for key, row in report.baselines.items()
                },
                "failures": len(report.failures),
                "difference": difference,
            }
        )
    return {
        "ablation": name,
        "question": QUESTIONS[name],
        "title": base.report.title,
        "expected": base.report.expected,
        "method": "each by itself" if name == "scoring" else base.report.method,
        "reference": "from scratch, as much data" if name == "data-size" else base.name,
        "fingerprints": base.report.fingerprints,
        "commit": base.report.commit,
        "rows": rows,
    }


def _reference(name: AblationName, index: int, arms: Sequence[Arm]) -> int:
    """Return the index of the setting that another one is compared with."""
    if name == "data-size":
        return index | 1  # pairs: pre-aligned, then from scratch on the same data
    if name == "scoring":
        return [arm.name for arm in arms].index("selection")  # the paper's way
    return 0 if name in ("projection", "blind", "tasks") else len(arms) - 1


def _folder(label: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in label).strip("-").lower()
