"""topa align, finetune, bench and plan, as they are typed."""

from __future__ import annotations

import csv
import json
import shutil

import pytest
from typer.testing import CliRunner

from topa.cli import app
from topa.config import AlignConfig, dump_config


def run(*args: object):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_all_wrong_settings_are_named_at_once():
    result = run("finetune", "train.epochs=many", "data.frames=3", "start=3", "train.paralel=ddp")
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    for part in ("train.epochs: should be", "data.frames: unknown key", "start: should be"):
        assert part in line
    assert "train.paralel: unknown key, did you mean train.parallel?" in line


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("finetune", "nothing-known"), "no benchmark is called 'nothing-known'"),
        (("finetune", "msrvtt"), "only questions with options can be trained on"),
        (("align", "train.parallel=fsdp"), "sharding needs several processes"),
        (("align", "--resume", "train.epochs=3"), "a run goes on with its own settings"),
        (("bench", "speed"), "no benchmark is called speed"),
        (("plan", "--llm", "no/such/folder"), "cannot be read"),
    ],
)
def test_wrong_use_is_told_in_one_line(args, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*args)
    assert result.exit_code == 2, result.stderr
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("error: "))
    assert message in line


def test_questions_need_videos(tmp_path):
    path = tmp_path / "questions.jsonl"
    row = {"qid": "a", "video": "a", "question": "q?", "options": ["x", "y"], "answer": 0}
    path.write_text(json.dumps(row))
    result = run("finetune", path, f"out={tmp_path / 'run'}")
    assert (result.exit_code, "either videos or features" in result.stderr) == (2, True)


def test_a_checkpoint_is_tuned_on_a_video_and_answers(checkpoint, video, tmp_path):
    """The whole way with real parts: decoder, encoder, memory, a step of training, an answer."""
    rows = [
        {"qid": f"q{i}", "video": video.name, "question": text, "options": ["a cup", "a cat"]}
        | {"answer": i}
        for i, text in enumerate(("What is seen first?", "What is seen last?"))
    ]
    rows.append(rows[0] | {"qid": "q2", "video": "missing.mp4"})
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run(
        "finetune",
        path,
        "--videos",
        video.parent,
        "--checkpoint",
        checkpoint,
        "train.max_steps=1",
        "data.validation=0",
        f"out={tmp_path / 'run'}",
        "--json",
    )
    assert result.exit_code == 0, result.stderr
    assert "missing.mp4: file not found" in result.stderr
    assert "1 of 3 questions have no video." in result.stderr
    found = json.loads(result.stdout)
    assert found["steps"] == 1
    answer = run(
        "ask", video, "What is seen?", "--option", "a cup", "--option", "a cat",
        "--checkpoint", found["checkpoint"], "--json",
    )  # fmt: skip
    assert answer.exit_code == 0, answer.stderr
    assert json.loads(answer.stdout)["option"] in (0, 1)


def test_resuming_needs_no_argument_but_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("align", "--resume")
    assert (result.exit_code, "no run that is not finished" in result.stderr) == (2, True)
    found = {}
    monkeypatch.setattr("topa.train.align.align", lambda config, **_: found.setdefault("c", config))
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        dump_config(AlignConfig.model_validate({"out": "runs/mine", "train": {"epochs": 3.0}}))
    )
    run("align", "--resume")
    assert (found["c"].out, found["c"].train.epochs) == ("runs/mine", 3.0)


def test_a_plan_is_printed_and_given_to_programs():
    args = ("plan", "--llm", "embedded", "--gpus", 2, "--gpu-memory", 24)
    text = run(*args)
    assert text.exit_code == 0, text.stderr
    assert "Take train.parallel=ddp train.recompute=false train.batch_size=18." in text.stdout
    found = json.loads(run(*args, "--json").stdout)
    assert found["fits"] is True
    assert set(found["ways"]) == {"ddp", "ddp, recompute", "fsdp", "fsdp, recompute"}


@pytest.fixture
def nextqa(video, tmp_path):
    """A folder in NExT-QA's published format: train.csv, val.csv, and videos in a subfolder."""
    options = ["drink", "sleep", "jump", "play", "swim"]
    columns = ["video", "frame_count", "width", "height", "question", "answer", "qid", "type"]
    columns += ["a0", "a1", "a2", "a3", "a4"]
    root = tmp_path / "nextqa"
    (root / "videos" / "1164").mkdir(parents=True)
    for split, names in (("train", ("4010069381", "4882821564", "3238737531")), ("val", ("24",))):
        rows = [
            [name, 4, 160, 120, question, answer, number, kind, *options]
            for name in names
            for number, (question, answer, kind) in enumerate(
                (("what does it do first", 0, "TN"), ("why is it at home", 1, "CW"))
            )
        ]
        with (root / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([columns, *rows])
        for name in names:
            shutil.copy(video, root / "videos" / "1164" / f"{name}.mp4")
    return root


@pytest.mark.parametrize(
    "scratch",
    [(), pytest.param(("--from-scratch",), marks=pytest.mark.slow)],
    ids=["tuned", "from scratch"],
)
def test_nextqa_is_tuned_on_and_evaluated(scratch, nextqa, checkpoint, tmp_path):
    """The published files, by the paper's task: letters, without the memory."""
    folders = ("--data", nextqa, "--videos", nextqa / "videos")
    result = run(
        "finetune", "nextqa", *folders, *scratch, "--checkpoint", checkpoint,
        "data.tasks={choice: 1.0}", "data.use_memory=false", "data.validation=0.3",
        "train.max_steps=2", "train.batch_size=2", "train.learning_rate=0.05",
        f"out={tmp_path / 'run'}", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "4 questions to train on, 2 to validate with." in result.stderr
    found = json.loads(result.stdout)
    assert found["steps"] == 2
    assert {"accuracy", "blind_accuracy", "nll_choice"} <= found["metrics"].keys()
    report = run(
        "evaluate", "nextqa", *folders, "--no-memory", "--checkpoint", found["checkpoint"], "--json"
    )
    assert report.exit_code == 0, report.stderr
    figures = json.loads(report.stdout)
    assert (figures["n"], figures["failures"], figures["method"]) == (2, [], "selection")
