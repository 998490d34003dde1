"""Decoding with torchcodec: where it loads, and what it reads as exactly as PyAV does."""

from __future__ import annotations

import functools
import importlib
from fractions import Fraction
from typing import Any, Literal, get_args

from PIL import Image

from topa.errors import ConfigError
from topa.features._reader import Reader

__all__ = ["DECODERS", "Decoder", "InexactError", "TorchcodecFrames", "choose_decoder"]

Decoder = Literal["auto", "pyav", "torchcodec"]
DECODERS: tuple[Decoder, ...] = get_args(Decoder)

# Of other containers torchcodec loses the last frames (MPEG-TS, AVI) or cannot seek (bare H.264).
_FORMATS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}


class InexactError(Exception):
    """A file, or a place in it, that torchcodec does not read exactly: PyAV does, or says why."""


@functools.cache
def _load() -> tuple[Any, str]:
    """Return torchcodec's decoder class, or None and why it cannot be loaded."""
    try:
        decoders = importlib.import_module("torchcodec.decoders")
    except ImportError:
        return None, "torchcodec is not installed"
    except (OSError, RuntimeError):  # it lists every library that it tried, over many lines
        return None, "torchcodec finds no FFmpeg libraries, or was built for another torch"
    return decoders.VideoDecoder, ""


def choose_decoder(name: str) -> Decoder:
    """Return "torchcodec" or "pyav": what is asked for, and of "auto" the first that loads.

    Raises:
        ConfigError: torchcodec is asked for and does not load, or there is no such decoder.
    """
    if name == "pyav":
        return "pyav"
    if name not in DECODERS:
        raise ConfigError(
            f"unknown decoder {name!r}", where="decoder", mend=f"Use one of {', '.join(DECODERS)}."
        )
    found, problem = _load()
    if found is None and name == "torchcodec":
        raise ConfigError(
            problem,
            where="decoder",
            mend="Run: pip install -e '.[torchcodec]' and apt-get install ffmpeg.",
        )
    return "pyav" if found is None else "torchcodec"


class TorchcodecFrames:
    """Frames of a file that PyAV has opened; they equal PyAV's bit by bit (tested).

    Args:
        reader: Of the file; tells which stream it is, and when its first frame comes.

    Raises:
        InexactError: The file is not whole, turned, of an uneven frame rate, or of a kind that
            torchcodec does not read exactly.
    """

    def __init__(self, reader: Reader):
        self._reader = reader
        stream, first = reader.stream, reader.window[0][2]
        self._require(reader.container.format.name in _FORMATS and reader.seekable)
        self._require(not reader.cut_off and "DISPLAYMATRIX" not in first.side_data)
        # Where rates differ or frames are missing, it shows the frame after a gap, not before.
        self._require(stream.average_rate is not None and stream.average_rate == stream.base_rate)
        try:
            self._decoder = _load()[0](
                str(reader.path.resolve()),
                stream_index=stream.index,
                dimension_order="NHWC",
                num_ffmpeg_threads=reader.limits.threads,
            )
        except RuntimeError as error:
            raise InexactError from error
        expected = None if reader.duration is None else round(reader.duration * reader.rate)
        self._require(self._decoder.metadata.num_frames == expected)

    @staticmethod
    def _require(exact: bool) -> None:
        if not exact:
            raise InexactError

    def image_at(self, pts: int) -> tuple[int, Image.Image]:
        """Return (pts, image) of the frame on screen at `pts`.

        Raises:
            InexactError: It cannot be decoded, or is not on screen then.
        """
        self._reader.limits.check_time(self._reader.path)
        unit = self._reader.unit
        try:
            # Half a tick later the same frame is on screen, however seconds are rounded.
            frame = self._decoder.get_frame_played_at(float((pts + Fraction(1, 2)) * unit))
        except (RuntimeError, IndexError) as error:
            raise InexactError from error
        begun = round(Fraction(frame.pts_seconds) / unit)
        self._require(begun <= pts < begun + Fraction(frame.duration_seconds) / unit)
        return begun, Image.fromarray(frame.data.numpy())
