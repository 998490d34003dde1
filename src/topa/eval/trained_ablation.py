"""The ablations that train: which tasks, and fine-tuning with and without pre-alignment."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from topa.answer import Topa
from topa.config import AlignConfig, FinetuneConfig, load_config
from topa.data.questions import VideoQuestion
from topa.errors import ConfigError
from topa.eval.ablation import Arm, Say, check_task, evaluate_arm
from topa.eval.jobs import Job, Task, open_job
from topa.eval.log import Progress
from topa.eval.run import Evaluation
from topa.train.align import align
from topa.train.finetune import finetune

SHARES = (1, 10, 100)  # percent of the videos, as in the paper

# Tasks that show all options of a question, as letters (paper) or as texts that compete.
MULTIPLE_CHOICE = ("choice", "contrast")


def run_task_arms(
    job: Job,
    task: Task,
    *,
    config: Path | None,
    settings: Sequence[str] = (),
    out: Path,
    say: Say,
    progress: Progress | None = None,
) -> list[Arm]:
    """Pre-align with and without multi-choice questions, and evaluate both.

    "With" draws the tasks of the settings (the paper's by default), "without" those of them that
    are not multiple choice, at the same weights among themselves.

    Args:
        job: What to evaluate (its checkpoint is not used).
        task: What the job asks.
        config: Settings of the pre-alignments; the defaults if None.
        settings: Changes of them, such as train.minutes=20.
        out: Folder of the runs; a stopped one is gone on with.
        say: Called before each stage.
        progress: Called as the evaluations go on.

    Raises:
        ConfigError: Settings that cannot be used, or without any task to leave out or to keep.
    """
    check_task("tasks", job, task)
    arms = []
    for label, tasks in _task_arms(load_config(AlignConfig, config, settings)).items():
        folder = out / label.replace(" ", "-")
        changes = [*settings, f"data.tasks={json.dumps(tasks)}", f"out={folder / 'run'}"]
        say(f"tasks: pre-aligning {label}")
        done = align(load_config(AlignConfig, config, changes), say=say)
        say(f"tasks: evaluating {label}")
        topa = Topa.from_pretrained(done.checkpoint)
        # Both are asked by likelihood: one of them has never seen a letter.
        method = job.method or "likelihood-pmi"
        report = evaluate_arm(topa, replace(job, method=method), task, folder / "answers", progress)
        arms.append(Arm(label, report))
    return arms


def _task_arms(config: AlignConfig) -> dict[str, dict[str, float]]:
    """Return the weights of the tasks of both arms.

    Raises:
        ConfigError: There is no multiple choice to leave out, or nothing else to keep.
    """
    drawn = {name: weight for name, weight in config.data.tasks.items() if weight > 0}
    others = {name: weight for name, weight in drawn.items() if name not in MULTIPLE_CHOICE}
    if not others or len(others) == len(drawn):
        raise ConfigError(
            f"multiple choice cannot be left out of {', '.join(drawn)}",
            where="data.tasks",
            mend=f"Name one of {' and '.join(MULTIPLE_CHOICE)}, and another task.",
        )
    return {"with multiple choice": drawn, "without": others}


def run_data_arms(
    job: Job,
    task: Task,
    training: Task,
    training_job: Job,
    *,
    settings: Sequence[str] = (),
    shares: Sequence[int] | None = None,
    out: Path,
    say: Say,
    progress: Progress | None = None,
) -> list[Arm]:
    """Fine-tune the checkpoint, and its shape from scratch, on parts of the data; evaluate each.

    Args:
        job: What to evaluate; its checkpoint is the pre-aligned one.
        task: What the job asks.
        training: Questions to fine-tune on.
        training_job: Where their videos or features are.
        settings: Changes of the fine-tuning settings, such as train.minutes=20.
        shares: Percent of the videos to train on.
        out: Folder of the runs; a stopped one is gone on with.
        say: Called before each stage.
        progress: Called as the evaluations go on.

    Raises:
        ConfigError: A video to be evaluated is among those to train on, the checkpoint was
            pre-aligned on these Tideos already, or settings that cannot be used.
    """
    check_task("data-size", job, task)
    questions = [item for item in training.items if isinstance(item, VideoQuestion)]
    opened = open_job(training_job, training)
    assert isinstance(opened.evaluation, Evaluation)
    _check_new(task, training, training_job, opened.evaluation.topa)
    load = opened.evaluation.source.load
    arms = []
    for share in shares or SHARES:
        part = draw_videos(questions, share)
        for label, scratch in (("pre-aligned", False), ("from scratch", True)):
            name = f"{share}% of the data, {label}"
            folder = out / f"{share}-{label.replace(' ', '-')}"
            changes = [f"start={job.checkpoint}", *settings, f"from_scratch={scratch}".lower()]
            config = load_config(FinetuneConfig, None, [*changes, f"out={folder / 'run'}"])
            say(f"data-size: {name}, {len(part)} questions")
            done = finetune(config, part, load, say=say)
            topa = Topa.from_pretrained(done.checkpoint)
            arms.append(Arm(name, evaluate_arm(topa, job, task, folder / "answers", progress)))
    return arms


def _check_new(task: Task, training: Task, training_job: Job, topa: Topa) -> None:
    """Refuse to train on what is evaluated, or on what the checkpoint has learned from already.

    Raises:
        ConfigError: It is.
    """
    shared = {item.video for item in task.items} & {item.video for item in training.items}
    if shared:
        raise ConfigError(
            f"{len(shared)} videos are both trained on and evaluated, such as {min(shared)}",
            where="data-size",
            mend="Name other questions to train on: --train, or --train-split.",
        )
    if training_job.name in topa.model.config.tideos:
        raise ConfigError(
            "the checkpoint was pre-aligned on these Tideos: there is no start without them",
            where=f"data-size, {training_job.name}",
            mend="Name a checkpoint that was not, or other questions with --train.",
        )


def draw_videos(
    questions: Sequence[VideoQuestion], percent: int, seed: int = 0
) -> list[VideoQuestion]:
    """Return the questions of a share of the videos; smaller shares lie within larger ones.

    Raises:
        ConfigError: Not between 1 and 100.
    """
    if not 1 <= percent <= 100:
        raise ConfigError(f"{percent}% of the data", where="values", mend="Give 1 to 100.")
    videos = sorted({question.video for question in questions})
    random.Random(seed).shuffle(videos)
    kept = set(videos[: max(1, len(videos) * percent // 100)])
    return [question for question in questions if question.video in kept]
