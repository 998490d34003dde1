"""How good Tideos are, without asking a model: each one on its own, and all together."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from topa.tideo.schema import Question, Tideo

FRAME_WORDS = (3, 60)
CAPTION_WORDS = (8, 200)
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_TIME_WORDS = re.compile(
    r"\b(then|next(?! to)|afterwards?|later|again|meanwhile|finally|eventually|subsequently"
    r"|previously|once more|by now|the same)\b",
    re.IGNORECASE,
)
_PARTS = re.compile(
    r"\b(?:first|second|third|\w+th|last|final|next|previous|each|every|this|that|which|what)"
    r" frames?\b|\bframe \d|\bcaptions?\b",
    re.IGNORECASE,
)
_FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an the of in on at to with and or for from by into onto over under it its is are was"
        " were be he she they his her their them him this that these those some any no not as up"
        " down out off one",
    )
)


@dataclass(frozen=True)
class Finding:
    """Something doubtful in a Tideo.

    Attributes:
        id: Of the Tideo.
        rule: What it breaks: one of `RULES`.
        question: Its number, where it is about one.
        detail: The words at fault.
    """

    id: str
    rule: str
    detail: str
    question: int | None = None


RULES = {
    "frame-length": f"a frame caption of less than {FRAME_WORDS[0]} or more than"
    f" {FRAME_WORDS[1]} words",
    "caption-length": f"a global caption of less than {CAPTION_WORDS[0]} or more than"
    f" {CAPTION_WORDS[1]} words",
    "time-word": "a frame caption that leans on another one (then, again, later, the same)",
    "repeated-frame": "two frames with one caption",
    "leak": "every word of the right option, and of no other, is in the question",
    "same-options": "options that differ in case, articles or punctuation alone",
    "repeated-question": "a question asked twice",
    "names-a-frame": "a question that speaks of a frame or caption",
}
QUESTION_RULES = ("leak", "same-options", "repeated-question", "names-a-frame")


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case."""
    return [word.casefold() for word in _WORD.findall(text)]


def content_of(text: str) -> frozenset[str]:
    """Return the different words of a text without articles, prepositions and the like."""
    words = frozenset(words_of(text))
    return words - _FUNCTION_WORDS or words


def find_faults(tideo: Tideo) -> list[Finding]:
    """Return what is doubtful in one Tideo that fits the schema."""
    found = [Finding(tideo.id, rule, detail) for rule, detail in _judge_frames(tideo)]
    asked: set[tuple[str, ...]] = set()
    for number, item in enumerate(tideo.qas):
        for rule, detail in _judge_question(item):
            found.append(Finding(tideo.id, rule, detail, number))
        words = tuple(words_of(item.question))
        if words in asked:
            found.append(Finding(tideo.id, "repeated-question", item.question, number))
        asked.add(words)
    return found


def _judge_frames(tideo: Tideo) -> Iterator[tuple[str, str]]:
    captions: set[str] = set()
    for frame in tideo.frames:
        if not FRAME_WORDS[0] <= len(words_of(frame.caption)) <= FRAME_WORDS[1]:
            yield "frame-length", frame.caption
        if match := _TIME_WORDS.search(frame.caption):
            yield "time-word", f"{match[0]}: {frame.caption}"
        if frame.caption.casefold() in captions:
            yield "repeated-frame", frame.caption
        captions.add(frame.caption.casefold())
    if not CAPTION_WORDS[0] <= len(words_of(tideo.caption)) <= CAPTION_WORDS[1]:
        yield "caption-length", f"{len(words_of(tideo.caption))} words"


def _judge_question(item: Question) -> Iterator[tuple[str, str]]:
    asked = content_of(item.question)
    right = item.options[item.answer]
    inside = [bool(words_of(option)) and content_of(option) <= asked for option in item.options]
    if inside[item.answer] and sum(inside) == 1:
        yield "leak", f"{item.question} {right}"
    plain = [frozenset(words_of(option)) - {"a", "an", "the"} for option in item.options]
    if len(set(plain)) < len(plain) and all(plain):
        ordered = [
            " ".join(w for w in words_of(o) if w not in ("a", "an", "the")) for o in item.options
        ]
        if len(set(ordered)) < len(ordered):
            yield "same-options", "; ".join(item.options)
    if match := _PARTS.search(item.question):
        yield "names-a-frame", f"{match[0]}: {item.question}"


@dataclass
class Summary:
    """Counts over Tideos, one by one, so that any number of them fits.

    Attributes:
        tideos: Their number.
        frames: Of all.
        sources: Tideos by source.
        kinds: Questions by kind.
        positions: Questions by the place of the right option.
        longest: Questions whose right option alone is the longest.
        shortest: Questions whose right option alone is the shortest.
        chance: Sum over questions of one over the number of options.
        rules: Findings by rule.
    """

    tideos: int = 0
    frames: int = 0
    sources: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    positions: Counter[int] = field(default_factory=Counter)
    longest: int = 0
    shortest: int = 0
    chance: float = 0.0
    rules: Counter[str] = field(default_factory=Counter)

    @property
    def questions(self) -> int:
        """Number of questions."""
        return sum(self.kinds.values())

    def add(self, tideo: Tideo) -> list[Finding]:
        """Count one Tideo, and return what is doubtful in it."""
        self.tideos += 1
        self.frames += len(tideo.frames)
        self.sources[tideo.source] += 1
        for item in tideo.qas:
            self.kinds[item.kind or "unknown"] += 1
            self.positions[item.answer] += 1
            self.longest += is_extreme(item, max)
            self.shortest += is_extreme(item, min)
            self.chance += 1 / len(item.options)
        found = find_faults(tideo)
        self.rules.update(finding.rule for finding in found)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the counts as plain values; shares are of all questions."""
        n = self.questions
        return {
            "sources": dict(sorted(self.sources.items())),
            "frames": self.frames,
            "questions": n,
            "kinds": dict(sorted(self.kinds.items())),
            "answer_positions": dict(sorted(self.positions.items())),
            "position_excess": self.position_excess,
            "right_is_longest": self.longest / n if n else None,
            "right_is_shortest": self.shortest / n if n else None,
            "chance": self.chance / n if n else None,
            "findings": {rule: self.rules[rule] for rule in RULES},
        }

    @property
    def position_excess(self) -> float | None:
        """How far the most frequent place is above an even share, in standard errors."""
        n, places = self.questions, len(self.positions)
        if not n or places < 2:
            return None
        share = 1 / max(places, max(self.positions) + 1)
        error = (share * (1 - share) / n) ** 0.5
        return (max(self.positions.values()) / n - share) / error


def is_extreme(item: Question, pick: Any) -> bool:
    """Whether the right option alone has the largest (`max`) or smallest (`min`) length."""
    lengths = [len(option) for option in item.options]
    most = pick(lengths)
    return lengths[item.answer] == most and lengths.count(most) == 1


def summarise(tideos: Iterable[Tideo]) -> tuple[Summary, list[Finding]]:
    """Return the counts of Tideos, and everything doubtful in them."""
    summary = Summary()
    findings = [finding for tideo in tideos for finding in summary.add(tideo)]
    return summary, findings
