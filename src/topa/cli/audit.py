"""topa textvid audit: what a model answers blind, and what with the frames before it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from topa.cli.terminal import JsonOption, out, print_json, say
from topa.cli.textvid import TideosArgument
from topa.cli.writing import (
    BudgetOption,
    ConcurrencyOption,
    KeyOption,
    OutOption,
    PriceInOption,
    PriceOutOption,
    TimeoutOption,
    UrlOption,
    check_pace,
    make_backend,
    show_run,
    write_settings,
)

if TYPE_CHECKING:
    from topa.tideo.audit import AuditItem, AuditTask
    from topa.tideo.status import RunStatus


def audit(
    file: TideosArgument,
    folder: OutOption,
    model: Annotated[
        str,
        typer.Option("--model", help="Who answers; `embedded` is SmolLM2-135M, slow and weak."),
    ],
    base_url: UrlOption = None,
    key_variable: KeyOption = "OPENAI_API_KEY",
    sample: Annotated[
        int | None, typer.Option("--sample", min=1, help="Ask about N Tideos drawn by chance.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the draw.")] = 0,
    view: Annotated[
        Literal["both", "blind", "frames"], typer.Option("--view", help="How to ask.")
    ] = "both",
    concurrency: ConcurrencyOption = 64,
    budget: BudgetOption = None,
    price_in: PriceInOption = 0.0,
    price_out: PriceOutOption = 0.0,
    timeout: TimeoutOption = 180.0,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Of one reply.")] = 200,
    as_json: JsonOption = False,
) -> None:
    """Ask a model the questions, blind and with the frames as text.

    A question that is answered blind needs no video; one that a reader of the frames gets
    wrong may be wrong itself. Writes answers.jsonl and audit.json; can be stopped and run
    again. Replies that name no option are wrong, and counted.

    \b
    topa textvid audit runs/textvid --model qwen3 --base-url http://localhost:8000/v1 \\
      --sample 200 --out runs/audit
    """
    import random

    from topa.tideo.audit import VIEWS, AuditTask, make_items
    from topa.tideo.backends import EndpointSettings
    from topa.tideo.generate import Run
    from topa.tideo.pace import Pace
    from topa.tideo.textvid import load_tideos

    pace = Pace(concurrency=concurrency, budget=budget, price_in=price_in, price_out=price_out)
    check_pace(pace)
    tideos = load_tideos(file)
    if sample is not None and sample < len(tideos):
        tideos = random.Random(seed).sample(tideos, sample)
    task, items = (
        AuditTask(model, max_tokens),
        make_items(tideos, VIEWS if view == "both" else (view,)),
    )
    backend = make_backend(EndpointSettings(model, base_url, key_variable, timeout))
    write_settings(folder, {"model": model, "base_url": base_url, "file": file, "sample": sample})
    with show_run(len(items)) as progress:
        status = Run(items, task, backend, folder, pace).execute(progress)
    found = _write_audit(folder, task, items, {"file": file, "tideos": len(tideos)}, status)
    if as_json:
        print_json(found)
    else:
        _print_audit(found)
    if status.stopped:
        say(f"Stopped: {status.stopped}. Run the same command again to go on.")
    if status.done < len(items):
        raise typer.Exit(130 if status.stopped == "interrupted" else 1)


def _write_audit(
    folder: Path,
    task: AuditTask,
    items: list[AuditItem],
    about: dict[str, Any],
    status: RunStatus,
) -> dict[str, Any]:
    """Write answers.jsonl and audit.json, and return what the latter holds."""
    from topa.runs import write_json
    from topa.tideo.audit import measure, read_choices
    from topa.tideo.results import write_lines

    choices = read_choices(folder, task, items)
    write_lines(folder / "answers.jsonl", map(json.dumps, choices))
    views = measure(choices)
    found = {**about, "model": task.model, "views": views, "run": status.to_dict()}
    write_json(folder / "audit.json", found)
    return found


def _print_audit(found: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table("View", "Kind", "Right", "Chance", "Questions", "Unanswered")
    for view, kinds in found["views"].items():
        for kind, row in kinds.items():
            error = f" ± {row['error']:.1%}" if row["error"] is not None else ""
            table.add_row(
                view,
                kind,
                f"{row['accuracy']:.1%}{error}",
                f"{row['chance']:.1%}",
                str(row["n"]),
                str(row["unanswered"]),
            )
    out.print(table)
    out.print(
        f"{found['tideos']} Tideos, {found['model']}; ± is the standard error, clustered by Tideo."
    )
