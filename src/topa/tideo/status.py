"""How far a run is, for its progress and its report."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

from topa.tideo.journal import Ledger


@dataclass
class RunStatus:
    """Where a live run stands.

    Attributes:
        total: Seeds.
        done: Finished ones, of earlier runs too.
        failed: Failed ones.
        ledger: Totals, of earlier runs too.
        started: `time.monotonic()` at the beginning of this run.
        begun: `done` plus `failed` at that time.
        at_once: Requests let through at once.
        stopped: Why the run ended before its seeds: `budget`, `interrupted`, or the reason of
            a server that refuses or does not answer; None where it came to its end.
    """

    total: int
    done: int = 0
    failed: int = 0
    ledger: Ledger = field(default_factory=Ledger)
    started: float = field(default_factory=time.monotonic)
    begun: int = 0
    at_once: int = 0
    stopped: str | None = None

    @property
    def rate(self) -> float:
        """Seeds a second in this run."""
        past = time.monotonic() - self.started
        return (self.done + self.failed - self.begun) / past if past > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as plain values."""
        found = asdict(self)
        for name in ("started", "begun", "at_once"):
            found.pop(name)
        return {
            **found,
            "left": self.total - self.done - self.failed,
            "rate": self.rate,
            "ledger": self.ledger.to_dict(),
        }
