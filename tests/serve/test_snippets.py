"""What the page offers to copy does what the page did."""

from __future__ import annotations

import itertools
import shutil
import subprocess

import pytest

from topa.serve.snippets import Side, write_codes, write_python, write_shell

QUESTION = """What's "it", really? $HOME `id` %s \\ é"""
OPTIONS = ["a 'cup'", 'a "cat"', "100%"]


@pytest.mark.parametrize(
    ("side", "question", "options"),
    [
        (Side("{}"), QUESTION, OPTIONS),
        (Side("{}", method="similarity", num_frames=1), QUESTION, OPTIONS),
        (Side("{}", use_memory=False, num_frames=2), QUESTION, None),
        (Side("{}", blind=True), QUESTION, OPTIONS),
        (Side("{}"), None, None),
    ],
)
def test_python_and_shell_give_what_the_library_gives(
    side, question, options, address, checkpoint, topa, video, tmp_path, monkeypatch
):
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    from topa.answer import Topa

    shutil.copy(video, tmp_path / "clip.mp4")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Topa, "from_pretrained", lambda name: topa)
    extra = {} if side.num_frames is None else {"num_frames": side.num_frames}
    if not side.use_memory:
        extra["use_memory"] = False
    if side.blind:
        extra["blind"] = True
    if question is None:
        expected = topa.describe(video, **extra)
    else:
        answer = topa.ask(video, question, options, method=side.method, **extra)
        expected = answer.text

    printed = []
    exec(write_python(side, question, options), {"print": lambda *shown: printed.append(shown[0])})
    assert printed == [expected]

    lines = write_shell(side, question, options).splitlines()
    command = "\n".join(itertools.dropwhile(lambda line: not line.startswith("("), lines))
    command = command.replace("http://127.0.0.1:8000", address)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    import json

    found = json.loads(done.stdout)
    if options:
        assert found["data"][0]["answer"] == expected
        assert found["data"][0]["probabilities"] == pytest.approx(answer.probabilities, abs=1e-4)
    else:
        assert found["choices"][0]["message"]["content"] == expected


def test_both_sides_are_written_each_with_its_own_model_and_server():
    python, shell = write_codes([Side("embedded"), Side("my runs/b", blind=True)], "What?", None)
    assert python.index("'embedded'") < python.index("'my runs/b'") < python.index("blind=True")
    assert "topa serve    #" in shell
    assert "topa serve --checkpoint 'my runs/b' --port 8001 " in shell
    assert (shell.count("127.0.0.1:8000"), shell.count("127.0.0.1:8001")) == (1, 1)
    assert "second" not in write_codes([Side("embedded")], "What?", None)[0]
