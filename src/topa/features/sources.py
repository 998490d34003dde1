"""Finding the videos of a job, and reading one of them: what a decoding process does."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from topa.errors import ConfigError, DataError, VideoError
from topa.features._torchcodec import choose_decoder
from topa.features.sampling import RULES
from topa.features.video import MAX_FRAMES, MAX_PIXELS, read_clip
from topa.runs import digest, sha256_of

__all__ = ["DecodedVideo", "Failure", "Sampling", "Source", "decode_source", "find_sources"]

VIDEO_SUFFIXES = {
    *(".3gp", ".asf", ".avi", ".f4v", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov"),
    *(".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogm", ".ogv", ".ts", ".vob", ".webm"),
    *(".webp", ".wmv"),
}
MEMORY_LIMIT = 8 << 30  # bytes of address space of a decoding process
LIST_SUFFIXES = {".txt", ".lst", ".list"}


@dataclass(frozen=True)
class Sampling:
    """Which frames of a video are wanted, and what reading it may cost; see `read_clip`."""

    num_frames: int = 10
    rule: str = "middle"
    fps: float | None = None
    max_pixels: int = MAX_PIXELS
    max_frames: int = MAX_FRAMES
    time_limit: float = 60.0
    decoder: str = "pyav"

    def __post_init__(self) -> None:
        choose_decoder(self.decoder)
        if self.rule not in RULES:
            raise ConfigError(
                f"unknown rule {self.rule!r}", where="rule", mend=f"Use one of {', '.join(RULES)}."
            )

    def choice(self) -> dict[str, Any]:
        """Return what decides the frames, for a store to record."""
        if self.fps is not None:
            return {"fps": self.fps}
        return {"num_frames": self.num_frames, "rule": self.rule}


@dataclass(frozen=True)
class Source:
    """A video by its name in the store, and its path."""

    id: str
    path: Path


@dataclass(frozen=True)
class Failure:
    """A video that could not be read.

    Attributes:
        id: Its name in the store, where it is missing.
        source: Its path.
        reason: Why, in one line.
        reached: How many seconds of it could be decoded, where that is known.
    """

    id: str
    source: str
    reason: str
    reached: float | None = None


@dataclass(frozen=True)
class DecodedVideo:
    """Frames of a video, and what a store records of its file."""

    id: str
    source: str
    sha256: str
    size: int
    modified: int
    duration: float | None
    times: list[float]
    images: list[Image.Image]


def find_sources(inputs: Sequence[Path]) -> list[Source]:
    """Return the videos of folders, lists and files, in order.

    A folder gives its files that are named like videos, at any depth, by their path within it.
    A list (.txt, .lst) gives the path of each line, taken from the list's folder; empty lines
    and those that begin with # are left out.

    Raises:
        DataError: A folder holds no videos, or a list cannot be read.
        ConfigError: Two videos would have one name.
    """
    found: dict[str, Source] = {}
    for given in inputs:
        for source in _expand(given):
            if source.id in found:
                raise ConfigError(
                    f"two videos are called {source.id!r}",
                    where=source.path,
                    mend="Name the folder above both, or encode them into two stores.",
                )
            found[source.id] = source
    return list(found.values())


def _expand(given: Path) -> list[Source]:
    if given.is_dir():
        paths = sorted(
            path
            for path in given.rglob("*")
            if path.suffix.lower() in VIDEO_SUFFIXES
            and not any(part.startswith(".") for part in path.relative_to(given).parts)
        )
        if not paths:
            raise DataError(
                "no videos in this folder",
                where=given,
                mend="A folder of pictures is named in a list.",
            )
        return [Source(path.relative_to(given).as_posix(), path) for path in paths]
    if given.suffix.lower() not in LIST_SUFFIXES:
        return [Source(given.name, given)]
    try:
        lines = given.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DataError("file not found", where=given, mend="Check the path.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"not a list of paths ({error.reason})", where=given) from None
    names = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return [Source(name, given.parent / name) for name in names]


def decode_source(source: Source, sampling: Sampling) -> DecodedVideo:
    """Read the wanted frames of one video, and the hash of its file.

    Raises:
        VideoError: The video cannot be read.
    """
    clip = read_clip(
        source.path,
        num_frames=sampling.num_frames,
        rule=sampling.rule,
        fps=sampling.fps,
        max_pixels=sampling.max_pixels,
        max_frames=sampling.max_frames,
        time_limit=sampling.time_limit,
        decoder=sampling.decoder,
    )
    size, modified = stamp_of(source.path)
    return DecodedVideo(
        id=source.id,
        source=str(source.path),
        sha256=hash_of(source.path),
        size=size,
        modified=modified,
        duration=clip.duration,
        times=clip.times,
        images=clip.images,
    )


def failure_of(source: Source, error: VideoError) -> Failure:
    """Return the record of a video that could not be read."""
    return Failure(source.id, str(source.path), str(error), error.reached)


def limit_process() -> None:
    """Bound what a decoding process may take, and let it end with the one that started it.

    Ctrl-C is left to that one; a kill -9 of it ends this process even within FFmpeg.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit_memory()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _limit_memory() -> None:
    """Bound the address space; a lower limit, as clusters set them, stays as it is."""
    if sys.platform == "darwin":
        return  # its kernel refuses every such limit
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = MEMORY_LIMIT if hard == resource.RLIM_INFINITY else min(MEMORY_LIMIT, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def stamp_of(path: Path) -> tuple[int, int]:
    """Return size and time of change of a file; of a folder those of all its files together."""
    files = _files(path)
    stats = [file.stat() for file in files]
    return sum(stat.st_size for stat in stats), max((stat.st_mtime_ns for stat in stats), default=0)


def hash_of(path: Path) -> str:
    """Return the sha256 of a file, or one hash of the names and hashes of a folder's files."""
    if path.is_dir():
        return digest(*(f"{file.name}:{sha256_of(file)}" for file in _files(path)))
    return sha256_of(path)


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
