"""Asking a model the questions of Tideos: blind, and with the frames before it."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from topa.runs import digest
from topa.tideo.backends import Call
from topa.tideo.composition import Composition
from topa.tideo.drafts import DraftError
from topa.tideo.journal import list_journals, read_rows
from topa.tideo.schema import Tideo

VERSION = "1"
View = Literal["blind", "frames"]
VIEWS: tuple[View, ...] = ("blind", "frames")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_SYSTEM = {
    "blind": "You are asked about a video that you cannot see. Guess the most likely answer.",
    "frames": "You are asked about a video. Its frames are described to you in time order.",
}
_TASK = 'Answer with the letter of one option, as JSON: {"answer": "A"}'


@dataclass(frozen=True)
class AuditItem:
    """One question, asked in one way.

    Attributes:
        tideo: Id of the Tideo.
        question: Its number there.
        view: Whether the frames are shown.
        prompt: What the model is told.
        options: Their number.
        right: Index of the right one.
        kind: What the question asks for.
    """

    tideo: str
    question: int
    view: View
    prompt: str
    options: int
    right: int
    kind: str


@dataclass(frozen=True)
class AuditTask:
    """Has a model choose an option; see `topa.tideo.composition.Task`.

    Attributes:
        model: Its name.
        max_tokens: Of a reply; models that think aloud need more.
    """

    model: str
    max_tokens: int = 200

    def key_of(self, item: AuditItem) -> str:
        """Return the journal's key: hash(question, view, prompt version, model)."""
        return digest(VERSION, self.model, item.view, item.prompt)

    def compose(self, item: AuditItem, key: str) -> Composition:
        """Return the one call, or two if the first reply names no option."""
        letters = list(_LETTERS[: item.options])
        schema = {
            "type": "object",
            "properties": {"answer": {"type": "string", "enum": letters}},
            "required": ["answer"],
            "additionalProperties": False,
        }
        messages = [
            {"role": "system", "content": _SYSTEM[item.view]},
            {"role": "user", "content": f"{item.prompt}\n\n{_TASK}"},
        ]
        for step in range(2):
            reply = yield Call(messages, schema, self.max_tokens, 0.0, f"{key}-{step}", draw=step)
            choice = read_choice(reply.text, item.options)
            if choice is not None:
                return {
                    "tideo": item.tideo,
                    "question": item.question,
                    "view": item.view,
                    "kind": item.kind,
                    "choice": choice,
                    "right": choice == item.right,
                    "chance": 1 / item.options,
                }, []
        raise DraftError("the reply names no option")


def read_choice(text: str, options: int) -> int | None:
    """Return the index of the option that a reply names, or None: nothing is guessed."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    named = value.get("answer") if isinstance(value, dict) else None
    if not isinstance(named, str):
        found = re.findall(r'"answer"\s*:\s*"\(?([A-Z])\)?"', text) or re.findall(
            r"^\s*\(?([A-Z])\)?[.:)]?\s*$", text, re.MULTILINE
        )
        named = found[-1] if len(set(found)) == 1 else ""
    letter = named.strip("() .").upper()
    place = _LETTERS.find(letter) if len(letter) == 1 else -1
    return place if 0 <= place < options else None


def make_items(tideos: Iterable[Tideo], views: Sequence[View] = VIEWS) -> list[AuditItem]:
    """Return every question of Tideos, once for each view."""
    items = []
    for tideo in tideos:
        shown = "\n".join(
            f"{i}. {frame.caption} ({', '.join(frame.objects)})"
            for i, frame in enumerate(tideo.frames, start=1)
        )
        for number, item in enumerate(tideo.qas):
            options = "\n".join(
                f"({letter}) {option}"
                for letter, option in zip(_LETTERS, item.options, strict=False)
            )
            asked = f"Question: {item.question}\n{options}"
            for view in views:
                prompt = f"Frames:\n{shown}\n\n{asked}" if view == "frames" else asked
                kind = item.kind or "unknown"
                items.append(
                    AuditItem(tideo.id, number, view, prompt, len(item.options), item.answer, kind)
                )
    return items


def read_choices(run: str | Path, task: AuditTask, items: Iterable[AuditItem]) -> list[dict]:
    """Return the answers to items out of an audit's journal; unanswered ones are wrong.

    Raises:
        DataError: It is no folder of an audit.
    """
    results: dict[str, dict[str, Any]] = {}
    for path in list_journals(run):
        for row in read_rows(path):
            if row["t"] == "done":
                results[row["key"]] = row["result"]
    choices = []
    for item in items:
        missing = {
            "tideo": item.tideo,
            "question": item.question,
            "view": item.view,
            "kind": item.kind,
            "choice": None,
            "right": False,
            "chance": 1 / item.options,
        }
        choices.append(results.get(task.key_of(item), missing))
    return choices


def measure(choices: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return accuracy by view, of all questions and by kind.

    Each with n, `unanswered` (they count as wrong), chance, and the standard error clustered by
    Tideo (questions of one Tideo are not independent).
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for choice in choices:
        groups[choice["view"], "all"].append(choice)
        groups[choice["view"], choice["kind"]].append(choice)
    found: dict[str, Any] = {}
    for (view, kind), rows in sorted(groups.items()):
        found.setdefault(view, {})[kind] = _measure_group(rows)
    return found


def _measure_group(rows: list[dict[str, Any]]) -> dict[str, Any]:
    n = len(rows)
    mean = sum(row["right"] for row in rows) / n
    by_tideo: dict[str, float] = defaultdict(float)
    for row in rows:
        by_tideo[row["tideo"]] += row["right"] - mean
    clusters = len(by_tideo)
    spread = sum(total**2 for total in by_tideo.values())
    correction = clusters / (clusters - 1) if clusters > 1 else math.nan
    error = math.sqrt(spread * correction) / n if clusters > 1 else None
    return {
        "n": n,
        "accuracy": mean,
        "error": error,
        "chance": sum(row["chance"] for row in rows) / n,
        "unanswered": sum(row["choice"] is None for row in rows),
    }
