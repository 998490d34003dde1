"""topa benchmarks: which there are, and what is missing in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from topa.cli.terminal import JsonOption, out, print_error, print_json


def list_benchmarks(as_json: JsonOption = False) -> None:
    """List the benchmarks that `topa evaluate` reads.

    \b
    topa benchmarks list
    """
    from topa.eval.benchmarks import BENCHMARKS

    if as_json:
        print_json(
            [
                {
                    "name": found.name,
                    "title": found.title,
                    "task": found.task,
                    "metric": found.metric,
                    "splits": {
                        name: {"files": list(split.files), "count": split.count}
                        for name, split in found.splits.items()
                    },
                    "source": found.source,
                    "licence": found.licence,
                    "paper": found.paper,
                    "features": list(found.features),
                    "notes": found.notes,
                }
                for found in BENCHMARKS.values()
            ]
        )
        return
    for found in BENCHMARKS.values():
        splits = ", ".join(
            name if split.count is None else f"{name} ({split.count:,})"
            for name, split in list(found.splits.items())[:4]
        )
        more = len(found.splits) - 4
        typer.echo(f"{found.name}: {found.title}; {found.metric}")
        typer.echo(f"  splits:  {splits}{f' and {more} more' if more > 0 else ''}")
        typer.echo(f"  get it:  {found.source}")
        typer.echo(f"  licence: {found.licence}")
        if found.notes:
            typer.echo(f"  note:    {found.notes}")


def check_benchmarks(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Holds the files, or one folder per benchmark.")
    ],
    name: Annotated[
        list[str] | None, typer.Option("--name", help="Only this benchmark; repeat it.")
    ] = None,
    videos: Annotated[
        Path | None,
        typer.Option("--videos", metavar="DIR", help="Count which videos are there, too."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a folder has of each benchmark, and what it lacks.

    What is missing is named with the place to get it from.

    Exit code 1 if nothing usable is there, or a file is there that cannot be read.

    \b
    topa benchmarks check data/
    topa benchmarks check data/nextqa --name nextqa --videos data/nextqa/NExTVideo
    """
    from topa.eval.benchmarks.check import check_folder

    rows = check_folder(folder, name or None, videos)
    if as_json:
        print_json(rows)
    else:
        table = Table("benchmark", "split", "state", "what to know", box=None, pad_edge=False)
        for row in rows:
            table.add_row(row["benchmark"], row["split"], row["state"], row["message"])
        out.print(table, markup=False)
    if any(row["state"] == "broken" for row in rows) or all(
        row["state"] == "missing" for row in rows
    ):
        raise typer.Exit(1)


def write_lmms_task(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the benchmark, such as star.")],
    folder: Annotated[
        Path, typer.Argument(metavar="OUT", help="Where to write, for `lmms-eval --include_path`.")
    ],
    videos: Annotated[Path, typer.Option("--videos", metavar="DIR", help="Folder of the videos.")],
    data: Annotated[
        Path, typer.Option("--data", metavar="DIR", help="Folder of the benchmark's files.")
    ] = Path(),
    split: Annotated[str | None, typer.Option("--split", help="Part of the benchmark.")] = None,
    subtitles: Annotated[
        bool, typer.Option("--subtitles", help="Read subtitles along (TVQA).")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a benchmark as a task of lmms-eval.

    For STAR, TVQA and MSR-VTT captions, which it lacks; the others can be written too.

    \b
    topa benchmarks lmms star tasks/ --data star/ --videos Charades_v1_480/
    lmms-eval --model topa --include_path tasks/ --tasks topa_star_val
    """
    from topa.errors import ConfigError
    from topa.eval.benchmarks import find_benchmark
    from topa.eval.lmms_tasks import write_task

    benchmark = find_benchmark(name)
    if benchmark.name == "heldout":
        raise ConfigError("Tideos have no videos to show", where=name)
    split = split or benchmark.default_split
    benchmark.split(split)
    items = benchmark.read(data, split, subtitles)
    task = write_task(benchmark, split, items, videos, folder)
    if as_json:
        print_json(
            {
                "task": task.name,
                "include_path": str(task.folder),
                "documents": task.documents,
                "missing": task.missing,
            }
        )
        return
    if task.missing:
        print_error(
            f"{len(task.missing)} videos are not there, their documents are left out, so that N is"
            f" {task.documents} and not {len(items)}; the first is {task.missing[0]}"
        )
    typer.echo(f"Task {task.name} with {task.documents} documents in {task.folder}. Run:")
    typer.echo(f"lmms-eval --model topa --include_path {task.folder} --tasks {task.name}")
