"""topa doctor and topa demo: what this machine has, and everything at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from topa.cli.terminal import JsonOption, check_video, out, print_json

DEMO_MINUTES = 20.0
MARKS = {"ok": "green", "absent": "dim", "missing": "red"}  # absent: an extra that may be


def doctor(as_json: JsonOption = False) -> None:
    """See what this machine has of what topa needs.

    The exit code is 1 if something that cannot be done without is missing; extras may be absent.

    \b
    topa doctor
    """
    from topa.doctor import diagnose

    checks = diagnose()
    ok = all(check.ok for check in checks)
    if as_json:
        print_json({"ok": ok, "checks": [asdict(check) for check in checks]})
    else:
        for check in checks:
            mark = ("ok" if check.mend is None else "absent") if check.ok else "missing"
            out.print(f"{mark:7}", style=MARKS[mark], end=" ")
            out.print(f"{check.name}: {check.detail}", markup=False, soft_wrap=True)
            if check.mend:
                out.print(f"        {check.mend}", markup=False, soft_wrap=True)
    if not ok:
        raise typer.Exit(1)


class DemoCommand(TyperCommand):
    """`--train` may stand without minutes, which Typer's options cannot do by themselves."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line after putting in the minutes that were left out."""
        return super().parse_args(ctx, fill_minutes(args))


def fill_minutes(args: Sequence[str]) -> list[str]:
    """Return the arguments with the default minutes after a `--train` that has none."""
    filled: list[str] = []
    for i, arg in enumerate(args):
        filled.append(arg)
        if arg == "--train" and (i + 1 == len(args) or args[i + 1].startswith("-")):
            filled.append(f"{DEMO_MINUTES:g}")
    return filled


def demo(
    video: Annotated[
        Path | None,
        typer.Option(
            "--video",
            metavar="FILE",
            callback=check_video,
            help="A video of yours; a built-in one without.",
        ),
    ] = None,
    train: Annotated[
        float | None,
        typer.Option(
            "--train",
            metavar="[MINUTES]",
            help=f"Pre-align a model first, for so long ({DEMO_MINUTES:g} minutes if not said).",
        ),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Measure on all held-out questions, not on some.")
    ] = False,
    save: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder of the report.")
    ] = None,
) -> None:
    """Show the way from textual videos to a real one.

    \b
    topa demo
    topa demo --video clip.mp4 --train 20
    """
    from topa.demo import run_demo

    arguments: dict[str, Any] = {} if save is None else {"out": save}
    run_demo(video=video, train_minutes=train, full=full, **arguments)
