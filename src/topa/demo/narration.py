"""Telling in the terminal what the demonstration does: stages, bars, and how long they took."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text


class Narrator:
    """Prints one plain line before each stage, and measures the stages.

    Args:
        console: Where to print.
        stages: How many stages there will be.

    Attributes:
        seconds: How long each stage took, by name.
    """

    def __init__(self, console: Console, stages: int):
        self.console, self.stages = console, stages
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str, line: str) -> Iterator[None]:
        """Announce a stage, and measure the block as this stage."""
        number = len(self.seconds) + 1
        head = Text(f"\n[{number}/{self.stages}] ", "bold cyan")
        self.console.print(head + Text(line, "bold"), soft_wrap=True)
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 1)

    def say(self, line: str) -> None:
        """Print one line of a stage; nothing in it is read as markup, no path in it is broken."""
        self.console.print(Text(line), soft_wrap=True)

    @contextlib.contextmanager
    def bar(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show a bar, and yield a function that takes the number of items done so far."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeElapsedColumn(), console=self.console) as progress:
            task = progress.add_task(label, total=total)
            yield lambda done: progress.update(task, completed=done)
