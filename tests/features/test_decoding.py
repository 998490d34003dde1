"""Decoding processes: what is broken, hangs or crashes costs one video, never the job."""

from __future__ import annotations

import functools
import os
import random
import time
from pathlib import Path

import av
import pytest

from topa.errors import VideoError
from topa.features import decoding
from topa.features.decoding import DecodingPool
from topa.features.sources import Failure, Sampling, Source, decode_source, find_sources
from topa.features.video import read_clip

REALCLIPS = Path(__file__).parents[2].parent / "shared" / "realclips"


@pytest.fixture
def stand_in(monkeypatch):
    """Lets decoding processes run a function of this file instead of `decode_source`."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2])  # theirs too: they import it by name
    return functools.partial(monkeypatch.setattr, decoding, "decode_source")


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
def test_a_crash_or_a_hang_costs_one_video(stand_in):
    stand_in(crash_or_read)
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


def memory(name: str) -> int:
    """Return a figure of this process's memory in MiB, as Linux tells it."""
    [line] = [
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)
    ]
    return int(line.split()[1]) >> 10


def read_and_measure(source: Source, sampling: Sampling) -> tuple[str, str, float, int]:
    """Stand in for `decode_source`; return also why not, the seconds, and the MiB that it took."""
    # What the process had from the start is that of the tests, whatever ran before.
    begun, reason, before = time.monotonic(), "", memory("VmRSS:")
    try:
        decode_source(source, sampling)
    except VideoError as error:
        reason = str(error)
    return source.id, reason, time.monotonic() - begun, memory("VmHWM:") - before


def damage(data: bytes, draw: random.Random) -> bytes:
    """Return a file with 1, 8 or 64 bits flipped, every third time cut off as well."""
    damaged = bytearray(data)
    for _ in range(draw.choice((1, 8, 64))):
        # Half of them among the headers, which say how large everything is.
        end = draw.choice((min(2048, len(damaged)), len(damaged)))
        damaged[draw.randrange(end)] ^= 1 << draw.randrange(8)
    if draw.random() < 1 / 3:
        del damaged[draw.randrange(1, len(damaged)) :]
    return bytes(damaged)


def remux(video: Path, folder: Path) -> list[Path]:
    """Write the pictures of a video as each of several kinds of file."""
    pictures = read_clip(video).images
    made = []
    for suffix, codec, pixels in (
        (".mp4", "libx264", "yuv420p"),
        (".mkv", "libx264", "yuv420p"),
        (".webm", "libvpx", "yuv420p"),
        (".ts", "mpeg2video", "yuv420p"),
        (".avi", "mpeg4", "yuv420p"),
        (".gif", "gif", "rgb8"),
    ):
        path = folder / f"made{suffix}"
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = *pictures[0].size, pixels
            for number in range(50):
                picture = pictures[number * len(pictures) // 50]
                container.mux(stream.encode(av.VideoFrame.from_image(picture)))
            container.mux(stream.encode())
        made.append(path)
    path = folder / "made.webp"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=500)
    return [*made, path]


@pytest.mark.slow
def test_flipped_bits_and_cut_ends_cost_one_video_each(video, tmp_path, stand_in):
    """140 damaged files of seven kinds: frames or a reason, in bounded time and memory."""
    (tmp_path / "whole").mkdir()
    (tmp_path / "damaged").mkdir()
    check_damaged(remux(video, tmp_path / "whole"), 20, tmp_path / "damaged", stand_in)


@pytest.mark.slow
@pytest.mark.skipif(not REALCLIPS.is_dir(), reason="the shared real clips are not here")
def test_damaged_real_clips_cost_one_video_each(tmp_path, stand_in):
    check_damaged(sorted(REALCLIPS.glob("*.mp4")), 6, tmp_path, stand_in)


def check_damaged(whole: list[Path], times: int, folder: Path, stand_in) -> None:
    """Read `times` damaged copies of each file."""
    draw = random.Random(0)
    for path in whole:
        for number in range(times):
            damaged = damage(path.read_bytes(), draw)
            (folder / f"{path.stem}-{number:02}{path.suffix}").write_bytes(damaged)
    stand_in(read_and_measure)
    sources = find_sources([folder])
    with DecodingPool(Sampling(num_frames=4, time_limit=20.0), 2) as pool:
        found = list(pool.decode(sources))
    assert not [item for item in found if isinstance(item, Failure)]  # crashed, hung, too large
    assert sorted(item[0] for item in found) == [source.id for source in sources]
    failed = [item for item in found if item[1]]
    assert 0 < len(failed) < len(sources)
    assert max(item[2] for item in found) < 25
    assert max(item[3] for item in found) < 1024
