"""Leaving out what is doubtful, and evening out what gives answers away, with an account of it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from topa.tideo.drafts import REFERS
from topa.tideo.quality import QUESTION_RULES, Summary, find_faults, is_extreme
from topa.tideo.schema import Question, Tideo

MIN_QUESTIONS = 3


@dataclass
class FilterReport:
    """What a filter left out, and why.

    Attributes:
        read: Tideos before.
        kept: Tideos after.
        tideos: Left out, by reason.
        questions: Left out of Tideos that stay, by reason.
        moved: Questions whose right option has another place than before.
        left_out: Id of every Tideo left out, and the reason.
    """

    read: int = 0
    kept: int = 0
    tideos: Counter[str] = field(default_factory=Counter)
    questions: Counter[str] = field(default_factory=Counter)
    moved: int = 0
    left_out: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {**vars(self), "tideos": dict(self.tideos), "questions": dict(self.questions)}


def drop_tideos(
    tideos: Iterable[Tideo], reasons: dict[str, str], report: FilterReport
) -> list[Tideo]:
    """Return the Tideos whose id has no reason to be left out."""
    kept = []
    for tideo in tideos:
        report.read += 1
        if tideo.id in reasons:
            _leave_out(tideo, reasons[tideo.id], report)
        else:
            kept.append(tideo)
    report.kept = len(kept)
    return kept


def drop_questions(
    tideos: Iterable[Tideo],
    report: FilterReport,
    *,
    rules: Sequence[str] = QUESTION_RULES,
    guessed: Iterable[tuple[str, int]] = (),
) -> list[Tideo]:
    """Return Tideos without doubtful questions; one with fewer than three left goes whole.

    Args:
        tideos: To filter.
        report: Brought up to date.
        rules: Of `topa.tideo.quality`, those about questions.
        guessed: Id and number of questions that a blind model answered.
    """
    answered = set(guessed)
    kept = []
    for tideo in tideos:
        faults = {
            finding.question: finding.rule
            for finding in find_faults(tideo)
            if finding.question is not None and finding.rule in rules
        }
        for number in range(len(tideo.qas)):
            if (tideo.id, number) in answered:
                faults.setdefault(number, "answered blind")
        rest = [item for number, item in enumerate(tideo.qas) if number not in faults]
        if len(rest) < MIN_QUESTIONS:
            _leave_out(tideo, f"{len(rest)} good questions", report, "too few good questions")
            continue
        report.questions.update(faults.values())
        kept.append(tideo.model_copy(update={"qas": rest}) if faults else tideo)
    report.kept = len(kept)
    return kept


def rebalance(tideos: Sequence[Tideo], report: FilterReport, *, seed: int = 0) -> list[Tideo]:
    """Return Tideos whose right options cannot be told by place or length.

    Every question draws new places for its options, unless one speaks of others ("all of
    these"). Then, while the right option alone is the longest (or shortest) more often than
    chance, such questions are left out at random from Tideos that keep three without them.
    """
    rng = random.Random(seed)
    moved = []
    for tideo in tideos:
        questions = [_redraw(item, rng) for item in tideo.qas]
        pairs = zip(questions, tideo.qas, strict=True)
        report.moved += sum(new.answer != old.answer for new, old in pairs)
        moved.append(tideo.model_copy(update={"qas": questions}))
    for name, pick in (("longest", max), ("shortest", min)):
        moved = _even_out(moved, pick, f"right option alone {name}", report, rng)
    return moved


def _redraw(item: Question, rng: random.Random) -> Question:
    order = list(range(len(item.options)))
    rng.shuffle(order)
    if any(REFERS.search(option) for option in item.options):
        return item
    return item.model_copy(
        update={
            "options": [item.options[i] for i in order],
            "answer": order.index(item.answer),
        }
    )


def _even_out(
    tideos: list[Tideo], pick: Any, reason: str, report: FilterReport, rng: random.Random
) -> list[Tideo]:
    summary = Summary()
    for tideo in tideos:
        summary.add(tideo)
    count = summary.longest if pick is max else summary.shortest
    total, chance = summary.questions, summary.chance
    places = [
        (i, k) for i, t in enumerate(tideos) for k, q in enumerate(t.qas) if is_extreme(q, pick)
    ]
    rng.shuffle(places)
    gone: dict[int, set[int]] = {}
    for i, k in places:
        if count <= chance + 1e-6:  # a sum of fractions
            break
        out = gone.setdefault(i, set())
        if len(tideos[i].qas) - len(out) <= MIN_QUESTIONS:
            continue
        out.add(k)
        chance -= 1 / len(tideos[i].qas[k].options)
        count, total = count - 1, total - 1
        report.questions[reason] += 1
    result = list(tideos)
    for i, out in gone.items():
        rest = [item for k, item in enumerate(tideos[i].qas) if k not in out]
        result[i] = tideos[i].model_copy(update={"qas": rest})
    return result


def _leave_out(tideo: Tideo, reason: str, report: FilterReport, group: str | None = None) -> None:
    report.tideos[group or reason.partition(":")[0]] += 1
    report.left_out[tideo.id] = reason
