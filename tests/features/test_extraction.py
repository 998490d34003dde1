"""Decoding processes: what is broken, hangs or crashes costs one video, never the job."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from topa.features import extraction
from topa.features.extraction import DecodingPool
from topa.features.sources import Failure, Sampling, Source, find_sources


def crash_or_read(source: Source, sampling: Sampling) -> str:
    """Stand in for `decode_source`, in the decoding process."""
    if source.id == "crash":
        os._exit(11)
    if source.id == "hang":
        time.sleep(600)
    if source.id == "memory":
        raise MemoryError
    return source.id


@pytest.mark.slow
def test_a_crash_or_a_hang_costs_one_video(monkeypatch):
    monkeypatch.setattr(extraction, "decode_source", crash_or_read)
    names = ["a", "crash", "b", "hang", "memory", "c"]
    sources = [Source(name, Path(name)) for name in names]
    # The process is given 1.2 times the limit and ten seconds more.
    with DecodingPool(Sampling(time_limit=1.0), 2) as pool:
        found = list(pool.decode(sources))
    failures = {item.id: item.reason for item in found if isinstance(item, Failure)}
    assert sorted(item for item in found if isinstance(item, str)) == ["a", "b", "c"]
    assert set(failures) == {"crash", "hang", "memory"}
    assert "crashed (exit code 11)" in failures["crash"]
    assert "hung" in failures["hang"]
    assert "memory" in failures["memory"]


@pytest.mark.slow
def test_flipped_bits_and_cut_ends_never_end_the_job(video, tmp_path):
    """Every one of 60 damaged files gives frames or a reason, within its time limit."""
    data, draw = video.read_bytes(), random.Random(0)
    for number in range(60):
        damaged = bytearray(data)
        for _ in range(draw.choice((1, 8, 64))):
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        if number % 3 == 0:
            del damaged[draw.randrange(1, len(damaged)) :]
        (tmp_path / f"{number:02}.mp4").write_bytes(damaged)
    sources = find_sources([tmp_path])
    with DecodingPool(Sampling(time_limit=20.0), 2) as pool:
        found = list(pool.decode(sources))
    assert {item.id for item in found} == {source.id for source in sources}
    failures = [item for item in found if isinstance(item, Failure)]
    assert 0 < len(failures) < 60
    assert not [item for item in failures if "crashed" in item.reason or "hung" in item.reason]


def test_lists_and_folders_name_their_videos(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("a/1.mp4", "2.MKV", ".hidden.mp4", "notes.md"):
        (tmp_path / name).touch()
    assert [source.id for source in find_sources([tmp_path])] == ["2.MKV", "a/1.mp4"]
    listed = tmp_path / "list.txt"
    listed.write_text("# mine\na/1.mp4\n\nfolder\n", encoding="utf-8")
    assert [(s.id, s.path) for s in find_sources([listed])] == [
        ("a/1.mp4", tmp_path / "a" / "1.mp4"),
        ("folder", tmp_path / "folder"),
    ]
