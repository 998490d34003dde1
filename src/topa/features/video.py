"""Frames of a real video: exactly those on screen at evenly spaced times, or a clear error."""

from __future__ import annotations

import contextlib
import math
import struct
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import cast

from av.sidedata.sidedata import SideDataContainer
from av.video.frame import VideoFrame
from PIL import Image

from topa.errors import ConfigError, VideoError
from topa.features._container import Limits
from topa.features._reader import Reader

MAX_PIXELS = 2**26  # 8K is half of this
# Signs of a, b, c, d in a display matrix (x' = ax + cy, y' = bx + dy, y down) -> what to do.
_TURNS = {
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,  # clockwise, as phones held upright write it
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}


@dataclass(frozen=True)
class Clip:
    """Frames of one video.

    Attributes:
        source: The file they come from.
        times: When each frame comes on screen, in seconds after the video's first frame.
        images: The frames, RGB, upright.
        duration: Length of the whole video in seconds, if known.
    """

    source: str
    times: list[float]
    images: list[Image.Image]
    duration: float | None


def segment_middles(num_frames: int, start: Fraction, end: Fraction) -> list[Fraction]:
    """Return the middle of each of `num_frames` equal segments of [start, end], exactly."""
    return [start + (end - start) * (2 * j + 1) / (2 * num_frames) for j in range(num_frames)]


def read_clip(
    path: str | Path,
    *,
    num_frames: int = 10,
    start: float | None = None,
    end: float | None = None,
    max_pixels: int = MAX_PIXELS,
    time_limit: float = 60.0,
    threads: int = 1,
) -> Clip:
    """Read the frames on screen at the middles of `num_frames` equal segments of [start, end].

    The frame on screen at time t is the last one shown at or before t. A frame that is on
    screen at several of these times is returned once, so a short video gives fewer frames.
    Long stretches are skipped by seeking to key frames; the result is that of a full decode.

    Args:
        path: Any file that FFmpeg reads and that holds a video stream.
        num_frames: Number of segments.
        start: Seconds after the first frame; the first frame if None.
        end: Seconds after the first frame; the end if None or later than the end.
        max_pixels: Most pixels (width * height) a frame may have.
        time_limit: Most seconds to spend on this file.
        threads: Threads of the decoder.

    Raises:
        ConfigError: `num_frames`, `max_pixels`, `time_limit` or `threads` is not positive.
        VideoError: The file cannot be read, a wanted frame cannot be decoded, the interval is
            empty or outside the video, a frame is too large, or the time limit has passed.
    """
    for name, value in (
        ("num_frames", num_frames),
        ("max_pixels", max_pixels),
        ("time_limit", time_limit),
        ("threads", threads),
    ):
        if not value > 0:
            raise ConfigError(f"{name} must be positive, got {value}", where="read_clip")
    path = _checked_path(path)
    limits = Limits(max_pixels, time_limit, time.monotonic() + time_limit, threads)
    times, images = [], []
    with contextlib.closing(Reader(path, limits)) as reader:
        low, high = _interval(path, start, end, reader.duration)
        middles = [low] if high is None else segment_middles(num_frames, low, high)
        shown = None
        for middle in middles:
            pts, frame = reader.frame_at(reader.origin + math.floor(middle / reader.unit))
            if pts != shown:
                times.append(float((pts - reader.origin) * reader.unit))
                images.append(_upright(frame))
            shown = pts
        duration = reader.duration
    return Clip(str(path), times, images, None if duration is None else float(duration))


def _checked_path(path: str | Path) -> Path:
    path = Path(path)
    if not path.exists():
        raise VideoError("file not found", where=path, mend="Check the path.")
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "not a regular file"
        raise VideoError(f"{kind}, not a video", where=path, mend="Name one video file.")
    if path.stat().st_size == 0:
        raise VideoError("the file is empty", where=path, mend="Copy the video again.")
    return path


def _interval(
    path: Path, start: float | None, end: float | None, duration: Fraction | None
) -> tuple[Fraction, Fraction | None]:
    """Return [start, end] in seconds, cut at the video's end; no end if nobody knows it."""
    for name, value in (("start", start), ("end", end)):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise VideoError(
                f"{name} is {value}, not a time in seconds", where=path, mend="Pass 0 or more."
            )
    # The decimal that was written, not its nearest binary number: 0.3 s is frame 3 at 10 fps.
    low = Fraction(str(float(start or 0)))
    high = None if end is None else Fraction(str(float(end)))
    if high is not None and low >= high:
        raise VideoError(f"start {start} s is not before end {end} s", where=path)
    if duration is not None and low >= duration:
        raise VideoError(
            f"start {float(low):g} s is beyond the end of the video ({float(duration):.2f} s)",
            where=path,
            mend="Pass an earlier start.",
        )
    known = [time for time in (high, duration) if time is not None]
    return low, min(known, default=None)


def _upright(frame: VideoFrame) -> Image.Image:
    """Return a frame as RGB, turned and mirrored in right angles as its display matrix says.

    PyAV's `frame.rotation` is not enough: it takes a mirrored frame for one turned by 180.
    """
    image = frame.to_image(threads=1)
    # PyAV's stub calls it a dictionary of motion vectors.
    matrix = cast(SideDataContainer, frame.side_data).get("DISPLAYMATRIX")
    if matrix is None:
        return image
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix))
    scale = max(map(abs, (a, b, c, d))) or 1
    turn = _TURNS.get(tuple(round(value / scale) for value in (a, b, c, d)))
    return image if turn is None else image.transpose(turn)
