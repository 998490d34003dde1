"""Encoding in bulk: processes decode, this one encodes, and a store takes what is done."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

import torch

from topa.features.decoding import DecodingPool
from topa.features.encoder import Encoder
from topa.features.index import Entry
from topa.features.sources import DecodedVideo, Failure, Sampling, Source, stamp_of
from topa.features.store import encode_tideos
from topa.features.writer import StoreWriter
from topa.runs import sha256_of, write_text
from topa.tideo.schema import Tideo

__all__ = ["Extraction", "extract_tideos", "extract_videos", "pending_sources", "write_errors"]

_BATCH_FRAMES = 32
_BATCH_BYTES = 256 << 20
_TIDEOS_AT_ONCE = 256
Progress = Callable[[int, int], None]
EncodedVideos = list[tuple[Entry, torch.Tensor]]


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
    encoders: int | None = None,
    progress: Progress | None = None,
) -> Extraction:
    """Decode and encode videos, and add them to a store.

    Every video is read in a process of its own pool: one that crashes, hangs or takes too much
    memory costs that video, which is then named in `failures`. At most two videos more than
    there are processes, and one batch more than there are encoding threads, are in memory,
    however long the list is.

    Args:
        sources: The videos; those in the store already are skipped.
        encoder: Of the frames; runs in this process.
        writer: Of the store.
        sampling: Which frames.
        workers: Decoding processes; one for each core by default.
        encoders: Encoding threads of one core each; one for each core by default.
        progress: Called with the number of videos done and that of all.
    """
    begun = time.monotonic()
    cores = os.cpu_count() or 1
    result = Extraction(len(sources))
    todo, result.failures = pending_sources(sources, writer)
    result.skipped = len(sources) - len(todo) - len(result.failures)

    def report() -> None:
        if progress is not None:
            progress(result.skipped + result.encoded + len(result.failures), len(sources))

    report()
    with (
        DecodingPool(sampling, workers or cores) as pool,
        EncodingThreads(encoder, encoders or cores) as threads,
    ):
        for videos in _batches(pool.decode(todo), result.failures, report):
            for done in threads.encode(videos):
                _store(done, writer, result)
                report()
        for done in threads.finish():
            _store(done, writer, result)
            report()
    writer.flush()
    result.seconds = time.monotonic() - begun
    return result


def _batches(
    found: Iterable[DecodedVideo | Failure], failures: list[Failure], report: Callable[[], None]
) -> Iterator[list[DecodedVideo]]:
    """Yield videos by as many as fill a batch, and take failures into their list."""
    batch: list[DecodedVideo] = []
    frames = size = 0
    for item in found:
        if isinstance(item, Failure):
            failures.append(item)
            report()
            continue
        batch.append(item)
        frames += len(item.images)
        size += sum(image.width * image.height * 3 for image in item.images)
        if frames >= _BATCH_FRAMES or size >= _BATCH_BYTES:
            yield batch
            batch, frames, size = [], 0, 0
    if batch:
        yield batch


def _store(done: EncodedVideos, writer: StoreWriter, result: Extraction) -> None:
    for entry, rows in done:
        writer.add(entry, rows)
        result.encoded += 1
        result.frames += len(rows)


class EncodingThreads:
    """Threads that encode frames, each on one core: networks use many less well than threads do.

    Args:
        encoder: Of the frames.
        number: Of threads.
    """

    def __init__(self, encoder: Encoder, number: int):
        self._encoder, self._number = encoder, number
        self._threads = ThreadPoolExecutor(number)
        self._running: deque[Future[EncodedVideos]] = deque()
        self._threads_before = torch.get_num_threads()
        self._loaded = False

    def __enter__(self) -> Self:
        torch.set_num_threads(1)  # of every thread that begins after this
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        torch.set_num_threads(self._threads_before)

    def encode(self, videos: list[DecodedVideo]) -> Iterator[EncodedVideos]:
        """Take a batch, and yield those that are done before there is room for it."""
        if not self._loaded:  # networks load when they are first used: here, not in every thread
            self._loaded = True
            yield encode_videos(videos, self._encoder)
            return
        if len(self._running) == self._number:
            yield self._running.popleft().result()
        self._running.append(self._threads.submit(encode_videos, videos, self._encoder))

    def finish(self) -> Iterator[EncodedVideos]:
        """Yield what is still being encoded."""
        while self._running:
            yield self._running.popleft().result()


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


def encode_videos(videos: Sequence[DecodedVideo], encoder: Encoder) -> EncodedVideos:
    """Encode the frames of videos together; return the entry and the features of each."""
    features = encoder.encode_frames([image for video in videos for image in video.images])
    parts = features.split([len(video.images) for video in videos])
    return [(entry_of(video), rows) for video, rows in zip(videos, parts, strict=True)]


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
