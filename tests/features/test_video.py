"""Frames are checked by a number that each frame shows: eight bars, the bits of its index."""

from __future__ import annotations

import functools
import itertools
import os
import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from topa.errors import ConfigError, VideoError
from topa.features import _reader
from topa.features._torchcodec import choose_decoder
from topa.features.video import read_clip, segment_middles

REALCLIPS = Path(__file__).parents[2].parent / "shared" / "realclips"
RATE = 10


def draw(index: int, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    picture = np.zeros((size[1], size[0], 3), np.uint8)
    width = size[0] // 8
    for bit in range(8):
        picture[:, bit * width : (bit + 1) * width] = 255 * ((index >> bit) & 1)
    return picture


def number(image: Image.Image) -> int:
    columns = np.asarray(image.convert("L")).mean(0).reshape(8, -1).mean(1)
    return sum(1 << bit for bit in range(8) if columns[bit] > 127)


def numbers(clip) -> list[int]:
    return [number(image) for image in clip.images]


def add_video(container, codec="libx264", options=None, pixels="yuv420p", size=(64, 48)):
    options = {"g": "12", "bf": "3"} if options is None else options
    stream = container.add_stream(codec, rate=RATE, options=options)
    stream.width, stream.height, stream.pix_fmt, stream.thread_count = *size, pixels, 1
    return stream


def mux_video(container, stream, count: int, times: list[int] | None = None) -> None:
    """Encode frames 0 to count - 1, shown at index / RATE or at `times` (milliseconds)."""
    unit = Fraction(1, RATE) if times is None else Fraction(1, 1000)
    if times is not None:
        stream.codec_context.time_base = unit
    for index in range(count):
        picture = draw(index, (stream.width, stream.height))
        frame = av.VideoFrame.from_ndarray(picture, "rgb24")
        frame.pts, frame.time_base = (index if times is None else times[index]), unit
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def make_video(
    path: Path,
    count: int = 60,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    pixels: str = "yuv420p",
    times: list[int] | None = None,
    **muxer,
) -> Path:
    with av.open(str(path), "w", **muxer) as container:
        mux_video(container, add_video(container, codec, options, pixels), count, times)
    return path


def add_audio(container, seconds: float) -> None:
    stream = container.add_stream("pcm_s16le", rate=8000)
    for start in range(0, int(8000 * seconds), 800):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.sample_rate, frame.pts = 8000, start
        container.mux(stream.encode(frame))


KINDS = {
    "a.mp4": {},
    "faststart.mp4": {"container_options": {"movflags": "faststart"}},
    "fragmented.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "open_gop.mp4": {"options": {"g": "25", "flags": "-cgop", "x264-params": "scenecut=0"}},
    "refresh.mp4": {"options": {"g": "25", "x264-params": "intra-refresh=1"}},
    "a.mkv": {},
    "a.flv": {},
    "a.ts": {"format": "mpegts"},
    "stream.h264": {"format": "h264"},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"g": "12", "bf": "2"}},
    "h264.avi": {},
    "a.webm": {"codec": "libvpx", "options": {"g": "20", "deadline": "realtime"}},
    "live.webm": {  # as a browser records it: no duration, no index
        "codec": "libvpx",
        "options": {"g": "20", "deadline": "realtime"},
        "container_options": {"live": "1"},
    },
    "a.gif": {"codec": "gif", "pixels": "rgb8", "options": {}},
    "mjpeg.mkv": {"codec": "mjpeg", "pixels": "yuvj420p", "options": {}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file of 60 frames for each kind."""
    folder = tmp_path_factory.mktemp("videos")
    for name, kind in KINDS.items():
        make_video(folder / name, **kind)
    return folder


@pytest.fixture(scope="module", params=["pyav", "torchcodec"])
def read(request: pytest.FixtureRequest):
    """`read_clip` with either decoder."""
    try:
        choose_decoder(request.param)
    except ConfigError as error:
        pytest.skip(str(error))
    return functools.partial(read_clip, decoder=request.param)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Seek wherever it may pay, and record the seeks."""
    seeks: list[int] = []
    seek = _reader.Reader._seek

    def record(self, pts: int) -> None:
        seeks.append(pts)
        seek(self, pts)

    monkeypatch.setattr(_reader, "SEEK_GAP", 1.0)
    monkeypatch.setattr(_reader.Reader, "_seek", record)
    return seeks


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_gives_the_frames_at_the_middles(read, folder: Path, name: str) -> None:
    clip = read(folder / name)
    # 6 s in 10 segments of 0.6 s: middles 0.3, 0.9, ... at 10 frames per second.
    assert numbers(clip) == [3, 9, 15, 21, 27, 33, 39, 45, 51, 57]
    assert clip.times == pytest.approx([0.3 + 0.6 * j for j in range(10)])
    assert clip.duration == pytest.approx(6.0)
    assert clip.source == str(folder / name)
    assert all(image.mode == "RGB" and image.size == (64, 48) for image in clip.images)
    assert numbers(read(folder / name, num_frames=60)) == list(range(60))
    assert numbers(read(folder / name, threads=3)) == numbers(clip)


EXACT = ["a.mp4", "fragmented.mp4", "open_gop.mp4", "a.mkv", "a.webm"]


@pytest.mark.parametrize(
    "path", [*map(Path, EXACT), *sorted(REALCLIPS.glob("*.mp4"))], ids=lambda path: path.name
)
def test_torchcodec_gives_the_same_to_the_bit(monkeypatch, folder: Path, path: Path) -> None:
    try:
        choose_decoder("torchcodec")
    except ConfigError as error:
        pytest.skip(str(error))
    expected = read_clip(folder / path)
    monkeypatch.setattr(_reader.Reader, "frame_at", None)  # PyAV could not give one
    clip = read_clip(folder / path, decoder="torchcodec")
    assert clip.times == expected.times
    for image, other in zip(clip.images, expected.images, strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(other))


@pytest.mark.parametrize("name", KINDS)
def test_seeking_changes_nothing(folder: Path, name: str, eager: list[int]) -> None:
    for start, end, count in ((0, 6, 4), (2.35, 5.9, 3), (5, 6, 10), (0.1, 5.6, 2), (4.75, 4.8, 1)):
        low, high = Fraction(str(start)), Fraction(str(end))
        middles = [low + (high - low) * (2 * j + 1) / (2 * count) for j in range(count)]
        expected = dict.fromkeys(int(middle * RATE) for middle in middles)
        clip = read_clip(folder / name, num_frames=count, start=start, end=end)
        assert numbers(clip) == list(expected)
    no_seek = name.endswith((".h264", "h264.avi"))
    assert bool(eager) != no_seek


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_interval_is_the_frame_at_or_before_each_middle(read, folder: Path, data) -> None:
    name = data.draw(st.sampled_from(["a.mp4", "a.mkv", "a.ts", "open_gop.mp4"]))
    count = data.draw(st.integers(1, 70))
    start = data.draw(st.integers(0, 598))  # hundredths of a second
    end = data.draw(st.integers(start + 1, 700))
    clip = read(folder / name, num_frames=count, start=start / 100, end=end / 100)
    low, high = Fraction(start, 100), min(Fraction(end, 100), Fraction(6))
    middles = [low + (high - low) * (2 * j + 1) / (2 * count) for j in range(count)]
    assert numbers(clip) == list(dict.fromkeys(int(middle * RATE) for middle in middles))
    assert clip.times == sorted(set(clip.times))


@given(
    st.integers(1, 200),
    st.fractions(0, 1000, max_denominator=1000),
    st.fractions("1/1000", 1000, max_denominator=1000),
)
def test_middles_are_the_centres_of_equal_segments(count: int, start: Fraction, length: Fraction):
    middles = segment_middles(count, start, start + length)
    edges = [start + length * j / count for j in range(count + 1)]
    assert middles == [(a + b) / 2 for a, b in itertools.pairwise(edges)]


def test_variable_rate_shows_the_last_frame_at_or_before(read, tmp_path: Path) -> None:
    path = make_video(tmp_path / "v.mkv", 5, times=[0, 100, 3000, 3100, 3900])
    clip = read(path, num_frames=4, start=0, end=4)  # middles 0.5, 1.5, 2.5, 3.5
    assert numbers(clip) == [1, 3]
    assert clip.times == pytest.approx([0.1, 3.1])


def test_frames_stored_out_of_order_are_sorted_by_time(read, tmp_path: Path) -> None:
    times = [0, 300, 100, 200, 600, 400, 500, 900, 700, 800]
    path = tmp_path / "o.mkv"
    with av.open(str(path), "w") as container:
        stream = add_video(container, "mjpeg", {}, "yuvj420p")
        for index, when in enumerate(times):
            frame = av.VideoFrame.from_ndarray(draw(index), "rgb24")
            for packet in stream.encode(frame):
                packet.time_base = Fraction(1, 1000)
                packet.pts, packet.dts = when, index - 10
                container.mux(packet)
    with av.open(str(path)) as container:
        stored = [frame.pts for frame in container.decode(video=0)]
    assert stored != sorted(stored)
    shown = sorted(range(10), key=times.__getitem__)
    assert numbers(read(path, num_frames=10)) == shown


def test_times_count_from_the_first_frame(read, tmp_path: Path) -> None:
    path = make_video(tmp_path / "late.ts", 20, times=[5000 + 100 * i for i in range(20)])
    with av.open(str(path)) as container:
        assert container.streams.video[0].start_time >= 5 * 90000
    clip = read(path, num_frames=2)
    assert (numbers(clip), clip.times) == ([5, 15], pytest.approx([0.5, 1.5]))
    assert clip.duration == pytest.approx(2.0)


def test_fewer_frames_than_asked_are_each_given_once(read, tmp_path: Path) -> None:
    path = make_video(tmp_path / "short.mp4", 4)
    clip = read(path, num_frames=10)
    assert (numbers(clip), clip.times) == ([0, 1, 2, 3], pytest.approx([0, 0.1, 0.2, 0.3]))


def test_a_still_picture_is_one_frame(tmp_path: Path) -> None:
    Image.fromarray(draw(77)).save(tmp_path / "a.png")
    assert numbers(read_clip(tmp_path / "a.png")) == [77]


def test_longer_audio_does_not_lengthen_the_video(read, tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = add_video(container)
        add_audio(container, 9.0)
        mux_video(container, stream, 20)
    clip = read(path, num_frames=2)
    assert (numbers(clip), clip.duration) == ([5, 15], pytest.approx(2.0))


def test_the_default_video_stream_is_read_and_cover_art_is_not(tmp_path: Path) -> None:
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as container:
        first, second = add_video(container), add_video(container, size=(128, 96))
        first.disposition = av.stream.Disposition(0)
        second.disposition = av.stream.Disposition.default
        mux_video(container, first, 10)
        mux_video(container, second, 10)
    assert read_clip(path, num_frames=1).images[0].size == (128, 96)

    song = tmp_path / "song.mp4"
    with av.open(str(song), "w") as container:
        audio = container.add_stream("aac", rate=8000)
        art = container.add_stream("mjpeg", rate=1)
        art.width, art.height, art.pix_fmt = 64, 48, "yuvj420p"
        art.disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(draw(1), "rgb24")
        container.mux(art.encode(picture))
        for start in range(0, 8000, 800):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 8000, start
            container.mux(audio.encode(frame))
        container.mux(audio.encode())
    with pytest.raises(VideoError, match=r"no video stream in the file \(streams: audio, video\)"):
        read_clip(song)


ONE, UNIT = 1 << 16, 1 << 30
TURNED = {  # tkhd matrix a b u c d v -> what NumPy does to the stored picture
    "clockwise": ((0, ONE, 0, -ONE, 0, 0), lambda p: np.rot90(p, -1)),
    "counterclockwise": ((0, -ONE, 0, ONE, 0, 0), lambda p: np.rot90(p, 1)),
    "upside down": ((-ONE, 0, 0, 0, -ONE, 0), lambda p: np.rot90(p, 2)),
    "mirrored": ((-ONE, 0, 0, 0, ONE, 0), np.fliplr),
    "flipped": ((ONE, 0, 0, 0, -ONE, 0), np.flipud),
    "transposed": ((0, ONE, 0, ONE, 0, 0), lambda p: p.transpose(1, 0, 2)),
    "transversed": ((0, -ONE, 0, -ONE, 0, 0), lambda p: np.rot90(p, 2).transpose(1, 0, 2)),
}


@pytest.mark.parametrize("turn", TURNED)
def test_rotation_metadata_is_honoured(read, folder: Path, tmp_path: Path, turn: str) -> None:
    matrix, expected = TURNED[turn]
    content = bytearray((folder / "a.mp4").read_bytes())
    place = content.index(b"tkhd") + 44  # version 0: 40 bytes of fields before the matrix
    content[place : place + 36] = struct.pack(">9i", *matrix, 0, 0, UNIT)
    (tmp_path / "turned.mp4").write_bytes(content)
    stored = read(folder / "a.mp4", num_frames=1).images[0]
    turned = read(tmp_path / "turned.mp4", num_frames=1).images[0]
    assert np.array_equal(np.asarray(turned), expected(np.asarray(stored)))


CUTS = ["faststart.mp4", "fragmented.mp4", "a.mkv", "a.flv", "a.ts", "mpeg4.avi", "a.webm", "a.gif"]


@pytest.mark.parametrize("name", CUTS)
def test_a_cut_file_gives_an_error_or_true_frames(
    read, folder: Path, tmp_path: Path, name: str
) -> None:
    content = (folder / name).read_bytes()
    path = tmp_path / name
    refused = 0
    for part in range(5, 100, 7):
        path.write_bytes(content[: len(content) * part // 100])
        try:
            clip = read(path, num_frames=60)
        except VideoError:
            refused += 1
            continue
        # Only a file that states no length (or a shorter one) may pass, with what is in it.
        assert numbers(clip) == list(range(len(clip.images)))
        assert clip.duration == pytest.approx(len(clip.images) / RATE)
    assert refused


def test_a_broken_tail_is_named_and_what_is_before_it_can_be_read(
    read, folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "cut.mp4"
    content = (folder / "faststart.mp4").read_bytes()
    path.write_bytes(content[: len(content) * 85 // 100])
    with pytest.raises(VideoError, match=r"cannot be decoded past [1-5]\.\d\d s of 6\.00 s"):
        read(path)
    assert numbers(read(path, num_frames=2, start=0, end=1)) == [2, 7]


def test_damage_in_the_middle_is_not_covered_up(read, folder: Path, tmp_path: Path) -> None:
    with av.open(str(folder / "a.mp4")) as container:
        packet = list(container.demux(video=0))[30]
    content = bytearray((folder / "a.mp4").read_bytes())
    content[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    path = tmp_path / "hole.mp4"
    path.write_bytes(content)
    with pytest.raises(VideoError, match=r"cannot be decoded past 2\.\d\d s of 6\.00 s"):
        read(path, num_frames=60)
    # Key frames are at 2.4 s and 3.6 s: the damage between them spoils nothing beyond.
    assert numbers(read(path, num_frames=2, start=3.6, end=6)) == [42, 54]


def write_audio(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        add_audio(container, 1.0)
    return path


def write_file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:6,\na.ts\n#EXT-X-ENDLIST\n"
BAD_FILES = {
    "file not found": lambda f: f / "none.mp4",
    "a folder": lambda f: f,
    "not a regular file": lambda f: fifo(f / "pipe.mp4"),
    "the file is empty": lambda f: write_file(f / "a.mp4", b""),
    "not a video that FFmpeg can read": lambda f: write_file(f / "a.mp4", b"just a text\n" * 99),
    "a text or a playlist": lambda f: write_file(f / "a.txt", b"just a text\n" * 99),
    r"no video stream in the file \(streams: audio\)": lambda f: write_audio(f / "a.wav"),
    "not one frame can be decoded": lambda f: write_file(
        f / "a.gif", b"GIF89a" + struct.pack("<HH", 8, 8) + b"\x80\0\0" + bytes(6) + b";"
    ),
}


@pytest.mark.parametrize("message", BAD_FILES)
def test_bad_files_give_one_clear_line(tmp_path: Path, message: str) -> None:
    with pytest.raises(VideoError, match=message) as caught:
        read_clip(BAD_FILES[message](tmp_path))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_playlist_is_not_followed(folder: Path) -> None:
    write_file(folder / "list.m3u8", PLAYLIST)
    with pytest.raises(VideoError, match="a text or a playlist"):
        read_clip(folder / "list.m3u8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": 3, "end": 3}, "start 3 s is not before end 3 s"),
        ({"start": 4, "end": 1}, "start 4 s is not before end 1 s"),
        ({"start": 6}, r"beyond the end of the video \(6.00 s\)"),
        ({"start": 99, "end": 100}, "beyond the end"),
        ({"start": -1}, "start is -1"),
        ({"end": float("nan")}, "end is nan"),
        ({"max_pixels": 64 * 48 - 1}, "frames of 64x48 are larger than 3071 pixels"),
        ({"time_limit": 1e-9}, "took longer than 1e-09 s"),
    ],
)
def test_bad_intervals_and_limits(read, folder: Path, arguments: dict, message: str) -> None:
    with pytest.raises(VideoError, match=message):
        read(folder / "a.mp4", **arguments)


@pytest.mark.parametrize("name", ["num_frames", "max_pixels", "time_limit", "threads"])
def test_numbers_that_are_not_positive_are_wrong_use(folder: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be positive, got 0"):
        read_clip(folder / "a.mp4", **{name: 0})


def test_an_end_after_the_end_is_the_end(read, folder: Path) -> None:
    assert numbers(read(folder / "a.mp4", num_frames=2, start=5, end=99)) == [52, 57]


def test_files_are_closed_even_after_errors(read, folder: Path) -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("counts open files under /proc")
    before = len(os.listdir("/proc/self/fd"))
    for arguments in ({}, {"start": 9}, {"max_pixels": 1}, {"time_limit": 1e-9}):
        try:
            read(folder / "a.mp4", **arguments)
        except VideoError:
            continue
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.slow
@pytest.mark.skipif(not REALCLIPS.is_dir(), reason="the shared real clips are not here")
@pytest.mark.parametrize("path", sorted(REALCLIPS.glob("*.mp4")), ids=lambda path: path.stem)
def test_real_clips_equal_a_full_decode(path: Path) -> None:
    clip = read_clip(path)
    assert len(clip.images) == 10
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        length = stream.duration * stream.time_base
        wanted = [length * (2 * j + 1) / 20 for j in range(10)]
        shown: dict[int, av.VideoFrame] = {}
        for frame in container.decode(stream):  # in display order in these files
            for j, middle in enumerate(wanted):
                if frame.pts * frame.time_base <= middle:
                    shown[j] = frame
    for j, image in enumerate(clip.images):
        assert np.array_equal(np.asarray(image), shown[j].to_ndarray(format="rgb24"))
        assert clip.times[j] == pytest.approx(float(shown[j].pts * shown[j].time_base))
