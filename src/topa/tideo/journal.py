"""The journal of a run: one line for everything sent, received and finished, never rewritten.

A run that ends in any way, killed included, goes on from its journal: finished seeds are not
asked for again, and replies that were paid for but not finished with are used. Line types:

- sent: a request is about to leave, with what it may cost at most
- fault: it brought no reply (429, 500, time-out, ...)
- answer: it brought a reply that is a step on the way, kept as it came
- done: it brought a reply that finished the seed, whose result is on the line
- failed: the seed came to nothing, with the reason; the raw replies are on the lines before
"""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from topa.errors import ConfigError, DataError
from topa.tideo.backends import Completion

FOLDER = "journal"
MAIN = "main.jsonl"


@dataclass
class Ledger:
    """What a run sent, received and cost; the sums of a journal's lines.

    Attributes:
        requests: Sent.
        answered: Brought a reply.
        faults: Brought none, by kind.
        prompt_tokens: Of all replies, rejected ones included.
        completion_tokens: Likewise.
        estimated: Replies whose server did not count tokens: theirs are four characters each.
        cost: USD of the replies at the given prices.
        open_cost: USD at most of requests that were on their way when a run was killed.
    """

    requests: int = 0
    answered: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated: int = 0
    cost: float = 0.0
    open_cost: float = 0.0

    @property
    def unknown(self) -> int:
        """Requests of which nothing is known: on their way, or lost with a killed run."""
        return self.requests - self.answered - sum(self.faults.values())

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {**asdict(self), "faults": dict(self.faults), "unknown": self.unknown}


@dataclass
class JournalState:
    """Where a run stands, read from its journals.

    Attributes:
        done: Keys of finished seeds.
        failed: Keys of failed seeds and why.
        replies: Key -> replies so far, of seeds that are neither.
        ledger: Totals.
        torn: Lines that cannot be read, as a crash of the machine leaves them, by place.
    """

    done: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    replies: dict[str, list[Completion]] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)
    torn: list[str] = field(default_factory=list)


class Journal:
    """Appends to a journal, as the only one: a second process is refused.

    Raises:
        ConfigError: Another run is writing to it.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise ConfigError(
                "another run is writing here",
                where=self.path,
                mend="Wait for it, stop it, or choose another --out.",
            ) from None
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            os.write(self._file, b"\n")  # a line that a crash cut off must not spoil the next

    def append(self, *rows: dict[str, Any]) -> None:
        """Write lines at once; a killed process leaves all of them or a torn last one.

        Raises:
            OSError: The disk is full, or gone.
        """
        lines = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
        rest = memoryview(lines.encode())
        while rest:
            rest = rest[os.write(self._file, rest) :]

    def sync(self) -> None:
        """Wait until everything is on the disk, against a loss of power."""
        # macOS has no fdatasync.
        getattr(os, "fdatasync", os.fsync)(self._file)

    def close(self) -> None:
        """Sync, and let others write."""
        self.sync()
        os.close(self._file)


def sent_row(key: str, step: int, at_most: float) -> dict[str, Any]:
    """Return the line to write before a request leaves."""
    return {"t": "sent", "key": key, "step": step, "usd": round(at_most, 9)}


def fault_row(key: str, step: int, kind: str, detail: str, at_most: float) -> dict[str, Any]:
    """Return the line of a request that brought no reply."""
    row = {"t": "fault", "key": key, "step": step, "kind": kind, "detail": detail}
    return {**row, "usd": round(at_most, 9)}


def answer_row(key: str, step: int, reply: Completion, usage: dict[str, Any]) -> dict[str, Any]:
    """Return the line of a reply that is a step on the way."""
    row = {"t": "answer", "key": key, "step": step, "text": reply.text}
    return {**row, "finish": reply.finish, "usage": usage}


def done_row(
    key: str, result: dict[str, Any], notes: list[str], usage: dict[str, Any] | None
) -> dict[str, Any]:
    """Return the line of a finished item, with notes on what was left out."""
    row: dict[str, Any] = {"t": "done", "key": key, "result": result}
    if notes:
        row["notes"] = notes
    return {**row, "usage": usage}


def failed_row(
    key: str, item: Any, why: str, text: str, usage: dict[str, Any] | None
) -> dict[str, Any]:
    """Return the line of an item that came to nothing, with the last reply as it came."""
    row = {"t": "failed", "key": key, "item": asdict(item), "why": why, "text": text}
    return {**row, "usage": usage}


def usage_of(reply: Completion, prompt_length: int) -> tuple[int, int, bool]:
    """Return prompt and completion tokens, and whether they had to be estimated.

    Args:
        reply: What came back.
        prompt_length: Characters sent.
    """
    if reply.prompt_tokens is None or reply.completion_tokens is None:
        return -(-prompt_length // 4), -(-len(reply.text) // 4), True
    return reply.prompt_tokens, reply.completion_tokens, False


def list_journals(run: str | Path) -> list[Path]:
    """Return the journals of a run's folder, in a stable order.

    Raises:
        DataError: It is no folder of a run.
    """
    folder = Path(run) / FOLDER
    if not folder.is_dir():
        raise DataError(
            "no journal in this folder",
            where=run,
            mend="Name the --out of a `topa textvid generate`.",
        )
    return sorted(folder.glob("*.jsonl"))


def read_rows(path: Path, torn: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the lines of a journal; those that cannot be read are named in `torn`."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                if torn is not None:
                    torn.append(f"{path.name}, line {number}")
                continue
            yield row


def read_state(run: str | Path, *, only: str | None = None) -> JournalState:
    """Return where a run stands; a folder without a journal is at its beginning.

    Args:
        run: Folder of the run.
        only: Name of one journal to read instead of all.
    """
    state = JournalState()
    folder = Path(run) / FOLDER
    paths = sorted(folder.glob("*.jsonl")) if only is None else [folder / only]
    for path in paths:
        if path.is_file():
            for row in read_rows(path, state.torn):
                record_row(state, row)
    return state


def count_row(ledger: Ledger, row: dict[str, Any]) -> None:
    """Add one line to the totals."""
    kind = row["t"]
    if kind == "sent":
        ledger.requests += 1
        ledger.open_cost += row["usd"]
        return
    if kind == "fault":
        ledger.faults[row["kind"]] += 1
        ledger.open_cost -= row["usd"]
        return
    if usage := row.get("usage"):
        ledger.answered += 1
        ledger.prompt_tokens += usage["in"]
        ledger.completion_tokens += usage["out"]
        ledger.estimated += usage.get("estimated", False)
        ledger.cost += usage["usd"]
        ledger.open_cost -= usage["most"]


def record_row(state: JournalState, row: dict[str, Any]) -> None:
    """Bring a state up to date with one line."""
    count_row(state.ledger, row)
    kind, key = row["t"], row["key"]
    if kind in ("sent", "fault"):
        return
    if kind == "answer":
        state.replies.setdefault(key, []).append(
            Completion(row["text"], finish=row.get("finish", "stop"))
        )
        return
    state.replies.pop(key, None)
    if kind == "done":
        state.done.add(key)
        state.failed.pop(key, None)
    elif kind == "failed" and key not in state.done:
        state.failed[key] = row["why"]
