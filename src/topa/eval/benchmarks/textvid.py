"""The held-out Tideos that come with topa: questions about videos written as text."""

from __future__ import annotations

from pathlib import Path

from topa.data.questions import VideoQuestion, from_tideos
from topa.eval.benchmarks.catalogue import Benchmark, Split
from topa.tideo.textvid import load_textvid


def read(root: Path, split: str, subtitles: bool = False) -> list[VideoQuestion]:
    """Return the questions of the bundled held-out Tideos; no files are needed."""
    return from_tideos(load_textvid("heldout"))


BENCHMARK = Benchmark(
    name="heldout",
    title="TextVid-mini, held out",
    task="choice",
    splits={"heldout": Split((), 392)},
    read=read,
    source="the topa package",
    licence="CC0-1.0",
    paper="topa",
    notes="Text features, no videos: what the LLM learned, without the gap between text and image.",
)
