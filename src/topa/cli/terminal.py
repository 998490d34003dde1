"""What commands print: results on stdout, progress and problems on stderr; shared options."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LOADING = "Loading the model, its encoder and its memory."

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

# The names of topa.answer.METHODS, here without loading torch.
MethodName = Literal["likelihood", "selection", "similarity", "combined"]


def check_video(path: Path | None) -> Path | None:
    """Return a path as it is, and see that something is there before seconds of imports.

    Raises:
        VideoError: Nothing is, or nothing that can be a video.
    """
    if path is not None:
        from topa.features.video import check_path

        check_path(path)
    return path


VideoArgument = Annotated[
    Path,
    typer.Argument(
        metavar="VIDEO",
        callback=check_video,
        help="Any file that FFmpeg reads, or a folder of pictures.",
    ),
]
CheckpointOption = Annotated[
    str,
    typer.Option(
        "--checkpoint", metavar="embedded|DIR", help="The bundled one, or a folder of `topa align`."
    ),
]
MethodOption = Annotated[
    MethodName | None,
    typer.Option("--method", help="How options are scored.  [default: the checkpoint's own]"),
]
BlindOption = Annotated[
    bool, typer.Option("--blind", help="Mask the video: what does the LLM say without it?")
]
MemoryOption = Annotated[
    Path | None,
    typer.Option(
        "--memory",
        metavar="DIR",
        help="A memory of `topa memory build`.  [default: the checkpoint's own]",
    ),
]
NoMemoryOption = Annotated[
    bool, typer.Option("--no-memory", help="Do not project image features through the memory.")
]
FramesOption = Annotated[
    int | None,
    typer.Option("--frames", min=1, help="Frames to sample.  [default: as many as the model has]"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
EncoderOption = Annotated[
    str,
    typer.Option(
        "--encoder",
        metavar="embedded|NAME|DIR|open_clip:MODEL/WEIGHTS",
        help="The bundled one, a CLIP-like model by hub id or folder, or one of open_clip. Options"
        " after it: +truncate cuts long texts off instead of splitting and averaging; +bfloat16,"
        " +float16 or +float32 is the type of large operations.",
    ),
]


def silence_libraries() -> None:
    """Keep the progress bars and chatter of other libraries out of the terminal.

    Takes effect on libraries that are imported later; what the user has set stays.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # transformers, while it reads a GGUF file
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "warning")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def print_error(text: str) -> None:
    """Print a problem as one line on stderr."""
    typer.echo(f"error: {' '.join(text.split())}", err=True)


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout, never wrapped or coloured."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def say(line: str) -> None:
    """Print a line about the course of things on stderr."""
    err.print(escape(line), soft_wrap=True)


def print_failures(failures: Sequence[tuple[str, str]], most: int = 20) -> None:
    """Print what failed and why on stderr, at most so many lines."""
    for name, reason in failures[:most]:
        print_error(f"{name}: {reason}")
    if len(failures) > most:
        say(f"... and {len(failures) - most} more.")


@contextlib.contextmanager
def show_progress(stage: str) -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar on stderr, if that is a terminal, for each stage reported within the block.

    Yields:
        A function that takes the stage, the number of items done and that of all.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bars:
        tasks = {stage: bars.add_task(stage, total=None)}

        def report(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name)
            bars.update(tasks[name], completed=done, total=total)

        yield report


def check_folder_of(path: Path | None) -> None:
    """Refuse a result file whose folder cannot be made, before the work rather than after it.

    Raises:
        ConfigError: The path is a folder, or lies below a file.
        OSError: The folder cannot be made.
    """
    from topa.errors import ConfigError

    if path is None:
        return
    if path.is_dir():
        raise ConfigError("this is a folder", where=path, mend="Name a file to write.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise ConfigError("the folder cannot be written to", where=path.parent)
