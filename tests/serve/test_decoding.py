"""Decoding in processes: the same frames, and a process that hangs or dies costs one video."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from topa.errors import TimeLimitError, VideoError
from topa.features.video import read_clip
from topa.serve.decoding import Decoders
from topa.serve.settings import KEYS_VARIABLE, ServeConfig
from topa.serve.sources import Material

if not sys.platform.startswith("linux"):
    pytest.skip("reads /proc", allow_module_level=True)


@pytest.fixture
def decoders(monkeypatch):
    monkeypatch.setenv(KEYS_VARIABLE, "a-key-that-no-decoder-shall-read")
    before = {child.pid for child in psutil.Process().children()}
    decoders = Decoders(ServeConfig(decoders=1, decode_seconds=8.0))
    yield decoders
    decoders.close()
    left = {child.pid for child in psutil.Process().children()} - before
    assert not [pid for pid in left if is_decoder(pid)]


def is_decoder(pid: int) -> bool:
    return b"frame_worker" in Path(f"/proc/{pid}/cmdline").read_bytes()


def decode(decoders, video, num_frames=10, fps=None):
    return asyncio.run(decoders.decode(Material(video, "digest"), num_frames, fps))


def worker() -> int:
    """Return the process that decodes, of this test's decoders."""
    found = [child.pid for child in psutil.Process().children() if is_decoder(child.pid)]
    return max(found, key=lambda pid: psutil.Process(pid).create_time())


def test_frames_are_those_of_the_library_and_the_process_is_limited(decoders, video):
    clip, expected = decode(decoders, video), read_clip(video, num_frames=10)
    assert (clip.times, clip.duration) == (expected.times, expected.duration)
    assert [i.tobytes() for i in clip.images] == [i.tobytes() for i in expected.images]

    pid = worker()
    assert KEYS_VARIABLE.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
    limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
    named = {line[:26].strip(): line[26:].split()[0] for line in limits[1:]}
    assert named["Max file size"] == "0"
    assert named["Max core file size"] == "0"
    assert named["Max address space"] == str(4 * 2**30)


@pytest.mark.parametrize(("fps", "count"), [(0.5, 1), (1.0, 2), (30.0, 4)])
def test_frames_a_second(fps, count, decoders, video):
    assert len(decode(decoders, video, fps=fps).images) == count


def test_a_process_that_dies_costs_one_video(decoders, video):
    decode(decoders, video)
    first = worker()
    os.kill(first, signal.SIGSTOP)  # it will not have begun when it is killed

    async def decode_and_kill():
        task = asyncio.ensure_future(decoders.decode(Material(video, "digest"), 10))
        await asyncio.sleep(0.3)
        os.kill(first, signal.SIGKILL)
        return await task

    with pytest.raises(VideoError, match="broke its decoder"):
        asyncio.run(decode_and_kill())
    assert len(decode(decoders, video).images) == 4
    assert worker() != first


@pytest.mark.slow
def test_a_process_that_hangs_is_killed(decoders, video):
    decode(decoders, video)
    hanging = worker()
    os.kill(hanging, signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(TimeLimitError, match="longer than 8 s"):
        decode(decoders, video)
    assert time.monotonic() - started < 30
    assert not psutil.pid_exists(hanging)
    assert len(decode(decoders, video).images) == 4
