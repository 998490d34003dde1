"""Every benchmark from files in its published format, through the command and to the prompt.

`published/` holds a few records of each, written by hand, at their original names and columns. The
last video of each is never there. `golden/` holds the prompts that the model is given for the first
record: where one of them changes, figures of before and after cannot be compared, and
TEMPLATE_VERSION has to change too.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from topa.answer import Topa
from topa.cli import app
from topa.data.questions import VideoQuestion
from topa.data.templates import Prompt
from topa.eval import measuring
from topa.eval.benchmarks import BENCHMARKS, find_benchmark
from topa.eval.captions import CaptionEvaluation
from topa.eval.sources import Nothing, watch_item

HERE = Path(__file__).parent
NAMES = [name for name in BENCHMARKS if name != "heldout"]


def read(name: str) -> list[Any]:
    benchmark = find_benchmark(name)
    return list(benchmark.read(HERE / "published" / name, benchmark.default_split, name == "tvqa"))


@pytest.fixture(scope="module")
def topa(checkpoint: Path) -> Topa:
    return Topa.from_pretrained(checkpoint)


def lay_videos(name: str, video: Path, folder: Path) -> str:
    """Lay all videos of a benchmark but the last, as they come; return the last one's name."""
    names = list(dict.fromkeys(item.video for item in read(name)))
    for number, known in enumerate(names[:-1]):
        path = folder / known
        if name == "tvqa" or "frames_fps3" in known:  # six frames: two seconds
            path.mkdir(parents=True)
            for frame in range(1, 7):
                colour = (40 * frame, 20 * number % 256, 128)
                Image.new("RGB", (64, 48), colour).save(path / f"{frame:05d}.jpg")
            continue
        if name == "nextqa":  # in folders as VidOR has them
            path = folder / "1164" / known
        path = path if path.suffix else path.with_name(f"{known}.mp4")
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(video, path)
    return names[-1]


@pytest.mark.parametrize("name", NAMES)
def test_the_command_evaluates_the_published_files(name, checkpoint, video, tmp_path):
    absent = lay_videos(name, video, tmp_path / "videos")
    args = ["evaluate", name, "--data", HERE / "published" / name, "--videos", tmp_path / "videos"]
    args += ["--checkpoint", checkpoint, "--out", tmp_path / "run", "--no-context", "--json"]
    args += ["--frames", 1]
    args += ["--subtitles"] * (name == "tvqa")
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == 0, result.output
    items = read(name)
    report = json.loads(result.stdout)
    published = find_benchmark(name).split(None).count
    assert f"{len(items)} items read, the published file has {published:,}" in report["expected"]
    lost = [getattr(item, "qid", item.video) for item in items if item.video == absent]
    assert report["n"] == len(items) > len(lost) >= 1
    assert [failure["id"] for failure in report["failures"]] == lost
    assert all("file not found" in failure["reason"] for failure in report["failures"])
    text = (tmp_path / "run" / "predictions.jsonl").read_text(encoding="utf-8")
    rows = {row["id"]: row for row in map(json.loads, text.splitlines())}
    answers = [rows[getattr(item, "qid", item.video)] for item in items]
    if find_benchmark(name).task == "choice":
        assert [row["answer"] for row in answers] == [item.answer for item in items]
        right = sum(row["predicted"] == row["answer"] for row in answers)
        assert report["accuracy"] == right / len(items)
        assert all((row["predicted"] is None) == (row["id"] in lost) for row in answers)
    else:
        assert [row["references"] for row in answers] == [item.captions for item in items]
        assert report["scores"]["BLEU-4"]["n"] == len(items)


@pytest.mark.parametrize("name", ["star", "tvqa", "mvbench"])
def test_only_the_part_that_is_asked_about_is_watched(name, video, tmp_path):
    """Frames lie in the middles of equal segments of [start, end]."""
    from topa.eval.sources import VideoIndex

    lay_videos(name, video, tmp_path)
    (item, *_) = [item for item in read(name) if item.start is not None]
    clip = watch_item(VideoIndex(tmp_path), item, 10)
    assert item.start - 0.5 < min(clip.times) < max(clip.times) < item.end


def show(topa: Topa, prompt: Prompt) -> str:
    """Return the text of the tokens of a prompt; a branch in a line of its own after "|"."""
    parts = []
    for segment in prompt.segments:
        ids = [i for i, slot in zip(segment.ids, segment.slots, strict=True) if slot < 0]
        text = topa.builder.tokenizer.decode(ids)
        slots = len(segment.ids) - len(ids)
        parts.append(
            f"\n|{text}" if segment.is_label else text + f"{{{slots} slots}}" * (slots > 0)
        )
    return "".join(parts).removeprefix("<|im_start|>")


class Seen:
    """Keeps the prompts that a model would be given, and answers without one."""

    def __init__(self, topa: Topa, monkeypatch: pytest.MonkeyPatch):
        self.topa, self.texts = topa, []
        monkeypatch.setattr(measuring, "score_options", self.score)
        monkeypatch.setattr(Topa, "generate", lambda _, *given: self.generate(*given))

    def score(self, _: Any, prompts: Sequence[Prompt], *_rest: Any, **_named: Any) -> list[Any]:
        self.texts += [show(self.topa, prompt) for prompt in prompts]
        return [[torch.zeros(len(found)) for found in prompt.options] for prompt in prompts]

    def generate(self, prompts: Sequence[Prompt], _: Sequence[Tensor], __: int) -> list[str]:
        self.texts += [show(self.topa, prompt) for prompt in prompts]
        return [""] * len(prompts)


@pytest.mark.parametrize("name", NAMES)
def test_the_prompts_are_the_golden_ones(name, topa, monkeypatch):
    item = read(name)[0]
    seen = Seen(topa, monkeypatch)
    if isinstance(item, VideoQuestion):
        titles = ["likelihood", "selection", "generation"]
        shown = [([item], torch.zeros(1, topa.encoder.dim))]
        measuring.measure(topa, shown, {"likelihood", "tokens", "letters", "generation"})
    else:
        titles = ["caption"]
        CaptionEvaluation(topa, [item], Nothing(topa.encoder.dim), 10).answer()
    found = "\n".join(
        f"=== {title}\n{text}\n" for title, text in zip(titles, seen.texts, strict=True)
    )
    golden = (HERE / "golden" / f"{name}.txt").read_text(encoding="utf-8")
    assert found == golden, "if this is meant, change TEMPLATE_VERSION and the golden file"


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_is_asked_in_the_same_words(name):
    """Only the question, the options and the dialogue are the benchmark's."""
    text = (HERE / "golden" / f"{name}.txt").read_text(encoding="utf-8")
    ends = [part.split("\n|")[0].splitlines()[-1].strip() for part in text.split("=== ")[1:]]
    if find_benchmark(name).task == "caption":
        assert ends == ["Answer: It is a video of"]
    else:
        answer = "Answer: The correct choice is"
        assert ends == ["Answer:", answer, answer]
