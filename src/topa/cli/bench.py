"""topa bench: speed against the paper's own way."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from topa.cli.terminal import JsonOption, check_folder_of, out, print_json, say


def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[align|choice|caption|memory|features|video]...",
            help="Which; all six without any.",
        ),
    ] = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Pairs of each.")] = 5,
    llm: Annotated[
        str, typer.Option("--llm", metavar="embedded|NAME|DIR", help="LLM of the first three.")
    ] = "embedded",
    save: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE.json", help="Write it here and as FILE.md."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure speed against the paper's own way.

    That way is a plain re-implementation. Both get the same weights and inputs and must give
    the same results; then they are timed in turns. What counts is the median of the ratios of
    pairs.

    \b
    topa bench
    topa bench choice memory --repeats 9 --out speed.json
    """
    check_folder_of(save)
    from topa.bench.run import NAMES, make_table, run_bench

    report = run_bench(names or NAMES, repeats=repeats, llm=llm, say=say, save=save)
    if as_json:
        print_json(report)
    else:
        out.print(make_table(report), markup=False, soft_wrap=True)
