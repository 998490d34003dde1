"""topa ask and topa describe: what an LLM says about one video."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from topa.cli.terminal import (
    BlindOption,
    CheckpointOption,
    FramesOption,
    JsonOption,
    MemoryOption,
    MethodOption,
    NoMemoryOption,
    VideoArgument,
    out,
    print_json,
)

if TYPE_CHECKING:
    from topa.features.video import Clip


def ask(
    video: VideoArgument,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="In plain words.")],
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", metavar="TEXT", help="An answer to choose from; repeat it."),
    ] = None,
    method: MethodOption = None,
    blind: BlindOption = False,
    no_memory: NoMemoryOption = False,
    memory: MemoryOption = None,
    frames: FramesOption = None,
    checkpoint: CheckpointOption = "embedded",
    as_json: JsonOption = False,
) -> None:
    """Answer a question about a video.

    One of 2 to 26 options is chosen; without options the answer is in free words.

    \b
    topa ask clip.mp4 "Where is the cat?" --option "On a sofa" --option "In a tree"
    """
    from topa.answer import Topa
    from topa.data.templates import clean_question, list_options

    clean_question(question)
    if option:
        list_options(option)
    clip = _watch(video, checkpoint, frames)
    topa = Topa.from_pretrained(checkpoint, memory=memory)
    answer = topa.ask(
        clip, question, option or None, method=method, use_memory=not no_memory, blind=blind
    )
    if as_json:
        print_json(
            {
                "video": str(video),
                "question": question,
                "options": option or None,
                "answer": answer.text,
                "option": answer.option,
                "probabilities": answer.probabilities,
                "method": (method or topa.model.config.scoring) if option else None,
                "blind": blind,
                "use_memory": not no_memory and topa.memory is not None,
                "frames": [round(time, 3) for time in clip.times],
            }
        )
        return
    typer.echo(answer.text)
    if option and answer.probabilities is not None:
        _print_options(option, answer.probabilities, answer.option)


def describe(
    video: VideoArgument,
    no_memory: NoMemoryOption = False,
    memory: MemoryOption = None,
    frames: FramesOption = None,
    checkpoint: CheckpointOption = "embedded",
    as_json: JsonOption = False,
) -> None:
    """Describe a video in a few sentences.

    \b
    topa describe clip.mp4
    """
    from topa.answer import Topa

    clip = _watch(video, checkpoint, frames)
    topa = Topa.from_pretrained(checkpoint, memory=memory)
    text = topa.describe(clip, use_memory=not no_memory)
    if as_json:
        times = [round(time, 3) for time in clip.times]
        print_json({"video": str(video), "description": text, "frames": times})
    else:
        typer.echo(text)


def _watch(video: Path, checkpoint: str, frames: int | None) -> Clip:
    """Return the sampled frames: a wrong path is told before the model is loaded.

    Raises:
        CheckpointError: There is no checkpoint.
        ConfigError: More frames are asked for than the model has slots.
        VideoError: The video cannot be read.
    """
    from topa.errors import ConfigError
    from topa.features.video import read_clip
    from topa.model.checkpoint import read_config

    most = read_config(checkpoint).num_frames
    if frames is not None and frames > most:
        raise ConfigError(
            f"{frames} frames asked for, the model has slots for {most}",
            where="--frames",
            mend=f"Ask for at most {most}.",
        )
    return read_clip(video, num_frames=frames or most)


def _print_options(options: list[str], probabilities: list[float], chosen: int | None) -> None:
    """Print a bar and a percentage for each option, the chosen one marked."""
    table = Table.grid(padding=(0, 1))
    for i, (text, probability) in enumerate(zip(options, probabilities, strict=True)):
        bar = ProgressBar(total=1.0, completed=probability, width=20)
        # Text: brackets in an option are no markup.
        table.add_row(
            ">" if i == chosen else " ",
            f"({chr(ord('A') + i)})",
            Text(text, style="bold" if i == chosen else ""),
            bar,
            f"{probability:6.1%}",
        )
    out.print(table)
