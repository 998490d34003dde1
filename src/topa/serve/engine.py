"""One thread that computes, fed with the waiting work of all requests together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from topa.answer import Method, Topa
from topa.data.templates import Prompt
from topa.errors import RequestError
from topa.model.methods import Choice
from topa.serve.generation import Generation, Request
from topa.serve.metrics import Metrics
from topa.serve.scoring import Asked, Scorer
from topa.serve.states import Beginning, Prefixes
from topa.serve.writing import Piece, Sampling, Writer

T = TypeVar("T")

# So many tokens of the answers being written may go before options that wait for company.
_PATIENCE = 16


def start_thread() -> ThreadPoolExecutor:
    """Return the one thread that is to load models and compute with them.

    OpenMP gives every thread that computes a team of its own, as large as there are cores. Where
    teams have more members than there are cores, members sleep at every barrier instead of
    waiting for it, which costs a third of the speed: so no other thread should compute.
    """
    return ThreadPoolExecutor(1, thread_name_prefix="compute")


@dataclass
class _Scoring:
    asked: Asked
    method: Method
    blind: bool
    turn: int
    result: asyncio.Future[list[list[float]]]


@dataclass
class _Writing:
    request: Request
    outbox: asyncio.Queue[tuple[int, Piece] | BaseException] = field(default_factory=asyncio.Queue)
    cancelled: bool = False


class Engine:
    """Scores options and writes answers for many requests at once.

    Requests that wait are taken together: options of all videos in one batch, and every answer
    that is being written advances by a token a turn. A video is read once for all of them. All
    computing is done in one thread, which has all cores.

    Args:
        topa: The model with encoder and memory.
        metrics: Told the size of batches.
        batch_rows: Answers written, or prompts scored, at once.
        prefixes: Videos whose part of the LLM's cache is kept, by instruction.
        thread: Computes; a new one if None. Given, it is not ended by `close`.
    """

    def __init__(
        self,
        topa: Topa,
        metrics: Metrics,
        batch_rows: int = 16,
        prefixes: int = 32,
        thread: ThreadPoolExecutor | None = None,
    ):
        self._topa, self._metrics = topa, metrics
        self._rows = batch_rows
        self._prefixes = Prefixes(topa.model, prefixes)
        self._scorer = Scorer(topa, self._prefixes, batch_rows)
        self._owns_thread = thread is None
        self._thread = start_thread() if thread is None else thread
        self._scoring: list[_Scoring] = []
        self._waiting: list[_Writing] = []
        self._active: dict[int, tuple[_Writing, int]] = {}
        self._generation = Generation(topa.model, self._prefixes)
        self._turn = 0
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    # Work ------------------------------------------------------------------------------

    async def score(
        self,
        key: Hashable,
        features: Tensor,
        choices: Sequence[Choice],
        method: Method,
        blind: bool = False,
    ) -> list[list[float]]:
        """Return the probability of every option of every question about one video.

        Args:
            key: Names the features.
            features: [n, d] of the video.
            choices: Questions with options.
            method: One of `topa.answer.METHODS`.
            blind: Mask the video.
        """
        result = asyncio.get_running_loop().create_future()
        asked = Asked(key, features, choices)
        self._scoring.append(_Scoring(asked, method, blind, self._turn, result))
        self._start()
        return await result

    async def write(
        self, key: Hashable, features: Tensor, prompt: Prompt, samplings: Sequence[Sampling]
    ) -> AsyncIterator[tuple[int, Piece]]:
        """Yield (number of the answer, what was added to it) until all have ended.

        Args:
            key: Names the features.
            features: [n, d] of the video; none of them to mask it.
            prompt: The prompt.
            samplings: How to write each answer.
        """
        ids = [token for segment in prompt.segments for token in segment.ids]
        builder = self._topa.builder
        writers = [Writer(builder.tokenizer, builder.eos_id, ids, each) for each in samplings]
        job = _Writing(Request(Beginning(key, features, prompt), writers))
        self._waiting.append(job)
        self._start()
        left = len(writers)
        try:
            while left:
                item = await job.outbox.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
                left -= item[1].finish is not None
        finally:
            job.cancelled = True

    async def run(self, work: Callable[[], T]) -> T:
        """Return what a function returns that computes, in the thread that computes."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def close(self) -> None:
        """Finish what was begun, and end the thread if it is the engine's own."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await self._task
        if self._owns_thread:
            self._thread.shutdown()

    # Turns -----------------------------------------------------------------------------

    def _start(self) -> None:
        if self._closing:
            raise RequestError("the server is shutting down")
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work())
        self._wake.set()

    async def _work(self) -> None:
        while True:
            self._turn += 1
            if self._scoring and self._must_score():
                await self._score_some()
            if self._waiting or self._active:
                await self._write_some()
            elif not self._scoring:
                if self._closing:
                    return
                self._wake.clear()
                await self._wake.wait()

    def _must_score(self) -> bool:
        """Return whether the options that wait are many, or have waited for company long enough.

        While answers are written, others may come with options; read together they cost less.
        """
        busy = self._waiting or self._active
        waited = self._turn - self._scoring[0].turn
        return not busy or 2 * len(self._scoring) >= self._rows or waited > _PATIENCE

    async def _compute(self, work: Callable[[], T]) -> tuple[T | None, BaseException | None]:
        """Return the result of a function in the thread, or what it raised."""
        future = asyncio.get_running_loop().run_in_executor(self._thread, work)
        await asyncio.wait([future])
        error = future.exception()
        return (None, error) if error is not None else (future.result(), None)

    async def _score_some(self) -> None:
        first = self._scoring[0]
        alike = [j for j in self._scoring if (j.method, j.blind) == (first.method, first.blind)]
        jobs = alike[: self._rows]
        taken = set(map(id, jobs))
        self._scoring = [job for job in self._scoring if id(job) not in taken]
        jobs = [job for job in jobs if not job.result.done()]  # the others were given up
        if not jobs:
            return
        results, error = await self._compute(lambda: self._score(jobs))
        for index, job in enumerate(jobs):
            if job.result.done():
                continue
            if error is not None:
                job.result.set_exception(error)
            elif results is not None:
                job.result.set_result(results[index])

    def _score(self, jobs: Sequence[_Scoring]) -> list[list[list[float]]]:
        """Return probabilities for each job, each question, each option."""
        self._metrics.rows.labels("score").observe(sum(len(job.asked.choices) for job in jobs))
        reused = self._prefixes.reused
        scores = self._scorer.score([job.asked for job in jobs], jobs[0].method, jobs[0].blind)
        self._metrics.prefixes.inc(self._prefixes.reused - reused)
        return [[each.softmax(-1).tolist() for each in questions] for questions in scores]

    async def _write_some(self) -> None:
        """Let waiting prompts join while there is room, and write a token of every answer."""
        gone = [
            writer
            for job, _ in self._active.values()
            if job.cancelled
            for writer in job.request.writers
        ]
        joining: list[_Writing] = []
        room = self._rows - len(self._active) + len(gone)
        self._waiting = [job for job in self._waiting if not job.cancelled]
        while self._waiting and len(self._waiting[0].request.writers) <= room:
            job = self._waiting.pop(0)
            room -= len(job.request.writers)
            joining.append(job)
        for writer in gone:
            self._active.pop(id(writer), None)
        for job in joining:
            for number, writer in enumerate(job.request.writers):
                self._active[id(writer)] = job, number
        written, error = await self._compute(lambda: self._advance(gone, joining))
        if error is not None:
            for job in {id(job): job for job, _ in self._active.values()}.values():
                job.outbox.put_nowait(error)
            self._active.clear()
            self._generation = Generation(self._topa.model, self._prefixes)
            return
        for writer, piece in written or []:
            entry = self._active.get(id(writer))
            if entry is None:
                continue
            job, number = entry
            job.outbox.put_nowait((number, piece))
            if piece.finish is not None:
                del self._active[id(writer)]

    def _advance(
        self, gone: Sequence[Writer], joining: Sequence[_Writing]
    ) -> list[tuple[Writer, Piece]]:
        generation = self._generation
        generation.leave(gone)
        written: list[tuple[Writer, Piece]] = []
        if generation.writers:
            self._metrics.rows.labels("write").observe(len(generation.writers))
            written += generation.step()
            self._leave(written)
        if joining:
            reused = self._prefixes.reused
            first = generation.join([job.request for job in joining])
            self._metrics.prefixes.inc(self._prefixes.reused - reused)
            self._leave(first)
            written += first
        return written

    def _leave(self, written: Sequence[tuple[Writer, Piece]]) -> None:
        self._generation.leave([writer for writer, piece in written if piece.finish is not None])

    def warm_up(self) -> None:
        """Load every part, so that no request waits for it."""
        features = self._topa.encoder.encode_text(["a warm-up"])
        prompt = self._topa.builder.open("What?")
        with torch.inference_mode():
            self._topa.generate([prompt], [features], 1)
