"""The run: many seeds at once through a backend, with a journal that outlives any end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from topa.errors import ConfigError
from topa.tideo.backends import Backend, BusyFault, Call, Completion, RefusedFault, RejectedFault
from topa.tideo.composition import Task, replay
from topa.tideo.drafts import DraftError
from topa.tideo.journal import (
    FOLDER,
    MAIN,
    Journal,
    JournalState,
    answer_row,
    count_row,
    done_row,
    failed_row,
    fault_row,
    read_state,
    sent_row,
    usage_of,
)
from topa.tideo.pace import Backoff, Gate, Pace, Purse, length_of, make_limits, tokens_of
from topa.tideo.status import RunStatus

try:
    from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt
except ImportError:
    raise ConfigError(
        "writing Tideos needs tenacity, aiolimiter and others, which are not installed",
        where="generate",
        mend="Run `pip install -e '.[generate]'`.",
    ) from None

_SYNC_SECONDS = 2.0
_BREAKER = 5  # seeds in a row whose every attempt failed, without one reply between
_UNREACHED = "unreached: "
"""Starts the reason of seeds that failed for the server's sake; they are tried again."""


class Run:
    """Writes Tideos for seeds, each exactly once, into the journal of a folder.

    Args:
        seeds: All different; or the items of another task.
        recipe: What is asked for; or another task.
        backend: Who is asked.
        out: Folder of the run.
        pace: How fast, and how dear at most.
        journal: Name of the journal file; workers have one each.
        retry_failed: Take up failed seeds again, not only those that the server's faults failed.
    """

    def __init__(
        self,
        seeds: Sequence[Any],
        recipe: Task,
        backend: Backend,
        out: str | Path,
        pace: Pace | None = None,
        *,
        journal: str = MAIN,
        retry_failed: bool = False,
    ):
        self.seeds, self.recipe, self.backend = seeds, recipe, backend
        self.pace = pace or Pace()
        self.out, self._journal_name = Path(out), journal
        self._retry_failed = retry_failed

    def execute(self, progress: Callable[[RunStatus], None] | None = None) -> RunStatus:
        """Run to the end, to a limit or to an interruption, and return how it went.

        The first SIGINT or SIGTERM waits for the requests on their way; the second does not.

        Args:
            progress: Called once a second or so.

        Raises:
            ConfigError: Another run writes to the same journal.
        """
        return asyncio.run(self.execute_async(progress))

    async def execute_async(self, progress: Callable[[RunStatus], None] | None = None) -> RunStatus:
        """As `execute`, inside an event loop."""
        self._journal = Journal(self.out / FOLDER / self._journal_name)
        try:
            # Read once nobody else can write.
            state = read_state(
                self.out, only=None if self._journal_name == MAIN else self._journal_name
            )
            return await self._go(state, progress)
        finally:
            self._journal.close()
            await self.backend.close()

    async def _go(
        self, state: JournalState, progress: Callable[[RunStatus], None] | None
    ) -> RunStatus:
        self._replies = state.replies
        self._status = status = RunStatus(len(self.seeds), ledger=state.ledger)
        self._unreached = 0
        self._stopping = asyncio.Event()
        most = self.pace.concurrency
        if self.backend.parallel is not None:
            most = min(most, self.backend.parallel)
        self._gate = Gate(most)
        self._purse = Purse(self.pace.budget, state.ledger.cost + state.ledger.open_cost)
        self._limits = make_limits(self.pace)
        pending = self._pending(state)
        with _stop_on_signals(self._interrupt) as cancelled:
            workers = [asyncio.create_task(self._work(pending)) for _ in range(most)]
            watch = asyncio.create_task(self._watch(progress))
            everything = asyncio.gather(*workers)
            cancelled.append(everything)
            try:
                await everything
            except asyncio.CancelledError:
                status.stopped = "interrupted"
            finally:
                for task in (*workers, watch):
                    task.cancel()
                await asyncio.gather(*workers, watch, return_exceptions=True)
        status.at_once = int(self._gate.limit)
        if progress is not None:
            progress(status)
        return status

    def _pending(self, state: JournalState) -> Iterator[tuple[str, Any]]:
        """Count what is finished, and yield the rest one by one as workers ask for it."""
        todo: list[tuple[str, Any]] = []
        for seed in self.seeds:
            key = self.recipe.key_of(seed)
            why = state.failed.get(key)
            if key in state.done:
                self._status.done += 1
            elif why is not None and not self._retry_failed and not why.startswith(_UNREACHED):
                self._status.failed += 1
            else:
                todo.append((key, seed))
        self._status.begun = self._status.done + self._status.failed
        return iter(todo)

    def _interrupt(self, why: str = "interrupted") -> None:
        """Begin nothing further; what is on its way comes to its end."""
        self._stopping.set()
        self._status.stopped = self._status.stopped or why

    async def _watch(self, progress: Callable[[RunStatus], None] | None) -> None:
        """Tell how it goes, and see to it that the journal reaches the disk."""
        loop = asyncio.get_running_loop()
        synced = time.monotonic()
        while True:
            self._status.at_once = int(self._gate.limit)
            if progress is not None:
                progress(self._status)
            if time.monotonic() - synced >= _SYNC_SECONDS:
                await loop.run_in_executor(None, self._journal.sync)
                synced = time.monotonic()
            await asyncio.sleep(0.5)

    async def _work(self, pending: Iterator[tuple[str, Any]]) -> None:
        for key, seed in pending:
            if self._stopping.is_set():
                return
            await self._write(key, seed)

    async def _write(self, key: str, seed: Any) -> None:
        """Bring one seed to its end: a Tideo, a failure, or left for the next run."""
        composition = self.recipe.compose(seed, key)
        step = 0
        usage: dict[str, Any] | None = None
        text = ""
        try:
            earlier = self._replies.pop(key, [])
            call = replay(composition, earlier)
            step = len(earlier)
            while True:
                reply, usage = await self._ask(call, key, step)
                text = reply.text
                call = composition.send(reply)
                # Only now is it known that this reply is not the last.
                self._record(answer_row(key, step, reply, usage))
                step += 1
        except StopIteration as finished:
            result, notes = finished.value
            self._record(done_row(key, result, notes, usage))
            self._status.done += 1
        except (DraftError, RejectedFault) as error:
            self._fail(
                key, seed, str(error), text, usage if isinstance(error, DraftError) else None
            )
        except BusyFault as error:
            self._unreached += 1
            self._fail(key, seed, f"{_UNREACHED}{error}", "", None)
            if self._unreached >= _BREAKER:
                self._interrupt(f"the server does not answer ({error})")
        except RefusedFault as error:
            self._interrupt(f"the server refuses ({error})")
        except _Halted:
            pass

    def _fail(self, key: str, seed: Any, why: str, text: str, usage: dict[str, Any] | None) -> None:
        self._record(failed_row(key, seed, why, text, usage))
        self._status.failed += 1

    async def _ask(self, call: Call, key: str, step: int) -> tuple[Completion, dict[str, Any]]:
        """Send a call until it is answered; return the reply and what it used."""
        most = self.pace.most_of(call)
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self.pace.attempts),
            wait=Backoff(self.pace.first_wait),
            retry=retry_if_exception_type(BusyFault),
            sleep=self._pause,
            reraise=True,
        )
        reply: Completion = await retrying(self._attempt, call, key, step, most)
        self._unreached = 0
        prompt, completion, estimated = usage_of(reply, length_of(call))
        cost = self.pace.cost(prompt, completion)
        await self._purse.settle(most, cost)
        usage: dict[str, Any] = {"in": prompt, "out": completion, "usd": cost, "most": most}
        if estimated:
            usage["estimated"] = True
        return reply, usage

    async def _pause(self, seconds: float) -> None:
        """Wait before another attempt, unless the run stops meanwhile."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    async def _attempt(self, call: Call, key: str, step: int, most: float) -> Completion:
        for limiter, amount in self._limits:
            await limiter.acquire(1 if amount == "requests" else tokens_of(call, limiter))
        if self._stopping.is_set():
            raise _Halted
        if not await self._purse.reserve(most):
            self._interrupt("budget")
            raise _Halted
        generation = await self._gate.enter()
        if self._stopping.is_set():
            self._gate.leave(generation, answered=False)
            await self._purse.settle(most, 0.0)
            raise _Halted
        self._record(sent_row(key, step, most))
        try:
            reply = await self.backend.complete(call)
        except (BusyFault, RejectedFault, RefusedFault) as error:
            busy = error if isinstance(error, BusyFault) else None
            congested = busy is not None and busy.congested
            self._gate.leave(generation, congested=congested, answered=False)
            await self._purse.settle(most, 0.0)
            kind = busy.kind if busy else str(error).partition(":")[0]
            detail = busy.detail if busy else str(error)
            self._record(fault_row(key, step, kind, detail, most))
            raise
        self._gate.leave(generation)
        return reply

    def _record(self, row: dict[str, Any]) -> None:
        """Write a line, and count it as a later reader of the journal would."""
        self._journal.append(row)
        count_row(self._status.ledger, row)


class _Halted(Exception):
    """The run is stopping; this seed is left for the next one."""


@contextlib.contextmanager
def _stop_on_signals(stop: Callable[[], None]) -> Iterator[list[Any]]:
    """Let the first SIGINT or SIGTERM stop softly, and the second cancel what the list holds."""
    loop = asyncio.get_running_loop()
    targets: list[Any] = []
    seen = 0

    def handle() -> None:
        nonlocal seen
        seen += 1
        if seen == 1:
            stop()
        else:
            for target in targets:
                target.cancel()

    # Only the main thread hears signals; a run within a worker is stopped by its owner.
    main = threading.current_thread() is threading.main_thread()
    heard = (signal.SIGINT, signal.SIGTERM) if main else ()
    for number in heard:
        loop.add_signal_handler(number, handle)
    try:
        yield targets
    finally:
        for number in heard:
            loop.remove_signal_handler(number)
