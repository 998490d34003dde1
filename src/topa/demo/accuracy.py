"""The small table of the demonstration: held-out questions beside the baselines."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from topa.answer import Method, Topa
from topa.data.questions import VideoQuestion, from_tideos
from topa.demo.narration import Narrator
from topa.eval.run import Report, evaluate, tideo_features
from topa.tideo.schema import Tideo
from topa.tideo.textvid import load_textvid

SAMPLE = 60
SEED = 0

_RUNS: tuple[tuple[str, Method | None, bool], ...] = (
    ("TOPA", None, False),
    ("similarity alone, no LLM", "similarity", False),
    ("blind LLM, video masked", None, True),
)


def draw_questions(tideos: Sequence[Tideo], count: int, seed: int = SEED) -> list[VideoQuestion]:
    """Return the first `count` questions of the Tideos in a seeded order; all if fewer.

    Whole Tideos are taken, but for the last: a video is read once for all its questions.
    """
    order = random.Random(seed).sample(list(tideos), len(tideos))
    return from_tideos(order)[:count]


def measure(topa: Topa, narrator: Narrator, *, full: bool = False) -> dict[str, Any]:
    """Answer held-out questions with the model and without its parts, and say how well.

    Args:
        topa: The model.
        narrator: Told what is measured, and shown the table.
        full: All held-out questions rather than a sample.

    Returns:
        `sample` in words, `questions`, and `rows` with `name`, `accuracy`, `error` (one
        standard error, clustered by Tideo; None for chance) and `questions`.
    """
    heldout = load_textvid("heldout")
    everything = sum(len(tideo.qas) for tideo in heldout)
    questions = draw_questions(heldout, everything if full else SAMPLE)
    used = {question.video for question in questions}
    if len(questions) < everything:
        sample = (
            f"A sample of {len(questions)} of the {everything} held-out questions: those of"
            f" {len(used)} Tideos drawn with seed {SEED}."
        )
    else:
        sample = f"All {everything} held-out questions of {len(used)} Tideos."
    narrator.say(f"  {sample}")
    reports = _evaluate(topa, narrator, questions, [t for t in heldout if t.id in used])
    rows: list[dict[str, Any]] = [
        {"name": name, "accuracy": found.accuracy, "error": found.stderr, "questions": found.n}
        for name, found in reports.items()
    ]
    chance = reports["TOPA"].chance
    rows.append({"name": "chance", "accuracy": chance, "error": None, "questions": len(questions)})
    narrator.console.print(tabulate(rows))
    return {"sample": sample, "questions": len(questions), "rows": rows}


def _evaluate(
    topa: Topa, narrator: Narrator, questions: Sequence[VideoQuestion], tideos: Sequence[Tideo]
) -> dict[str, Report]:
    features = tideo_features(tideos, topa)
    reports = {}
    with narrator.bar("  answers", len(_RUNS) * len(questions)) as progress:
        for number, (name, method, blind) in enumerate(_RUNS):

            def tell(stage: str, done: int, total: int, number: int = number) -> None:
                if stage == "questions":
                    progress(round((number + done / total) * len(questions)))

            reports[name] = evaluate(
                topa, questions, features=features, method=method, blind=blind, progress=tell
            )
            progress((number + 1) * len(questions))
    return reports


def tabulate(rows: Sequence[dict[str, Any]]) -> Table:
    """Return a terminal table of accuracies with their standard errors."""
    table = Table("Method", "Right", "Questions")
    table.columns[1].justify = table.columns[2].justify = "right"
    for row in rows:
        error = "" if row["error"] is None else f" ± {row['error']:.1%}"
        table.add_row(row["name"], f"{row['accuracy']:.1%}{error}", str(row["questions"]))
    return table
