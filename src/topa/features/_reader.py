"""Decoding one video file with PyAV: display order, seeking that stays exact, damage noted."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame

from topa.errors import VideoError
from topa.features._container import Limits, choose_stream, is_broken, open_container, read_ends

__all__ = ["Reader"]

# Files may carry timestamps out of order; decoders reorder by up to 16 frames, files by few.
REORDER_WINDOW = 8
# Without an index, a key frame is likely within this many seconds: decode on, do not seek.
SEEK_GAP = 10.0
SEEK_TRIES = 6
# MPEG program streams have times for some frames only, and others are guessed from those before.
_UNSEEKABLE_FORMATS = {"mpeg"}
# No header says how long these are: a gap among the very last frames is the only sign of a cut.
_ENDLESS_FORMATS = {"mpegts"}
_CUT = "the file is damaged or cut off there"


class Reader:
    """One video's frames in display order, sequentially or from a key frame on.

    Attributes:
        unit: Seconds per tick of pts.
        origin: pts of the first frame.
        duration: Seconds from the first frame to the end of the last, if known.
        rate: Frames per second on average, 25 if the file does not tell.
    """

    def __init__(self, path: Path, limits: Limits):
        self.path, self.limits = path, limits
        self.cut_off = False  # the file holds less than its header promises
        self.container = open_container(path, limits)
        with contextlib.ExitStack() as opened:
            opened.callback(self.close)  # taken back below, once nothing can fail
            self._choose_stream()
            end = self._find_end()
            self._restart()
            self._fill()
            if not self.window:
                raise VideoError(
                    f"not one frame can be decoded ({self.damage or 'the stream is empty'})",
                    where=path,
                    mend="Convert the file to MP4 with ffmpeg, or leave it out.",
                    reached=0.0,
                )
            opened.pop_all()
        self.origin = self.window[0][0]
        length = 0 if end is None else end - self.origin
        self.duration = length * self.unit if length > 0 else None

    def close(self) -> None:
        """Close the file; harmless when done twice."""
        self.container.close()

    def _choose_stream(self) -> None:
        self.stream = choose_stream(self.container, self.path)
        context = self.stream.codec_context
        self.limits.check_size(self.path, context.width, context.height)
        self.stream.thread_type = "AUTO"
        self.stream.thread_count = self.limits.threads
        self.unit = self.stream.time_base or Fraction(1, av.time_base)
        rate = self.stream.average_rate or self.stream.guessed_rate
        self.rate = Fraction(rate or 25)
        self.step = math.ceil(1 / (rate * self.unit)) if rate else 1
        # AVI stores no display times: those of reordered H.264 are wrong, its order is right.
        name = self.container.format.name
        self.untimed = name == "avi" and context.name in ("h264", "hevc")
        self.seekable = not self.untimed and name not in _UNSEEKABLE_FORMATS
        self.endless = name in _ENDLESS_FORMATS

    def _reopen(self) -> None:
        self.close()
        self.container = open_container(self.path, self.limits)
        self._choose_stream()

    def _restart(self) -> None:
        self._reopen()
        self._begin(self.container.demux(self.stream), trusted=None)

    def _begin(self, packets: Iterable[Packet], trusted: int | None) -> None:
        frames = self._decode(packets, trusted)
        self.source = _retimed(frames) if self.untimed else frames
        self.trusted = trusted
        self.window: list[tuple[int, int, VideoFrame]] = []
        self.counter = itertools.count()
        self.current: tuple[int, VideoFrame] | None = None
        self.newest: int | None = None
        self.damage: str | None = None

    def _find_end(self) -> int | None:
        """Return the pts at which the last frame ends, reading packets near the end only."""
        promised = None
        if self.stream.duration:
            promised = (self.stream.start_time or 0) + self.stream.duration
        elif self.container.duration:
            promised = int(Fraction(self.container.duration, av.time_base) / self.unit)
        if promised is not None:
            with contextlib.suppress(FFmpegError):  # cannot seek: read all of it
                self.container.seek(promised, stream=self.stream)
        video_end, any_end = self._read_ends()
        if promised is None:
            return video_end
        if video_end is None:  # the index points beyond a cut, or past the last video packet
            self._reopen()
            video_end, any_end = self._read_ends()
        reached = video_end if self.stream.duration else any_end
        tolerance = max(self.step, math.ceil(Fraction(1, 20) / self.unit))
        self.cut_off = reached is None or reached < promised - tolerance
        if self.cut_off or video_end is None:
            return promised
        return max(video_end, promised) if self.stream.duration else video_end

    def _read_ends(self) -> tuple[int | None, int | None]:
        return read_ends(self.container, self.stream, self.unit, self.path, self.limits)

    def _decode(
        self, packets: Iterable[Packet], trusted: int | None
    ) -> Iterator[tuple[int, VideoFrame]]:
        """Yield (pts, frame) as decoded, to the end or to the first damage, noted in `damage`."""
        clock, seen = trusted or 0, False
        try:
            for packet in packets:
                self.limits.check_time(self.path)
                last = packet.size == 0 and packet.dts is None
                broken = is_broken(packet)
                if (broken and not seen) or (packet.size == 0 and not last):
                    continue  # a recording may start mid-frame; in AVI nothing means "repeat"
                if broken or (last and self.cut_off):
                    # What a decoder still holds at a cut has gaps where frames are missing.
                    self.damage = _CUT
                    return
                try:
                    frames = packet.decode()
                except FFmpegError as error:
                    self.damage = error.strerror
                    if seen:
                        return
                    continue
                for frame in frames:
                    self.limits.check_size(self.path, frame.width, frame.height)
                    if frame.pts is None:  # a bare stream: only counting tells the time
                        self.seekable = False
                    pts = clock if frame.pts is None else frame.pts
                    if last and self.endless and seen and pts > clock + self.step / 2:
                        self.damage = _CUT
                        return
                    clock = pts + (frame.duration or self.step)
                    if trusted is None or pts >= trusted:
                        seen, self.damage = True, None
                        yield pts, frame
        except FFmpegError as error:
            self.limits.check_time(self.path)
            self.damage = error.strerror

    def _fill(self) -> None:
        while len(self.window) <= REORDER_WINDOW:
            item = next(self.source, None)
            if item is None:
                return
            self.newest = item[0] if self.newest is None else max(self.newest, item[0])
            heapq.heappush(self.window, (item[0], next(self.counter), item[1]))

    def frame_at(self, pts: int) -> tuple[int, VideoFrame]:
        """Return (pts, frame) of the frame on screen at `pts`; ask in increasing order."""
        if self._worth_seeking(pts):
            self._seek(pts)
        self._fill()
        sought = self.trusted is not None and self.current is None
        if sought and (not self.window or self.window[0][0] > pts):  # a false key frame
            self._restart()
            self._fill()
        while self.window and (self.current is None or self.window[0][0] <= pts):
            first, _, frame = heapq.heappop(self.window)
            self.current = (first, frame)
            self._fill()
        if not self.window:
            self._check_reached(pts)
        assert self.current is not None
        return self.current

    def _check_reached(self, pts: int) -> None:
        """Refuse a time that the last decoded frame does not reach."""
        if self.current is None:
            reached = self.origin
        else:
            reached = self.current[0] + (self.current[1].duration or self.step)
        # Headers round the end: half a frame is not a missing frame, unless damage is known.
        slack = 0 if self.damage else self.step / 2
        if self.current is not None and pts < reached + slack:
            return
        seconds = float((reached - self.origin) * self.unit)
        length = "" if self.duration is None else f" of {float(self.duration):.2f} s"
        raise VideoError(
            f"cannot be decoded past {seconds:.2f} s{length}"
            f" ({self.damage or 'there are no more frames'})",
            where=self.path,
            mend="Use a whole copy of the file, or pass an end before that time.",
            reached=seconds,
        )

    def _worth_seeking(self, pts: int) -> bool:
        """Whether a key frame lies, or is likely to lie, between the last frame and `pts`."""
        if not self.seekable or self.newest is None or pts <= self.newest:
            return False
        entries = self.stream.index_entries
        key = entries.search_timestamp(pts)
        if key >= 0 and entries[key].timestamp > self.newest:
            return True
        if len(entries) and entries[-1].timestamp >= pts:
            return False
        return (pts - self.newest) * self.unit > SEEK_GAP

    def _seek(self, pts: int) -> None:
        """Continue from a key frame shown at or before `pts`, else from the start again.

        Frames shown before that key frame are not trusted: they may lean on skipped ones.
        """
        wanted = pts
        second = math.ceil(1 / self.unit)
        for trial in range(SEEK_TRIES):
            self.limits.check_time(self.path)
            try:
                self.container.seek(wanted, stream=self.stream)
                packets = self.container.demux(self.stream)
                key = next((p for p in packets if p.is_keyframe and p.pts is not None), None)
            except FFmpegError:  # this container cannot seek there
                break
            if key is None or key.pts is None:
                break
            if key.pts <= pts:
                self._begin(itertools.chain([key], packets), trusted=key.pts)
                return
            # Some containers land on any frame (MPEG-TS): look 0, 1, 3, 7, ... seconds before.
            earliest = min(key.pts, key.pts if key.dts is None else key.dts, wanted)
            wanted = earliest - 1 - (2**trial - 1) * second
        self._restart()


def _retimed(frames: Iterator[tuple[int, VideoFrame]]) -> Iterator[tuple[int, VideoFrame]]:
    """Give the timestamps, sorted, to the frames in the decoder's order."""
    times: list[int] = []
    waiting: deque[VideoFrame] = deque()
    for pts, frame in frames:
        heapq.heappush(times, pts)
        waiting.append(frame)
        if len(waiting) > REORDER_WINDOW:
            yield heapq.heappop(times), waiting.popleft()
    while waiting:
        yield heapq.heappop(times), waiting.popleft()
