"""Processes that read videos: a file that crashes or hangs one costs that file alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, TimeoutError, wait
from multiprocessing import get_context
from typing import Self

from pebble import ProcessExpired, ProcessPool

from topa.errors import VideoError
from topa.features.sources import (
    DecodedVideo,
    Failure,
    Sampling,
    Source,
    decode_source,
    failure_of,
    limit_process,
)

__all__ = ["DecodingPool"]


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
