"""The commands that write Tideos and judge them, from seeds to a packed dataset."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from endpoint import Endpoint, make_draft, seed_of
from typer.testing import CliRunner, Result

from topa.cli import app
from topa.tideo.textvid import load_tideos


def run(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture
def seeds(tmp_path) -> Path:
    path = tmp_path / "titles.csv"
    path.write_text("title\n" + "".join(f"to make thing {i}\n" for i in range(12)))
    return path


def letter_of(body: dict) -> str:
    """Answer like a reader: the option that a frame names; blind, always (A)."""
    text = body["messages"][-1]["content"]
    options = re.findall(r"^\(([A-E])\) (.*)$", text, re.M)
    order = ("first", "second", "third", "fourth")
    if "Frames:" not in text:
        return '{"answer": "A"}'
    asked = next(i for i, word in enumerate(order) if f"held {word}" in text)
    frame = re.findall(r"^\d+\. (.*)$", text, re.M)[asked]
    held = re.search(r"holds (.*) for", frame)
    assert held is not None
    return json.dumps({"answer": next(a for a, option in options if option == held[1])})


def reply(body: dict) -> str:
    if "Answer with the letter" in body["messages"][-1]["content"]:
        return letter_of(body)
    return json.dumps(make_draft(seed_of(body)))


class Auditing(Endpoint):
    """Answers audits too, whose messages name no seed."""

    def fault_of(self, seed: str, times: int) -> str | None:
        return None


def test_from_seeds_to_a_packed_dataset(tmp_path, seeds, monkeypatch):
    monkeypatch.setattr("endpoint.seed_of", lambda body: str(body["messages"][-1])[:2000])
    out, good, packed = tmp_path / "run", tmp_path / "good.jsonl", tmp_path / "packed"
    with Auditing(reply=reply) as endpoint:
        ask = ("--model", "m", "--base-url", endpoint.url)
        args = ("textvid", "generate", "--seeds", seeds, *ask, "--out", out, "--max", 10)
        result = run(*args, "--price-in", 1, "--price-out", 1, "--json")
        assert result.exit_code == 0, result.stderr
        found = json.loads(result.stdout)
        assert (found["done"], found["failed"], found["left"]) == (10, 0, 0)
        assert endpoint.requests == 10
        settings = json.loads((out / "settings.json").read_text())
        assert settings["model"] == "m"
        audit = run("textvid", "audit", out, *ask, "--out", tmp_path / "audit", "--json")
        assert audit.exit_code == 0, audit.stderr
    views = json.loads(audit.stdout)["views"]
    assert views["frames"]["all"]["accuracy"] == 1
    assert views["blind"]["all"]["n"] == 40
    assert views["blind"]["all"]["accuracy"] < 0.6

    checked = json.loads(run("textvid", "check", out, "--json").stdout)
    assert (checked["valid"], checked["invalid"], checked["questions"]) == (10, [], 40)
    answers = tmp_path / "audit" / "answers.jsonl"
    filtered = run(
        "textvid", "filter", out, "--out", good, "--near", "none", "--audit", answers, "--json"
    )
    assert filtered.exit_code == 0, filtered.stderr
    account = json.loads(filtered.stdout)
    assert account["read"] == 10
    assert account["kept"] == len(load_tideos(str(good)))
    assert json.loads((tmp_path / "good.report.json").read_text())["kept"] == account["kept"]

    assert run("textvid", "pack", out, "--to", packed, "--format", "jsonl").exit_code == 0
    assert load_tideos(str(packed)) == load_tideos(str(out))
    assert "- model: m" in (packed / "README.md").read_text()
    assert "- seeds: " in (packed / "README.md").read_text()


def test_a_dry_run_sends_and_writes_nothing(tmp_path, seeds):
    with Endpoint() as endpoint:
        result = run(
            "textvid",
            "generate",
            "--seeds",
            seeds,
            "--model",
            "m",
            "--dry-run",
            "--base-url",
            endpoint.url,
            "--out",
            tmp_path / "run",
            "--price-in",
            1,
            "--price-out",
            4,
            "--json",
        )
        assert endpoint.requests == 0
    found = json.loads(result.stdout)
    assert found["seeds"] == 12
    used = found["prompt_tokens"] + 4 * found["completion_tokens"]
    assert found["cost"] == pytest.approx(used / 1e6)
    assert found["most"] > found["cost"]
    assert not (tmp_path / "run").exists()


def test_a_run_with_failures_ends_with_1_and_keeps_them(tmp_path, seeds):
    with Endpoint(lambda seed, times: "wrong-json" if seed.endswith("3") else None) as endpoint:
        result = run(
            "textvid",
            "generate",
            "--seeds",
            seeds,
            "--model",
            "m",
            "--base-url",
            endpoint.url,
            "--out",
            tmp_path,
        )
    assert result.exit_code == 1
    assert "11 Tideos, 1 failed, 0 left of 12" in result.stdout
    assert "error: 1 failed: " in result.stderr
    assert "failures.jsonl" in result.stderr
    (failure,) = [json.loads(line) for line in (tmp_path / "failures.jsonl").open()]
    assert failure["text"] == "to make thing 3"
    assert failure["replies"] == ["Sure! Here is your video."] * 2


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--budget", 5], "price"),
        (["--rpm", 0], "above 0"),
        (["--extra", "[1]"], "object"),
        (["--base-url", "https://me:secret@example.org/v1"], "password"),
        (["--base-url", "https://example.org/v1"], "NO_SUCH_KEY"),
    ],
)
def test_settings_that_cannot_be_are_one_line(tmp_path, seeds, options, part):
    result = run(
        "textvid",
        "generate",
        "--seeds",
        seeds,
        "--model",
        "m",
        "--key-variable",
        "NO_SUCH_KEY",
        "--out",
        tmp_path / "run",
        *options,
    )
    assert result.exit_code == 2
    assert part in result.stderr
    assert "secret" not in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_seeds_are_counted_before_anything_is_spent(seeds):
    found = json.loads(
        run("textvid", "seeds", "--seeds", seeds, "--seeds", "topic:x", "--json").stdout
    )
    assert (found["seeds"], found["sources"]) == (13, {"howto": 12, "topic": 1})


@pytest.mark.parametrize("mode", ["one", "two"])
def test_the_prompt_is_printed_with_its_version(mode):
    found = json.loads(run("textvid", "prompt", "a cat", "--mode", mode, "--json").stdout)
    assert found["version"].startswith(f"1-{mode}-")
    assert len(found["steps"]) == (1 if mode == "one" else 2)
    assert "Seed: a cat" in found["steps"][-1][-1]["content"]


def test_batch_files_by_command(tmp_path, seeds):
    requests, results, out = tmp_path / "q.jsonl", tmp_path / "r.jsonl", tmp_path / "run"
    same = ("--seeds", seeds, "--model", "m", "--out", out)
    assert run("textvid", "batch", "export", requests, *same).exit_code == 0
    rows = [json.loads(line) for line in requests.read_text().splitlines()]
    body = {"choices": [{"message": {"content": json.dumps(make_draft("x"))}}]}
    results.write_text(
        "".join(
            json.dumps(
                {"custom_id": row["custom_id"], "response": {"status_code": 200, "body": body}}
            )
            + "\n"
            for row in rows
        )
    )
    result = run("textvid", "batch", "import", results, *same, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["import"]["done"] == 12
    assert json.loads(result.stdout)["ledger"]["estimated"] == 12
    assert len(load_tideos(str(out))) == 12


def test_their_data_by_command(tmp_path, tideos_path, tideos):
    theirs, back = tmp_path / "textvid.json", tmp_path / "back.jsonl"
    assert run("textvid", "official", "export", tideos_path, "--out", theirs).exit_code == 0
    records = json.loads(theirs.read_text())
    records[4]["QAs"] = []
    theirs.write_text(json.dumps(records))
    result = run("textvid", "official", "import", theirs, "--out", back, "--source", "howto")
    assert result.exit_code == 1
    assert "record 4 " in result.stderr
    found = load_tideos(str(back))
    assert [tideo.id for tideo in found] == [t.id for i, t in enumerate(tideos) if i != 4]
    assert {tideo.source for tideo in found} == {"howto"}


def test_statistics_make_a_page(tmp_path, tideos_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "stats"
    result = run("textvid", "stats", tideos_path, "--out", out, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads((out / "stats.json").read_text())["tideos"] == 12
    page = (out / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 6
    assert (out / "vocabulary.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("module", ["tenacity", "openai"])
def test_without_the_extra_its_name_is_told(tmp_path, seeds, module):
    code = f"import sys; sys.modules[{module!r}] = None\nfrom topa.cli import main; main()"
    args = ("textvid", "generate", "--seeds", str(seeds), "--model", "m", "--out", str(tmp_path))
    command = [sys.executable, "-c", code, *args, "--base-url", "http://127.0.0.1:9/v1"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert ".[generate]" in result.stderr
    assert len(result.stderr.splitlines()) == 1
