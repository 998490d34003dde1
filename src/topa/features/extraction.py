"""Encoding in bulk: processes decode, this one encodes, and a store takes what is done."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, TimeoutError, wait
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Self

from pebble import ProcessExpired, ProcessPool

from topa.errors import VideoError
from topa.features.encoder import Encoder
from topa.features.index import Entry
from topa.features.sources import (
    DecodedVideo,
    Failure,
    Sampling,
    Source,
    decode_source,
    failure_of,
    limit_process,
    stamp_of,
)
from topa.features.store import encode_tideos
from topa.features.writer import StoreWriter
from topa.runs import sha256_of, write_text
from topa.tideo.schema import Tideo

__all__ = [
    "DecodingPool",
    "Extraction",
    "extract_tideos",
    "extract_videos",
    "pending_sources",
    "write_errors",
]

_BATCH_FRAMES = 64
_BATCH_BYTES = 256 << 20
_TIDEOS_AT_ONCE = 256
Progress = Callable[[int, int], None]


@dataclass
class Extraction:
    """What a bulk job did.

    Attributes:
        total: Number of videos or Tideos asked for.
        skipped: Those that were in the store already.
        encoded: Those added.
        frames: Frames of those added.
        failures: Those that could not be read.
        seconds: Time from start to end.
    """

    total: int
    skipped: int = 0
    encoded: int = 0
    frames: int = 0
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0


def extract_videos(
    sources: Sequence[Source],
    encoder: Encoder,
    writer: StoreWriter,
    sampling: Sampling,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Extraction:
    """Decode and encode videos, and add them to a store.

    Every video is read in a process of its own pool: one that crashes, hangs or takes too much
    memory costs that video, which is then named in `failures`. At most two videos more than
    there are processes wait to be encoded, however long the list is.

    Args:
        sources: The videos; those in the store already are skipped.
        encoder: Of the frames; runs in this process.
        writer: Of the store.
        sampling: Which frames.
        workers: Decoding processes; one for each core by default.
        progress: Called with the number of videos done and that of all.
    """
    begun = time.monotonic()
    result = Extraction(len(sources))
    todo, result.failures = pending_sources(sources, writer)
    result.skipped = len(sources) - len(todo) - len(result.failures)
    batch: list[DecodedVideo] = []

    def report() -> None:
        if progress is not None:
            done = result.skipped + result.encoded + len(result.failures)
            progress(done, len(sources))

    def encode() -> None:
        if batch:
            encode_videos(batch, encoder, writer)
            result.encoded += len(batch)
            result.frames += sum(len(video.times) for video in batch)
            batch.clear()
            report()

    report()
    with DecodingPool(sampling, workers or os.cpu_count() or 1) as pool:
        for found in pool.decode(todo):
            if isinstance(found, Failure):
                result.failures.append(found)
                report()
                continue
            batch.append(found)
            images = [image for video in batch for image in video.images]
            size = sum(image.width * image.height * 3 for image in images)
            if len(images) >= _BATCH_FRAMES or size >= _BATCH_BYTES:
                encode()
    encode()
    writer.flush()
    result.seconds = time.monotonic() - begun
    return result


def pending_sources(
    sources: Sequence[Source], writer: StoreWriter
) -> tuple[list[Source], list[Failure]]:
    """Return the videos that are not in the store, and those that have changed since they were."""
    todo, changed = [], []
    for source in sources:
        entry = writer.store.entries.get(source.id)
        if entry is None:
            todo.append(source)
        elif source.path.exists() and stamp_of(source.path) != (entry.size, entry.modified):
            reason = "the file has changed since it was encoded. Encode it into a new store."
            changed.append(Failure(source.id, str(source.path), f"{source.path}: {reason}"))
    return todo, changed


class DecodingPool:
    """Processes that read videos; one that dies or hangs costs the video it was at.

    Args:
        sampling: Which frames, and what reading a video may cost.
        workers: Number of processes.
    """

    def __init__(self, sampling: Sampling, workers: int):
        self._sampling, self._workers = sampling, workers
        # A fresh interpreter: a fork would copy the threads' locks of libraries in any state.
        self._pool = ProcessPool(workers, context=get_context("spawn"), initializer=limit_process)
        # The reader keeps to the limit by itself, unless it hangs inside FFmpeg.
        self._patience = sampling.time_limit * 1.2 + 10

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.stop()
        self._pool.join()

    def decode(self, sources: Iterable[Source]) -> Iterator[DecodedVideo | Failure]:
        """Yield videos, or why they cannot be read, as processes get done with them.

        At most two videos more than there are processes are read and not yet yielded.
        """
        waiting: dict[Future[DecodedVideo], Source] = {}
        queue = iter(sources)
        while True:
            while len(waiting) < self._workers + 2 and (source := next(queue, None)) is not None:
                arguments = (source, self._sampling)
                task = self._pool.schedule(decode_source, arguments, timeout=self._patience)
                waiting[task] = source
            if not waiting:
                return
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                yield _result_of(future, waiting.pop(future))


def _result_of(future: Future[DecodedVideo], source: Source) -> DecodedVideo | Failure:
    try:
        found: DecodedVideo = future.result()
    except VideoError as error:
        return failure_of(source, error)
    except TimeoutError:
        reason = "reading hung, and was ended"
    except ProcessExpired as error:
        reason = f"reading crashed (exit code {error.exitcode})"
    except MemoryError:
        reason = "reading took too much memory"
    except OSError as error:
        reason = error.strerror or str(error)
    else:
        return found
    return Failure(source.id, str(source.path), f"{source.path}: {reason}")


def encode_videos(videos: Sequence[DecodedVideo], encoder: Encoder, writer: StoreWriter) -> None:
    """Encode the frames of videos together, and add each to a store."""
    features = encoder.encode_frames([image for video in videos for image in video.images])
    parts = features.split([len(video.images) for video in videos])
    for video, rows in zip(videos, parts, strict=True):
        writer.add(entry_of(video), rows)


def entry_of(video: DecodedVideo) -> Entry:
    """Return the index entry of a video."""
    return Entry(
        id=video.id,
        source=video.source,
        sha256=video.sha256,
        size=video.size,
        modified=video.modified,
        duration=video.duration,
        times=video.times,
    )


def extract_tideos(
    tideos: Sequence[Tideo],
    source: str | Path,
    encoder: Encoder,
    writer: StoreWriter,
    *,
    progress: Progress | None = None,
) -> Extraction:
    """Encode the frames of Tideos, with their captions, and add them to a store.

    Args:
        tideos: Textual videos; those in the store already are skipped.
        source: Where they come from: a file, or the name of a bundled set.
        encoder: Of the texts.
        writer: Of the store.
        progress: Called with the number of Tideos done and that of all.
    """
    begun = time.monotonic()
    todo = [tideo for tideo in tideos if tideo.id not in writer]
    result = Extraction(len(tideos), skipped=len(tideos) - len(todo))
    path = Path(source)
    sha256 = sha256_of(path) if path.is_file() else ""
    for start in range(0, len(todo), _TIDEOS_AT_ONCE):
        part = todo[start : start + _TIDEOS_AT_ONCE]
        features = encode_tideos(part, encoder, cache=False)
        for place, tideo in enumerate(part):
            rows = features.of(place)
            captions = [frame.caption for frame in tideo.frames]
            writer.add(Entry(tideo.id, str(source), sha256, captions=captions), rows)
            result.frames += len(rows)
        result.encoded += len(part)
        if progress is not None:
            progress(result.skipped + result.encoded, len(tideos))
    writer.flush()
    result.seconds = time.monotonic() - begun
    return result


def write_errors(folder: str | Path, failures: Sequence[Failure]) -> Path:
    """Write what failed in the last job to errors.jsonl of a store, and return its path."""
    path = Path(folder) / "errors.jsonl"
    lines = [json.dumps(asdict(failure), ensure_ascii=False) + "\n" for failure in failures]
    write_text(path, "".join(lines))
    return path
