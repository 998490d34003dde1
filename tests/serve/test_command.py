"""topa serve and topa ui: wrong use is told before anything is loaded; how they end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import httpx
import pytest

from topa.cli import app
from topa.config import load_config
from topa.serve.settings import KEYS_VARIABLE, ServeConfig


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["serve", "max_request=1"], "did you mean max_requests?"),
        (["serve", "max_requests=0"], "should be greater than 0"),
        (["serve", "--allow-domain", "http://a.org"], "is not a host"),
        (["serve", "--allow-path", "no-such-folder"], "is not a folder"),
        (["serve", "--port", "70000"], "--port"),
        (["serve", "--config", "missing.yaml"], "missing.yaml"),
        (["ui", "decoders=none"], "decoders"),
    ],
)
def test_wrong_use_is_told(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        app(arguments)
    assert stopped.value.code == 2
    assert says in capsys.readouterr().err


def test_a_short_key_is_told(capsys, monkeypatch):
    monkeypatch.setenv(KEYS_VARIABLE, "short")
    with pytest.raises(SystemExit) as stopped:
        app(["serve"])
    assert stopped.value.code == 2
    assert "shorter than 16" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["serve"], ["ui", "--no-browser"]])
def test_a_port_that_is_taken_is_told_before_anything_is_loaded(command, capsys, monkeypatch):
    pytest.importorskip("gradio", reason="needs the extra ui")
    monkeypatch.setattr("topa.answer.Topa.from_pretrained", lambda *a: pytest.fail("loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as stopped:
            app([*command, "--port", str(port)])
    assert stopped.value.code == 2
    assert f"127.0.0.1:{port}: cannot listen there" in capsys.readouterr().err


@pytest.mark.slow
def test_a_server_that_is_stopped_while_it_loads_ends_at_once(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "topa.cli", "serve", "--port", "0"],
        env={**os.environ, "TOPA_CACHE": str(tmp_path)},  # empty: to fill it takes minutes
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert any("encoding" in line for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM]
)
def test_a_page_that_is_stopped_leaves_nothing(number, checkpoint, tmp_path):
    pytest.importorskip("gradio", reason="needs the extra ui")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    options = ["--no-browser", "--port", str(port), "--checkpoint", str(checkpoint)]
    process = subprocess.Popen(
        [sys.executable, "-m", "topa.cli", "ui", *options],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        told = next(line for line in process.stderr if "The page is at" in line)
        assert f"http://127.0.0.1:{port} " in told
        page = f"http://127.0.0.1:{port}/gradio_api"
        sent = httpx.post(f"{page}/upload", files={"files": ("mine.mp4", b"a video")}, timeout=60)
        assert sent.status_code == 200
        assert {path.name for path in tmp_path.rglob("*.mp4")} == {"five-shots.mp4", "mine.mp4"}
        # Every tab holds such a connection for as long as it is open.
        with httpx.stream("GET", f"{page}/heartbeat/tab", timeout=60) as answer:
            assert answer.status_code == 200
            process.send_signal(number)
            assert process.wait(60) == 0
        assert "Traceback" not in process.stderr.read()
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]
        assert not list(tmp_path.glob("topa-*"))
    finally:
        process.kill()
        process.wait()


def test_settings_come_from_a_file_and_are_overridden(tmp_path):
    path = tmp_path / "serve.yaml"
    path.write_text("max_requests: 3\nallow_domains: [Example.org]\n")
    config = load_config(ServeConfig, path, ["max_requests=4"])
    assert (config.max_requests, config.allow_domains) == (4, ["example.org"])
