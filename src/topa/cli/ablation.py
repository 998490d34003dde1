"""topa ablate: what a part of the method is worth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from topa.cli.evaluation import EvalMethodName
from topa.cli.terminal import CheckpointOption, JsonOption, print_json, say, show_progress

if TYPE_CHECKING:
    from topa.eval.ablation import Arm
    from topa.eval.jobs import Job, Task
    from topa.eval.log import Progress

# The names of topa.eval.ablation.ABLATIONS, here without loading torch.
AblationName = Literal[
    "frames", "projection", "blind", "tasks", "scoring", "memory-size", "data-size"
]


def ablate(
    kind: Annotated[AblationName, typer.Argument(metavar="KIND", help="What is taken away.")],
    name: Annotated[
        str, typer.Argument(metavar="NAME|FILE", help="A benchmark or file, as for evaluate.")
    ] = "heldout",
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="Folder of the benchmark's files.")
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="Part of the benchmark.")] = None,
    train_split: Annotated[
        str, typer.Option("--train-split", help="data-size: the part to fine-tune on.")
    ] = "train",
    videos: Annotated[
        Path | None, typer.Option("--videos", metavar="DIR", help="Folder of the videos.")
    ] = None,
    features: Annotated[
        Path | None, typer.Option("--features", metavar="PATH", help="Image features instead.")
    ] = None,
    method: Annotated[
        EvalMethodName | None,
        typer.Option("--method", help="How options are scored.  [default: the checkpoint's own]"),
    ] = None,
    values: Annotated[
        str | None,
        typer.Option(
            "--values",
            metavar="N,N",
            help="Numbers of frames, of memory rows, or percent of the data.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="YAML", help="tasks: settings of the pre-alignments."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A training setting; repeat it."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Only the first so many, as a trial.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Folder of the runs.  [default: runs/ablate-KIND]"
        ),
    ] = None,
    checkpoint: CheckpointOption = "embedded",
    as_json: JsonOption = False,
) -> None:
    """Evaluate with a part of the method changed, and write a table and a plot with errors.

    KIND is frames, projection (with and without Eq. 2), blind, tasks (pre-aligning with and
    without multiple choice), scoring (every way of choosing), memory-size, or data-size
    (fine-tuning on 1%, 10% and 100% of the data, pre-aligned against from scratch).
    A stopped ablation goes on where it was.

    \b
    topa ablate scoring
    topa ablate projection questions.jsonl --videos clips/
    topa ablate blind nextqa --data nextqa/
    topa ablate tasks --config configs/embedded.yaml --set train.minutes=20
    topa ablate data-size nextqa --data nextqa/ --features nextqa/clipvitl14.pth
    """
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
    )
    task = read_task(job)
    folder = out or Path("runs") / f"ablate-{kind}"
    with show_progress("questions") as progress:
        arms = _run(kind, job, task, numbers, train_split, config, set_ or [], folder, progress)
    summary = summarise_arms(kind, arms, 0 if kind in ("projection", "blind", "tasks") else -1)
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
    train_split: str,
    config: Path | None,
    settings: list[str],
    out: Path,
    progress: Progress,
) -> list[Arm]:
    from dataclasses import replace

    from topa.errors import ConfigError
    from topa.eval.ablation import run_evaluation_arms
    from topa.eval.jobs import read_task
    from topa.eval.trained_ablation import run_data_arms, run_task_arms

    if kind == "tasks":
        return run_task_arms(
            job, task, config=config, settings=settings, out=out, say=say, progress=progress
        )
    if kind == "data-size":
        if job.name == "heldout":
            raise ConfigError(
                "the bundled Tideos are what was pre-aligned on; fine-tuning needs other data",
                where="data-size",
                mend="Name a benchmark with a training split, such as nextqa.",
            )
        training_job = replace(job, split=train_split, limit=None)
        return run_data_arms(
            job,
            task,
            read_task(training_job),
            training_job,
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
