"""How fast a run may go: requests at once, requests and tokens a minute, money."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from topa.errors import ConfigError
from topa.tideo.backends import BusyFault, Call

if TYPE_CHECKING:
    from tenacity import RetryCallState

_SHRINK = 0.5
_RELIEF = 1 / 8  # of the strain of one congested reply, by each that is not
_MAX_WAIT = 60.0


@dataclass(frozen=True)
class Pace:
    """Limits of a run.

    Attributes:
        concurrency: Most requests at once.
        attempts: Of one request.
        budget: USD in all, runs before this one in the same folder included; None for no limit.
        price_in: USD per million prompt tokens.
        price_out: USD per million completion tokens.
        requests_per_minute: None for no limit.
        tokens_per_minute: None for no limit; counted before sending, at the most.
        first_wait: Seconds that bound the first back-off.
    """

    concurrency: int = 64
    attempts: int = 12
    budget: float | None = None
    price_in: float = 0.0
    price_out: float = 0.0
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    first_wait: float = 0.5

    def most_of(self, call: Call) -> float:
        """Return USD that a call may cost at most, three characters of prompt to a token."""
        return self.cost(-(-length_of(call) // 3), call.max_tokens)

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return USD of so many tokens."""
        return (prompt_tokens * self.price_in + completion_tokens * self.price_out) / 1e6


class Gate:
    """Lets so many requests through at once as the server bears.

    The number grows with every reply and is halved where the server is congested, as TCP does
    (Chiu and Jain, 1989), at most once for the requests that were on their way together. A
    stray fault is no congestion: more than one reply in eight has to tell of it.

    Args:
        most: Never more than this.
        start: At the beginning.
    """

    def __init__(self, most: int, start: int = 16):
        self.most = most
        self.limit = float(min(most, start))
        self._active = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._ceiling = float(most)  # where to go on slowly after congestion
        self._generation = 0
        self._strain = 0.0

    async def enter(self) -> int:
        """Wait for a place; return the generation of the request, to hand back on leaving."""
        while self._active >= int(self.limit):
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            await turn
        self._active += 1
        return self._generation

    def leave(self, generation: int, *, congested: bool = False, answered: bool = True) -> None:
        """Give the place back, and say how it went."""
        self._active -= 1
        self._strain = max(0.0, self._strain + (1.0 if congested else -_RELIEF))
        if congested and generation == self._generation:
            if self._strain >= max(2.0, self.limit * _RELIEF):
                self._generation += 1
                self._strain = 0.0
                self.limit = max(1.0, self.limit * _SHRINK)
                self._ceiling = self.limit
        elif answered and self.limit < self.most:
            grown = self.limit + (1.0 if self.limit < self._ceiling else 1.0 / self.limit)
            self.limit = min(float(self.most), grown)
        free = int(self.limit) - self._active
        while free > 0 and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # a cancelled one gives its turn to the next
                turn.set_result(None)
                free -= 1


class Purse:
    """Holds a budget: what a request may cost at most is set aside before it leaves.

    Args:
        budget: USD; None for no limit.
        spent: Before this run.
    """

    def __init__(self, budget: float | None, spent: float = 0.0):
        self.budget, self.spent, self._reserved = budget, spent, 0.0
        self._changed = asyncio.Condition()

    async def reserve(self, amount: float) -> bool:
        """Set money aside; wait while others hold it, and return False if it does not suffice."""
        if self.budget is None:
            return True
        async with self._changed:
            while self.spent + self._reserved + amount > self.budget:
                if self._reserved <= 1e-12:
                    return False
                await self._changed.wait()
            self._reserved += amount
        return True

    async def settle(self, reserved: float, cost: float) -> None:
        """Give back what was set aside, and take what it cost."""
        self.spent += cost
        if self.budget is None:
            return
        async with self._changed:
            self._reserved -= reserved
            self._changed.notify_all()


class Backoff:
    """Seconds to wait before another attempt: exponential with jitter, for tenacity.

    Never less than the server asked for.

    Args:
        first: Bound of the first wait.
        most: Bound of any.
    """

    def __init__(self, first: float = 0.5, most: float = _MAX_WAIT):
        self.first, self.most = first, most

    def __call__(self, state: RetryCallState) -> float:
        """Return the wait after the attempt that `state` is about."""
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, BusyFault) and error.kind == "format":
            return 0.0
        bound = min(self.most, self.first * 2 ** min(state.attempt_number - 1, 30))
        asked = error.wait if isinstance(error, BusyFault) else 0.0
        return asked + random.uniform(0, bound)


def length_of(call: Call) -> int:
    """Return the characters that a call sends."""
    return sum(len(message["content"]) for message in call.messages)


def make_limits(pace: Pace) -> list[tuple[Any, str]]:
    """Return the limiters of requests and of tokens a minute."""
    from aiolimiter import AsyncLimiter

    limits = []
    if pace.requests_per_minute is not None:
        limits.append((AsyncLimiter(*_window(pace.requests_per_minute)), "requests"))
    if pace.tokens_per_minute is not None:
        limits.append((AsyncLimiter(pace.tokens_per_minute, 60), "tokens"))
    return limits


def _window(per_minute: float) -> tuple[float, float]:
    """Return the rate as so many in a time: short windows keep bursts small."""
    if per_minute <= 0:
        raise ConfigError("must be above 0", where="--rpm")
    return (1, 60 / per_minute) if per_minute < 60 else (per_minute / 60, 1)


def tokens_of(call: Call, limiter: Any) -> float:
    """Return the tokens of a call; one that is larger than a minute's worth takes all of it."""
    tokens = -(-length_of(call) // 3) + call.max_tokens
    return min(float(tokens), float(limiter.max_rate))
