"""Frames of a real video: exactly those on screen at evenly spaced times, or a clear error."""

from __future__ import annotations

import contextlib
import math
import struct
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol, cast

from av.sidedata.sidedata import SideDataContainer
from av.video.frame import VideoFrame
from PIL import Image

from topa.errors import ConfigError, VideoError
from topa.features._container import Limits
from topa.features._reader import Reader
from topa.features._torchcodec import Decoder, InexactError, TorchcodecFrames, choose_decoder
from topa.features.pictures import FolderReader, WebpReader, is_webp
from topa.features.sampling import sample_times, segment_middles

__all__ = ["MAX_FRAMES", "MAX_PIXELS", "Clip", "check_path", "read_clip", "segment_middles"]

MAX_PIXELS = 2**26  # 8K is half of this
MAX_FRAMES = 1024
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


class _ImageReader(Protocol):
    """What gives the image on screen at a time, asked in increasing order."""

    @property
    def duration(self) -> Fraction | None: ...

    @property
    def rate(self) -> Fraction: ...

    def image_at(self, time: Fraction) -> tuple[Fraction, Image.Image]: ...

    def close(self) -> None: ...


def read_clip(
    path: str | Path,
    *,
    num_frames: int = 10,
    start: float | None = None,
    end: float | None = None,
    rule: str = "middle",
    fps: float | None = None,
    frame_rate: float = 1.0,
    max_pixels: int = MAX_PIXELS,
    max_frames: int = MAX_FRAMES,
    time_limit: float = 60.0,
    threads: int = 1,
    decoder: str = "pyav",
) -> Clip:
    """Read the frames on screen at chosen times, by default the middles of equal segments.

    The frame on screen at time t is the last one shown at or before t. A frame that is on
    screen at several of these times is returned once, so a short video gives fewer frames.
    Long stretches are skipped by seeking to key frames; the result is that of a full decode.

    Args:
        path: Any file that FFmpeg reads and that holds a video stream, an animated WebP, or a
            folder of images in the order of their names.
        num_frames: Number of frames asked for; not used with `fps`.
        start: Seconds after the first frame; the first frame if None.
        end: Seconds after the first frame; the end if None or later than the end.
        rule: How times are chosen, one of `topa.features.sampling.RULES`.
        fps: Look at so many frames a second instead.
        frame_rate: Images of a folder that are shown a second.
        max_pixels: Most pixels (width * height) a frame may have.
        max_frames: Most frames to return.
        time_limit: Most seconds to spend on this file.
        threads: Threads of the decoder.
        decoder: "pyav", "torchcodec", or "auto": torchcodec where it loads. What it does not
            read exactly, PyAV reads; all else is the same to the bit.

    Raises:
        ConfigError: A number that must be positive is not, the rule is unknown, or torchcodec
            is asked for and does not load.
        VideoError: The file cannot be read, a wanted frame cannot be decoded, the interval is
            empty or outside the video, a frame is too large, there are too many frames, or
            the time limit has passed.
    """
    rates = {"fps": 1 if fps is None else fps, "frame_rate": frame_rate}
    _check_positive(num_frames=num_frames, **rates, threads=threads)
    _check_positive(max_pixels=max_pixels, max_frames=max_frames, time_limit=time_limit)
    path = check_path(path)
    limits = Limits(max_pixels, time_limit, time.monotonic() + time_limit, threads)
    times: list[float] = []
    images: list[Image.Image] = []
    opened = _open(path, limits, choose_decoder(decoder), frame_rate)
    with contextlib.closing(opened) as reader:
        low, high = _interval(path, start, end, reader.duration)
        wanted = [low]
        if high is not None:
            per_second = None if fps is None else Fraction(str(float(fps)))
            wanted = sample_times(rule, num_frames, low, high, reader.rate, per_second)
        _check_count(path, len(wanted), max_frames)
        shown = None
        for moment in wanted:
            begun, image = reader.image_at(moment)
            if begun != shown:
                times.append(float(begun))
                images.append(image)
            shown = begun
        duration = reader.duration
    return Clip(str(path), times, images, None if duration is None else float(duration))


class _FrameReader:
    """A video file's frames as upright RGB images."""

    def __init__(self, path: Path, limits: Limits, decoder: Decoder):
        self._reader = Reader(path, limits)
        self.duration, self.rate = self._reader.duration, self._reader.rate
        self._quick: TorchcodecFrames | None = None
        if decoder == "torchcodec":
            with contextlib.suppress(InexactError):
                self._quick = TorchcodecFrames(self._reader)

    def image_at(self, time: Fraction) -> tuple[Fraction, Image.Image]:
        """Return when the frame on screen at `time` begins, and the frame."""
        reader = self._reader
        wanted = reader.origin + math.floor(time / reader.unit)
        if self._quick is not None:
            try:
                pts, image = self._quick.image_at(wanted)
                return (pts - reader.origin) * reader.unit, image
            except InexactError:
                self._quick = None
        pts, frame = reader.frame_at(wanted)
        return (pts - reader.origin) * reader.unit, _upright(frame)

    def close(self) -> None:
        """Close the file."""
        self._quick = None
        self._reader.close()


def _open(path: Path, limits: Limits, decoder: Decoder, frame_rate: float) -> _ImageReader:
    if path.is_dir():
        return FolderReader(path, limits, Fraction(str(float(frame_rate))))
    return WebpReader(path, limits) if is_webp(path) else _FrameReader(path, limits, decoder)


def _check_positive(**numbers: float) -> None:
    for name, value in numbers.items():
        if not (value > 0 and math.isfinite(value)):
            raise ConfigError(f"{name} must be positive, got {value}", where="read_clip")


def _check_count(path: Path, count: int, most: int) -> None:
    if count > most:
        raise VideoError(
            f"{count} frames asked for, at most {most} are read",
            where=path,
            mend="Lower fps, read a shorter part, or raise max_frames.",
        )


def check_path(path: str | Path) -> Path:
    """Return the path of a file that is not empty, or of a folder.

    Raises:
        VideoError: It is neither.
    """
    path = Path(path)
    if not path.exists():
        raise VideoError("file not found", where=path, mend="Check the path.")
    if path.is_dir():
        return path
    if not path.is_file():
        raise VideoError("not a regular file, not a video", where=path, mend="Name one video file.")
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
