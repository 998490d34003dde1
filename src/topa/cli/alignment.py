"""topa align: pre-align an LLM with Tideos."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from topa.cli.terminal import JsonOption, out, print_json, say


def align(
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings that override the file's."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE.yaml", help="Settings; the defaults without it."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Pre-align an LLM with Tideos.

    Run it again, with the same settings, to go on where it stopped.

    \b
    topa align --config configs/embedded.yaml train.minutes=20 out=runs/first
    """
    from topa.config import AlignConfig, load_config

    resolved = load_config(AlignConfig, config, settings or [])
    from topa.train.align import align as run

    say(f"Run directory: {resolved.out}")
    # The Trainer writes its log lines to stdout, which is for the result.
    with contextlib.redirect_stdout(sys.stderr):
        result = run(resolved, say=say)
    metrics = {name.removeprefix("eval_"): value for name, value in result.metrics.items()}
    if as_json:
        print_json(
            {
                "run": resolved.out,
                "checkpoint": str(result.checkpoint),
                "steps": result.steps,
                "seconds": result.seconds,
                "metrics": metrics,
            }
        )
        return
    typer.echo(f"Checkpoint: {result.checkpoint} ({result.steps} steps, {result.seconds:.0f} s)")
    for name, value in metrics.items():
        out.print(f"  validation {name.replace('_', ' ')}: {value:.1%}", markup=False)
