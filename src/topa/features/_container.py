"""Opening one video file with PyAV: its container, its video stream, what its packets hold."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream

from topa.errors import VideoError

__all__ = ["Limits", "choose_stream", "is_broken", "open_container", "read_ends"]

_PICTURES = Disposition.attached_pic | Disposition.timed_thumbnails
# Demuxers that draw text as a picture, or that open other files named in this one.
_REFUSED_FORMATS = {"tty", "bin", "xbin", "adf", "idf", "hls", "dash", "concat"}


@dataclass(frozen=True)
class Limits:
    """What reading one video may cost; `deadline` is a time of `time.monotonic()`."""

    max_pixels: int
    time_limit: float
    deadline: float
    threads: int

    def check_time(self, path: Path) -> None:
        """Raise VideoError once the deadline has passed."""
        if time.monotonic() > self.deadline:
            raise VideoError(
                f"reading took longer than {self.time_limit:g} s",
                where=path,
                mend="Raise time_limit, or read a shorter part.",
            )

    def check_size(self, path: Path, width: int, height: int) -> None:
        """Raise VideoError for a frame of more than `max_pixels`."""
        if width * height > self.max_pixels:
            raise VideoError(
                f"frames of {width}x{height} are larger than {self.max_pixels} pixels",
                where=path,
                mend="Raise max_pixels, or scale the video down.",
            )


def open_container(path: Path, limits: Limits) -> InputContainer:
    """Open a local video file; files that it names are local too, and playlists are refused.

    Raises:
        VideoError: FFmpeg cannot read it, or it is a text or a playlist.
    """
    try:
        container = av.open(
            str(path.resolve()),
            metadata_errors="replace",
            timeout=limits.time_limit,
            container_options={"protocol_whitelist": "file"},
        )
    except FFmpegError as error:
        limits.check_time(path)  # opening stops at the time limit too
        raise VideoError(
            f"not a video that FFmpeg can read ({error.strerror})", where=path
        ) from None
    if container.format.name in _REFUSED_FORMATS:
        container.close()
        raise VideoError("a text or a playlist, not a video", where=path)
    return container


def choose_stream(container: InputContainer, path: Path) -> VideoStream:
    """Return the default video stream, else the first; cover art is not video.

    Raises:
        VideoError: There is none, or no decoder for it.
    """
    streams = [s for s in container.streams.video if not s.disposition & _PICTURES]
    if not streams:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "none"
        raise VideoError(f"no video stream in the file (streams: {kinds})", where=path)
    stream = next((s for s in streams if s.disposition & Disposition.default), streams[0])
    if stream.codec_context is None:
        raise VideoError("FFmpeg has no decoder for this video", where=path)
    return stream


def read_ends(
    container: InputContainer, stream: VideoStream, unit: Fraction, path: Path, limits: Limits
) -> tuple[int | None, int | None]:
    """Return where the packets from here on end: those of the video, and those of all streams.

    Both are in ticks of `unit` seconds, None where there are no packets.
    """
    ends: dict[bool, int] = {}
    clock = 0
    with contextlib.suppress(FFmpegError):  # a broken tail ends where it breaks
        for packet in container.demux():
            limits.check_time(path)
            video = packet.stream.index == stream.index
            if packet.size == 0 or packet.is_corrupt or packet.is_discard:
                continue
            if packet.pts is None and not video:
                continue
            pts = clock if packet.pts is None else packet.pts
            clock = pts + (packet.duration or 0)
            end = math.floor(clock * packet.time_base / unit)
            ends[video] = max(end, ends.get(video, end))
    limits.check_time(path)
    return ends.get(True), max(ends.values(), default=None)


def is_broken(packet: Packet) -> bool:
    """Whether a packet is known to hold only a part of its frame."""
    if packet.stream.codec_context.name == "gif" and packet.size:
        # The GIF demuxer does not say so: data end in an empty block, the file in a semicolon.
        return not bytes(packet).endswith((b"\0", b"\0;"))
    return packet.is_corrupt
