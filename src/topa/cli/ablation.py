"""topa ablate: what a part of the method is worth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from topa.cli.evaluation_options import (
    AblationFolderOption,
    AlignConfigOption,
    DataOption,
    EvalMethodOption,
    FeaturesOption,
    KindArgument,
    LimitOption,
    NameArgument,
    SplitOption,
    TrainOption,
    TrainSettingOption,
    TrainSplitOption,
    ValuesOption,
    VideosOption,
)
from topa.cli.terminal import (
    CheckpointOption,
    JsonOption,
    MemoryOption,
    print_json,
    say,
    show_progress,
)
from topa.eval.names import AblationName

if TYPE_CHECKING:
    from topa.eval.ablation import Arm
    from topa.eval.jobs import Job, Task
    from topa.eval.log import Progress


def ablate(
    kind: KindArgument,
    name: NameArgument = "heldout",
    data: DataOption = None,
    split: SplitOption = None,
    train_split: TrainSplitOption = "train",
    train: TrainOption = None,
    videos: VideosOption = None,
    features: FeaturesOption = None,
    method: EvalMethodOption = None,
    values: ValuesOption = None,
    config: AlignConfigOption = None,
    set_: TrainSettingOption = None,
    limit: LimitOption = None,
    out: AblationFolderOption = None,
    checkpoint: CheckpointOption = "embedded",
    memory: MemoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate with a part of the method changed.

    Writes a table and a plot with errors.

    KIND is frames, projection (with and without Eq. 2, and the mean shift where --memory was
    built with one), blind, tasks (pre-aligning with and without multiple choice), scoring
    (every way of choosing), memory-size, or data-size (fine-tuning on 1%, 10% and 100% of the
    data, pre-aligned against from scratch). A stopped ablation goes on where it was.

    \b
    topa ablate scoring
    topa ablate projection questions.jsonl --videos clips/
    topa ablate blind nextqa --data nextqa/
    topa ablate tasks --config configs/embedded.yaml --set train.minutes=20
    topa ablate data-size nextqa --data nextqa/ --features nextqa/clipvitl14.pth
    topa ablate data-size heldout --train mine.jsonl --set train.max_steps=60
    """
    from dataclasses import replace

    from topa.eval.ablation import summarise_arms
    from topa.eval.charts import check_charts, tabulate_ablation, write_ablation
    from topa.eval.jobs import Job, read_task

    check_charts()
    numbers = _numbers(values)
    job = Job(
        name=name,
        data=data,
        split=split,
        videos=videos,
        features=features,
        method=method,
        # Without anything to see, a blind ablation is the blind run alone.
        blind=kind == "blind" and name != "heldout" and videos is None and features is None,
        limit=limit,
        checkpoint=checkpoint,
        memory=memory,
    )
    task = read_task(job)
    training = replace(job, name=train or name, split=None if train else train_split, limit=None)
    folder = out or Path("runs") / f"ablate-{kind}"
    with show_progress("questions") as progress:
        arms = _run(kind, job, task, numbers, training, config, set_ or [], folder, progress)
    summary = summarise_arms(kind, arms)
    write_ablation(summary, folder)
    if as_json:
        print_json(summary)
        return
    typer.echo(tabulate_ablation(summary))
    typer.echo(f"Table, plot and data: {folder}/ablation.md, .png, .json")


def _run(
    kind: AblationName,
    job: Job,
    task: Task,
    numbers: list[int] | None,
    training: Job,
    config: Path | None,
    settings: list[str],
    out: Path,
    progress: Progress,
) -> list[Arm]:
    from topa.errors import ConfigError
    from topa.eval.ablation import run_evaluation_arms
    from topa.eval.jobs import read_task
    from topa.eval.trained_ablation import run_data_arms, run_task_arms

    if kind == "tasks":
        return run_task_arms(
            job, task, config=config, settings=settings, out=out, say=say, progress=progress
        )
    if kind == "data-size":
        if training.name == "heldout":
            raise ConfigError(
                "the bundled Tideos have no split to fine-tune on",
                where="data-size",
                mend="Name other questions with --train, or a benchmark such as nextqa.",
            )
        return run_data_arms(
            job,
            task,
            read_task(training),
            training,
            settings=settings,
            shares=numbers,
            out=out,
            say=say,
            progress=progress,
        )
    return run_evaluation_arms(kind, job, task, values=numbers, out=out, say=say, progress=progress)


def _numbers(text: str | None) -> list[int] | None:
    """Return numbers parted by commas.

    Raises:
        BadParameter: Something else.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"numbers parted by commas are needed, not {text!r}")
    return [int(part) for part in parts]
