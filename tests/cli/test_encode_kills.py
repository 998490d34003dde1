"""kill -9 of `topa encode videos`, twenty times: nothing is lost, doubled or left running."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from topa.features.shards import FeatureStore
from topa.features.verification import verify_store

# The command as it is, but for shards of one video each, so that twenty kills find some.
COMMAND = """
from topa.features import extraction, writer
extraction._BATCH_FRAMES, writer.SHARD_BYTES = 2, 1
from topa.cli import main
main()
"""
VIDEOS = 120


def start(clips: Path, store: Path) -> subprocess.Popen[str]:
    """Start the command in a process group of its own."""
    arguments = ["encode", "videos", clips, "--out", store, "--frames", "2", "--workers", "2"]
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *map(str, arguments)],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def count(store: Path) -> int:
    return len(list(store.glob("shard-*.parquet")))


def kill(process: subprocess.Popen[str], whole_group: bool) -> None:
    """Kill the command, with its decoding processes or alone, and see that all of them end."""
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    if whole_group:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.communicate(timeout=60)
    assert psutil.wait_procs(children, timeout=60)[1] == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_kills_of_the_command_lose_and_double_nothing(video, encoder, tmp_path):
    clips, store = tmp_path / "clips", tmp_path / "store"
    clips.mkdir()
    names = [f"{number:03}.mp4" for number in range(VIDEOS)]
    for name in names:
        (clips / name).write_bytes(video.read_bytes())
    draw = random.Random(0)
    for number in range(20):
        before = count(store)
        process = start(clips, store)
        deadline = time.monotonic() + 120
        while count(store) < before + 1 + number % 3:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.05))
        kill(process, whole_group=number % 2 == 0)
        assert verify_store(store).problems == []
    assert count(store) < VIDEOS  # the last kill came midway too
    output, _ = (process := start(clips, store)).communicate(timeout=300)
    assert process.returncode == 0, output
    found = verify_store(store, sources=True)
    assert (found.problems, found.leftovers, found.entries) == ([], [], VIDEOS)
    features = FeatureStore(store, encoder.fingerprint)
    assert sorted(features) == names
    assert (store / "errors.jsonl").read_text(encoding="utf-8") == ""
