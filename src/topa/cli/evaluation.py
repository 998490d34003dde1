"""topa evaluate: accuracy on a file of questions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from topa.cli.terminal import (
    BlindOption,
    CheckpointOption,
    FramesOption,
    JsonOption,
    MethodOption,
    NoMemoryOption,
    check_folder_of,
    out,
    print_failures,
    print_json,
    say,
    show_progress,
)

if TYPE_CHECKING:
    from topa.eval.questions import VideoQuestion
    from topa.eval.run import Report
    from topa.tideo.schema import Tideo


def evaluate(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE.jsonl",
            help="Questions; without --videos a file of Tideos, or the name heldout.",
        ),
    ],
    videos: Annotated[
        Path | None, typer.Option("--videos", metavar="DIR", help="Folder of the videos.")
    ] = None,
    method: MethodOption = None,
    blind: BlindOption = False,
    no_memory: NoMemoryOption = False,
    frames: FramesOption = None,
    save: Annotated[
        Path | None,
        typer.Option("--out", metavar="REPORT.json", help="Write figures and predictions here."),
    ] = None,
    checkpoint: CheckpointOption = "embedded",
    as_json: JsonOption = False,
) -> None:
    """Measure accuracy on questions about videos or Tideos.

    A line of FILE.jsonl holds qid, video, question, options and answer (the index of the
    right option). Questions on a video that cannot be read count as wrong and are listed.

    \b
    topa evaluate questions.jsonl --videos clips/ --out report.json
    topa evaluate heldout --blind
    """
    questions, tideos = _read(file, videos)
    check_folder_of(save)
    from topa.answer import Topa
    from topa.eval.run import evaluate as run
    from topa.eval.run import tideo_features

    say("Loading the model, its encoder and its memory.")
    topa = Topa.from_pretrained(checkpoint)
    with show_progress("videos") as progress:
        report = run(
            topa,
            questions,
            videos=videos,
            features=None if tideos is None else tideo_features(tideos, topa),
            method=method,
            blind=blind,
            use_memory=not no_memory,
            num_frames=frames,
            progress=progress,
        )
    if save is not None:
        report.save(save)
    print_failures([(item["qid"], item["reason"]) for item in report.failures])
    if as_json:
        print_json(report.as_dict(predictions=False))
        return
    _print_table(report)
    if save is not None:
        typer.echo(f"Report: {save}")


def _read(file: str, videos: Path | None) -> tuple[list[VideoQuestion], list[Tideo] | None]:
    """Return the questions, and the Tideos they are about if there are no videos.

    Raises:
        ConfigError: No folder of videos, or questions about videos without one.
        DataError: The file is missing, or a line of it is wrong.
    """
    from topa.errors import ConfigError
    from topa.eval.questions import from_tideos, read_questions
    from topa.runs import read_jsonl
    from topa.tideo.textvid import load_tideos

    if videos is not None:
        if not videos.is_dir():
            raise ConfigError("no such folder of videos", where=videos, mend="Check the path.")
        return read_questions(file), None
    if Path(file).is_file():
        _, first = next(read_jsonl(file), (0, {}))
        if "qid" in first and "frames" not in first:
            raise ConfigError(
                "these are questions about videos",
                where=file,
                mend="Name the folder of the videos with --videos.",
            )
    tideos = load_tideos(file)
    return from_tideos(tideos), tideos


def _print_table(report: Report) -> None:
    """Print the figures in one row, and one more for each kind of question."""
    table = Table(box=None, pad_edge=False)
    for title in ("", "accuracy", "n", "chance", "failures"):
        table.add_column(title, justify="left" if not title else "right", no_wrap=True)
    name = f"{report.method}, blind" if report.blind else report.method
    table.add_row(
        name,
        _with_error(report.accuracy, report.stderr),
        str(report.n),
        f"{report.chance:.1%}",
        str(len(report.failures)),
    )
    for kind, figures in report.kinds.items():
        accuracy = _with_error(figures["accuracy"], figures["stderr"])
        table.add_row(f"  {kind}", accuracy, str(figures["n"]), f"{figures['chance']:.1%}", "")
    out.print(table, markup=False)


def _with_error(accuracy: float, stderr: float | None) -> str:
    return f"{accuracy:.1%}" if stderr is None else f"{accuracy:.1%} ± {stderr * 100:.1f}"
