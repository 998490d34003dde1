"""topa evaluate, compare, ablate and benchmarks, as a user types them, on a tiny model."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from topa.cli import app


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    """Undo what the command line tells other libraries."""
    monkeypatch.setattr(os, "environ", os.environ.copy())


def run(*args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == code, result.output + result.stderr
    return result


@pytest.fixture(scope="module")
def clips(video: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two videos, and questions about them and about one that is not there."""
    folder = tmp_path_factory.mktemp("clips")
    rows: list[dict[str, Any]] = []
    for i, name in enumerate(("a", "b", "absent")):
        if name != "absent":
            shutil.copy(video, folder / f"{name}.mp4")
        rows.append(
            {
                "qid": f"q{i}",
                "video": f"{name}.mp4",
                "question": "What is <b>shown</b>?",
                "options": ["A cup of coffee", "A cat", "A rocket"],
                "answer": i % 2,
                "captions": ["a red cup of coffee", "a cat looks up"],
                "kind": "what/first" if i else "what/last",
            }
        )
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "questions.jsonl").write_text(text, encoding="utf-8")
    return folder


def test_a_run_and_its_pages(clips, checkpoint, tmp_path):
    args = ("evaluate", clips / "questions.jsonl", "--videos", clips, "--checkpoint", checkpoint)
    result = run(*args, "--out", tmp_path / "run")
    assert "q2: " in result.stderr
    assert "absent.mp4" in result.stderr
    for word in ("likelihood-pmi", "chance", "blind", "similarity", "failures", "questions/s"):
        assert word in result.stdout
    report = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert (report["n"], report["asked"], len(report["failures"])) == (3, 3, 1)
    assert set(report["kinds"]) == {"what", "what/first", "what/last"}
    assert set(report["baselines"]) == {"blind", "similarity"}
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;shown" in page
    assert "<b>shown" not in page
    assert "data:image/jpeg;base64," in page
    text = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert "| q2 |" in text
    assert report["fingerprints"]["checkpoint"] in text
    lines = (tmp_path / "run" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["q0", "q1", "q2"]
    again = run(*args, "--out", tmp_path / "run", "--json")  # all of it is there already
    assert json.loads(again.stdout)["accuracy"] == report["accuracy"]
    refused = run(*args, "--out", tmp_path / "run", "--method", "selection", code=2)
    assert "other settings (method)" in refused.stderr
    compared = run("compare", tmp_path / "run", tmp_path / "run", "--json")
    assert json.loads(compared.stdout)["metrics"][0]["difference"] == 0
    shown = run("compare", tmp_path / "run", tmp_path / "run").stdout
    assert f"B: {tmp_path / 'run'}" in shown  # whole, however long it is
    assert "accuracy" in shown
    assert "+0.0" in shown


def test_two_shards_write_the_report_of_one_run(clips, checkpoint, tmp_path):
    args = ("evaluate", clips / "questions.jsonl", "--blind", "--checkpoint", checkpoint)
    out = tmp_path / "run"
    run(*args, "--out", out, "--shard", "1/2")
    run(*args, "--out", out, "--shard", "2/2")
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert (report["n"], report["blind"], report["failures"]) == (3, True, [])


def test_captions_of_own_videos(clips, checkpoint, tmp_path):
    args = ("evaluate", clips / "questions.jsonl", "--captions", "--videos", clips)
    result = run(*args, "--checkpoint", checkpoint, "--out", tmp_path / "run")
    for metric in ("BLEU-4", "ROUGE-L", "CIDEr", "METEOR"):
        assert metric in result.stdout
    report = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert report["n"] == 3
    assert "absent.mp4" in [row["id"] for row in report["failures"]]
    assert (tmp_path / "run" / "report.html").is_file()


def test_answers_that_are_secret_become_a_submission(checkpoint, tmp_path):
    records = [
        {"q_uid": f"u{i}", "question": "What?", **{f"option {k}": f"o{k}" for k in range(5)}}
        for i in range(3)
    ]
    (tmp_path / "questions.json").write_text(json.dumps(records), encoding="utf-8")
    args = ("evaluate", "egoschema", "--split", "full", "--data", tmp_path, "--blind")
    result = run(*args, "--checkpoint", checkpoint, "--out", tmp_path / "run")
    assert "not public" in result.stdout
    assert "3 items read, the published file has 5,031" in result.stderr
    submission = json.loads((tmp_path / "run" / "submission.json").read_text(encoding="utf-8"))
    assert set(submission) == {"u0", "u1", "u2"}
    assert all(0 <= answer < 5 for answer in submission.values())


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["evaluate", "nexqa"], 1, "no such file, and no such benchmark"),
        (["evaluate", "nextqa", "--data", "."], 1, "val.csv not found"),
        (["evaluate", "nextqa", "--split", "dev", "--blind"], 2, "no split 'dev'"),
        (["evaluate", "heldout", "--shard", "3/2", "--out", "x"], 2, "a shard is K/N"),
        (["evaluate", "heldout", "--processes", "2"], 2, "several processes need a folder"),
        (["evaluate", "heldout", "--videos", "absent"], 2, "no such folder of videos"),
        (["evaluate", "msrvtt", "--method", "selection"], 2, "neither chosen nor blind"),
        (["ablate", "frames", "--values", "1,x"], 2, "numbers parted by commas"),
        (["ablate", "data-size"], 2, "no split to fine-tune on"),
        (["compare", "absent", "absent"], 1, "no predictions"),
        (["benchmarks", "check", "absent"], 2, "no such folder"),
    ],
)
def test_wrong_use_takes_one_line(args, code, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*args, code=code)
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert message in lines[0]


def test_the_list_and_the_state_of_benchmarks(tmp_path):
    listed = json.loads(run("benchmarks", "list", "--json").stdout)
    assert [row["name"] for row in listed] == [
        *("egoschema", "nextqa", "star", "tvqa", "mvbench", "msrvtt", "vatex", "heldout")
    ]
    assert "licence:" in run("benchmarks", "list").stdout
    rows = json.loads(run("benchmarks", "check", tmp_path, "--json").stdout)
    assert {row["state"] for row in rows if row["benchmark"] != "heldout"} == {"missing"}
    run("benchmarks", "check", tmp_path, "--name", "star", code=1)


@pytest.mark.slow
def test_two_processes_are_one(tideos_path, checkpoint, tmp_path):
    args = ("evaluate", tideos_path, "--checkpoint", checkpoint, "--no-context")
    run(*args, "--out", tmp_path / "one")
    run(*args, "--out", tmp_path / "two", "--processes", "2")
    one, two = ((tmp_path / name / "predictions.jsonl").read_bytes() for name in ("one", "two"))
    assert one == two
