"""The demonstration from beginning to end; what is slow to import is imported when it is needed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console

from topa.demo.narration import Narrator
from topa.errors import ConfigError, VideoError

STAGES = 6


def run_demo(
    *,
    video: Path | None = None,
    train_minutes: float | None = None,
    full: bool = False,
    out: Path = Path("runs/demo"),
    checkpoint: str | Path = "embedded",
    console: Console | None = None,
) -> dict[str, Any]:
    """Show the whole way from textual videos to answers about a real one, and write a report.

    Args:
        video: A video of the user; a built-in one if None.
        train_minutes: Pre-align a model on the spot for so long instead of loading one.
        full: Measure on all held-out questions rather than on a sample.
        out: Folder of report.html, report.json, the frames and, if trained, the run.
        checkpoint: What to load if nothing is trained: "embedded" or a folder.
        console: Where to print.

    Returns:
        What report.json holds.

    Raises:
        TopaError: Something is missing or cannot be used; says what.
    """
    began = time.monotonic()
    narrator = Narrator(console or Console(), STAGES)
    narrator.say("topa: an LLM that learned from videos written as text looks at a real one.")
    out = _check(video, train_minutes, out)
    with narrator.stage("tideos", "Reading TextVid-mini, the textual videos that come along."):
        tideos = _count_tideos(narrator)

    # PyTorch and transformers take seconds to import: the first lines are out by now.
    from topa.demo.accuracy import measure
    from topa.demo.model import prepare
    from topa.demo.report import describe_parts, write_report
    from topa.demo.video import Watched, answer_questions

    topa, training = prepare(narrator, checkpoint, train_minutes, out)
    with narrator.stage("video", "Watching a video, and asking the memory what its frames show."):
        watched = Watched.take(topa, video, out, narrator)
    with narrator.stage("answers", "Describing the video and answering questions about it."):
        answers = answer_questions(topa, watched, narrator)
    with narrator.stage("accuracy", "Measuring on Tideos that were kept out of the training."):
        accuracy = measure(topa, narrator, full=full)
    report = {
        "video": watched.summary(),
        "frames": watched.frames,
        **answers,
        "accuracy": accuracy,
        "training": training,
        "tideos": tideos,
        "used": describe_parts(topa, training["checkpoint"] if training else checkpoint),
        "seconds": {**narrator.seconds, "total": round(time.monotonic() - began, 1)},
    }
    page = write_report(report, out)
    narrator.say(f"\nReport: {page}\nThe same as data: {out / 'report.json'}")
    narrator.say(f"Done in {report['seconds']['total']:.0f} seconds.")
    return report


def _check(video: Path | None, train_minutes: float | None, out: Path) -> Path:
    """Refuse what could only fail later, and make the folder of the report."""
    if video is not None and not Path(video).is_file():
        raise VideoError("file not found", where=video, mend="Check the path.")
    if train_minutes is not None and not 0 < train_minutes < float("inf"):
        raise ConfigError(
            f"{train_minutes:g} minutes of training asked for",
            where="train_minutes",
            mend="Give a number above 0.",
        )
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the folder cannot be made ({error.strerror})", where=out, mend="Choose another."
        ) from None
    return out


def _count_tideos(narrator: Narrator) -> dict[str, dict[str, int]]:
    """Say what each bundled set holds."""
    from topa.tideo.textvid import load_textvid

    sets = {
        "train": load_textvid("train"),
        "everyday": load_textvid("everyday"),
        "heldout": load_textvid("heldout"),
    }
    counts = {}
    for name, tideos in sets.items():
        counts[name] = {
            "tideos": len(tideos),
            "frames": sum(len(tideo.frames) for tideo in tideos),
            "questions": sum(len(tideo.qas) for tideo in tideos),
        }
        found = counts[name]
        narrator.say(
            f"  {name}: {found['tideos']:,} Tideos with {found['frames']:,} frames"
            f" and {found['questions']:,} questions"
        )
    return counts
