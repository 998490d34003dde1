"""topa evaluate and topa compare: accuracy or caption scores, and whether two runs differ."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from topa.cli.evaluation_options import (
    CaptionsOption,
    ContextOption,
    DataOption,
    EvalMethodOption,
    FeaturesOption,
    LimitOption,
    NameArgument,
    ProcessesOption,
    RunOption,
    ShardOption,
    SplitOption,
    SubtitlesOption,
    VideosOption,
)
from topa.cli.terminal import (
    LOADING,
    BlindOption,
    CheckpointOption,
    FramesOption,
    JsonOption,
    MemoryOption,
    NoMemoryOption,
    check_folder_of,
    out,
    print_failures,
    print_json,
    say,
    show_progress,
)

if TYPE_CHECKING:
    from topa.eval.captions import CaptionReport
    from topa.eval.jobs import Job
    from topa.eval.results import Report


def evaluate(
    name: NameArgument,
    data: DataOption = None,
    split: SplitOption = None,
    videos: VideosOption = None,
    features: FeaturesOption = None,
    method: EvalMethodOption = None,
    blind: BlindOption = False,
    context: ContextOption = True,
    subtitles: SubtitlesOption = False,
    captions: CaptionsOption = False,
    no_memory: NoMemoryOption = False,
    memory: MemoryOption = None,
    frames: FramesOption = None,
    limit: LimitOption = None,
    save: RunOption = None,
    processes: ProcessesOption = 1,
    shard: ShardOption = None,
    checkpoint: CheckpointOption = "embedded",
    as_json: JsonOption = False,
) -> None:
    """Measure accuracy on questions, or score captions.

    Every question of the file counts: a video that cannot be read, a prompt that is too long
    and an answer that names no option are wrong, and are listed. Beside the accuracy stand
    chance, the blind LLM, similarity without an LLM, and the standard error by video.

    \b
    topa evaluate heldout
    topa evaluate questions.jsonl --videos clips/ --out runs/clips
    topa evaluate nextqa --data nextqa/ --blind
    topa evaluate star --data star/ --features star/clipvitl14.pth --checkpoint runs/mine/final
    topa evaluate msrvtt --data msrvtt/ --videos msrvtt/videos --processes 4 --out runs/msrvtt
    """
    from topa.eval.jobs import Job

    job = Job(
        name=name,
        data=data,
        split=split,
        subtitles=subtitles,
        videos=videos,
        features=features,
        method=method,
        blind=blind,
        context=context and not blind,
        use_memory=not no_memory,
        num_frames=frames,
        captions=captions,
        limit=limit,
        checkpoint=checkpoint,
        memory=memory,
    )
    _run(job, save, processes, shard, as_json)


def _run(job: Job, save: Path | None, processes: int, shard: str | None, as_json: bool) -> None:
    from topa.eval.jobs import read_task, run_job
    from topa.eval.log import WHOLE, Shard

    part = WHOLE if shard is None else Shard.parse(shard)
    task = read_task(job)
    if task.expected is not None:
        say(f"{task.title}: {task.expected}.")
    single = save if save is not None and save.suffix == ".json" else None
    folder = save if single is None else None
    check_folder_of(single)
    say(LOADING)
    with show_progress("questions") as progress:
        report = run_job(job, task, out=folder, shard=part, processes=processes, progress=progress)
    if report is None:
        typer.echo(f"Part {shard} is done; the report is written when the others are, by the last.")
        return
    if single is not None:
        report.save(single)
    if folder is not None:
        from topa.eval.pages import write_pages

        write_pages(report, folder, task.items, job.videos)
    print_failures([(item["id"], item["reason"]) for item in report.failures])
    if as_json:
        print_json(report.as_dict(predictions=False))
        return
    _print_report(report)
    if save is not None:
        typer.echo(f"Report: {single or save / 'report.html'}")


def _print_report(report: Report | CaptionReport) -> None:
    from topa.eval.results import Report

    if isinstance(report, Report):
        _print_accuracy(report)
    else:
        _print_scores(report)


def _print_accuracy(report: Report) -> None:
    """Print the figures in one row, its baselines below, and one for each kind of question."""
    baselines = list(report.baselines)
    table = Table(box=None, pad_edge=False)
    for title in ("", "accuracy", "n", "chance", *baselines, "failures"):
        table.add_column(title, justify="left" if not title else "right", no_wrap=True)
    name = f"{report.method}, blind" if report.blind else report.method
    table.add_row(
        name,
        _with_error(report.accuracy, report.stderr),
        f"{report.n}" if report.n == report.asked else f"{report.n} of {report.asked}",
        "" if report.chance is None else f"{report.chance:.1%}",
        *(_with_error(b["accuracy"], b["stderr"]) for b in report.baselines.values()),
        str(len(report.failures)),
    )
    for kind, figures in report.kinds.items():
        depth = "  " * (1 + kind.count("/"))
        table.add_row(
            f"{depth}{kind.rpartition('/')[2]}",
            _with_error(figures["accuracy"], figures["stderr"]),
            str(figures["n"]),
            f"{figures['chance']:.1%}",
            *(f"{figures[baseline]:.1%}" for baseline in baselines),
            "",
        )
    out.print(table, markup=False)
    if report.accuracy is None:
        typer.echo("The right answers are not public: the answers are in submission.json of --out.")
    typer.echo(
        f"{report.asked} questions, {report.seconds:.1f} s,"
        f" {report.questions_per_second:.2f} questions/s"
    )


def _print_scores(report: CaptionReport) -> None:
    table = Table("metric", "score", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    for name, row in report.scores.items():
        if row["score"] is None:
            table.add_row(name, f"none: {row['reason']}")
        else:
            error = "" if row["stderr"] is None else f" ± {100 * row['stderr']:.1f}"
            table.add_row(name, f"{100 * row['score']:.1f}{error}")
    out.print(table, markup=False)
    typer.echo(
        f"{report.n} videos, {len(report.failures)} failures, {report.seconds:.1f} s,"
        f" {report.videos_per_second:.2f} videos/s; scores times 100, as papers give them"
    )


def _with_error(accuracy: float | None, stderr: float | None) -> str:
    if accuracy is None:
        return "not public"
    return f"{accuracy:.1%}" if stderr is None else f"{accuracy:.1%} ± {stderr * 100:.1f}"


def compare(
    first: Annotated[
        Path, typer.Argument(metavar="A", help="A folder of `topa evaluate --out`, or its report.")
    ],
    second: Annotated[
        Path, typer.Argument(metavar="B", help="Another one, of the same questions.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Test whether two runs on the same questions differ.

    The difference of accuracies (or of caption scores) has a standard error clustered by video;
    p is that of a two-sided test, and for accuracies also McNemar's exact one.

    \b
    topa compare runs/adapter runs/lora
    """
    from topa.eval.comparison import compare_runs

    found = compare_runs(first, second)
    if as_json:
        print_json(found)
        return
    table = Table(box=None, pad_edge=False)
    for title in ("", "A", "B", "B - A", "± error", "p", "n"):
        table.add_column(title, justify="right" if title else "left", no_wrap=True)
    for row in found["metrics"]:
        table.add_row(*_comparison_row(row))
    typer.echo(f"A: {first}\nB: {second}\n")
    out.print(table, markup=False)
    for line in found["notes"]:
        typer.echo(line)


def _comparison_row(row: dict[str, Any]) -> list[str]:
    error, p = row["stderr"], row["p"]
    return [
        row["metric"],
        f"{100 * row['a']:.1f}",
        f"{100 * row['b']:.1f}",
        f"{100 * row['difference']:+.1f}",
        "" if error is None else f"{100 * error:.1f}",
        "" if p is None else f"{p:.3g}",
        str(row["n"]),
    ]
