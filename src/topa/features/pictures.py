"""Pictures as video: a folder of images in the order of their names, an animated WebP."""

from __future__ import annotations

import re
from bisect import bisect_right
from fractions import Fraction
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from topa.errors import VideoError
from topa.features._container import Limits

__all__ = ["FolderReader", "WebpReader", "is_webp"]

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_MILLISECOND = Fraction(1, 1000)
_BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class FolderReader:
    """The images of a folder, one after the other at `rate` a second.

    Raises:
        VideoError: There are no images.
    """

    def __init__(self, path: Path, limits: Limits, rate: Fraction = Fraction(1)):
        self.path, self.limits, self.rate = path, limits, rate
        found = [file for file in path.iterdir() if file.suffix.lower() in SUFFIXES]
        self.files = sorted(found, key=lambda file: _natural(file.name))
        if not self.files:
            raise VideoError(
                "a folder without images, not a video", where=path, mend="Name one video file."
            )
        self.duration = len(self.files) / rate

    def image_at(self, time: Fraction) -> tuple[Fraction, Image.Image]:
        """Return when the image at `time` begins, and the image.

        Raises:
            VideoError: It cannot be read, or has too many pixels.
        """
        place = min(int(time * self.rate), len(self.files) - 1)
        file = self.files[place]
        self.limits.check_time(self.path)
        try:
            with Image.open(file) as image:
                self.limits.check_size(file, *image.size)
                return place / self.rate, image.convert("RGB")
        except _BROKEN as error:
            raise _unreadable(file, place, error) from None

    def close(self) -> None:
        """There is nothing to close."""


class WebpReader:
    """The frames of a WebP file; FFmpeg reads none that are animated.

    Raises:
        VideoError: The file cannot be read.
    """

    rate = Fraction(10)

    def __init__(self, path: Path, limits: Limits):
        self.path, self.limits = path, limits
        try:
            self.image = Image.open(path, formats=["WEBP"])
        except (*_BROKEN, UnidentifiedImageError) as error:
            raise _unreadable(path, 0, error) from None
        try:
            self._read_times()
        except VideoError:
            self.close()
            raise

    def _read_times(self) -> None:
        self.limits.check_size(self.path, *self.image.size)
        self.starts, end = [], Fraction(0)
        for place in range(getattr(self.image, "n_frames", 1)):
            self._show(place)
            self.starts.append(end)
            end += (self.image.info.get("duration") or 100) * _MILLISECOND
        self.duration = end
        self.rate = len(self.starts) / end

    def _show(self, place: int) -> None:
        self.limits.check_time(self.path)
        try:
            self.image.seek(place)
            self.image.load()
        except (*_BROKEN, EOFError) as error:
            raise _unreadable(self.path, place, error) from None

    def image_at(self, time: Fraction) -> tuple[Fraction, Image.Image]:
        """Return when the frame on screen at `time` begins, and the frame.

        Raises:
            VideoError: It cannot be decoded.
        """
        place = max(0, bisect_right(self.starts, time) - 1)
        self._show(place)
        return self.starts[place], self.image.convert("RGB")

    def close(self) -> None:
        """Close the file."""
        self.image.close()


def is_webp(path: Path) -> bool:
    """Whether a file begins as WebP does."""
    with open(path, "rb") as file:
        head = file.read(12)
    return head[:4] == b"RIFF" and head[8:] == b"WEBP"


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Return a key that puts frame2.jpg before frame10.jpg."""
    parts = re.findall(r"\d+|\D+", name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]


def _unreadable(path: Path, place: int, error: BaseException) -> VideoError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return VideoError(f"picture {place + 1} cannot be decoded ({reason[:200]})", where=path)
