"""Whether two runs on the same questions differ: paired, clustered by video."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from topa.errors import DataError
from topa.eval.caption_metrics import cider, rouge_l
from topa.eval.log import PREDICTIONS, Row
from topa.eval.metrics import clustered_error
from topa.eval.ptb import tokenize_caption
from topa.runs import read_json


def read_predictions(path: str | Path) -> list[Row]:
    """Return the rows of a run: of its folder, its predictions.jsonl, or its report as JSON.

    Raises:
        DataError: There are none.
    """
    path = Path(path)
    if path.is_dir():
        path = path / PREDICTIONS
    if not path.is_file():
        raise DataError(
            "no predictions", where=path, mend="Name a folder of `topa evaluate --out`."
        )
    if path.suffix == ".jsonl":
        lines = path.read_text(encoding="utf-8").split("\n")
        try:
            rows = [json.loads(line) for line in lines if line.strip()]
        except json.JSONDecodeError as error:
            raise DataError(f"not valid JSON ({error.msg})", where=path) from None
    else:
        report = read_json(path)
        rows = (report.get("predictions") or []) if isinstance(report, dict) else []
    if not rows:
        raise DataError("no predictions in it", where=path)
    return list(rows)


def compare_runs(first: str | Path, second: str | Path) -> dict[str, Any]:
    """Compare two runs question by question.

    Returns:
        `metrics`: for each `metric`, `a`, `b`, `difference` (b - a), its `stderr` clustered by
        video, two-sided `p` (normal), `n`; for accuracy also `only_a`, `only_b` (questions that
        one alone answered rightly) and `mcnemar`. `notes`: what else to know, in words.

    Raises:
        DataError: The runs are not of the same questions; names how many differ.
    """
    return compare_rows(
        read_predictions(first), read_predictions(second), where=f"{first} and {second}"
    )


def compare_rows(a: Sequence[Row], b: Sequence[Row], *, where: str = "runs") -> dict[str, Any]:
    """Compare the rows of two runs, as `compare_runs` does.

    Raises:
        DataError: They are not of the same questions.
    """
    rows_a, rows_b = ({row["id"]: row for row in rows} for rows in (a, b))
    differing = set(rows_a) ^ set(rows_b)
    if differing:
        raise DataError(
            f"{len(differing)} questions are in one run only, the first {min(differing)}",
            where=where,
            mend="Compare runs on the same file.",
        )
    names = list(rows_a)
    pairs = [(rows_a[name], rows_b[name]) for name in names]
    if "caption" in a[0]:
        return {"metrics": _compare_captions(pairs), "notes": []}
    if any(x["answer"] != y["answer"] for x, y in pairs):
        raise DataError("the right answers differ", where=where)
    known = [(x, y) for x, y in pairs if x["answer"] is not None]
    if not known:
        raise DataError("no right answers are known", where=where)
    return _compare_answers(known)


def _compare_answers(pairs: Sequence[tuple[Row, Row]]) -> dict[str, Any]:
    right_a = np.asarray([x["predicted"] == x["answer"] for x, _ in pairs], dtype=np.float64)
    right_b = np.asarray([y["predicted"] == y["answer"] for _, y in pairs], dtype=np.float64)
    row = _paired("accuracy", right_a, right_b, [x["video"] for x, _ in pairs])
    only_a = int(((right_a == 1) & (right_b == 0)).sum())
    only_b = int(((right_a == 0) & (right_b == 1)).sum())
    row |= {"only_a": only_a, "only_b": only_b, "mcnemar": mcnemar(only_a, only_b)}
    note = (
        f"Only A is right on {only_a} questions, only B on {only_b};"
        f" McNemar's exact test (questions as independent): p = {row['mcnemar']:.3g}."
    )
    return {"metrics": [row], "notes": [note]}


def _compare_captions(pairs: Sequence[tuple[Row, Row]]) -> list[dict[str, Any]]:
    references = [[" ".join(tokenize_caption(t)) for t in x["references"]] for x, _ in pairs]
    texts = [
        [" ".join(tokenize_caption(row["caption"] or "")) for row in side]
        for side in zip(*pairs, strict=True)
    ]
    videos = [x["video"] for x, _ in pairs]
    found = []
    for metric in ("CIDEr", "ROUGE-L"):
        scores = [
            np.asarray(
                cider(side, references)
                if metric == "CIDEr"
                else [rouge_l(t, refs) for t, refs in zip(side, references, strict=True)]
            )
            for side in texts
        ]
        found.append(_paired(metric, scores[0], scores[1], videos))
    return found


def _paired(metric: str, a: np.ndarray, b: np.ndarray, videos: Sequence[str]) -> dict[str, Any]:
    difference = b - a
    error = clustered_error(difference, videos)
    mean = float(difference.mean())
    p = None
    if error is not None:
        p = (
            (1.0 if mean == 0 else 0.0)
            if error == 0
            else math.erfc(abs(mean / error) / math.sqrt(2))
        )
    return {
        "metric": metric,
        "a": float(a.mean()),
        "b": float(b.mean()),
        "difference": mean,
        "stderr": error,
        "p": p,
        "n": len(a),
    }


def mcnemar(only_a: int, only_b: int) -> float:
    """Return the two-sided p of McNemar's exact test: are both kinds of discord as likely?

    Args:
        only_a: Questions that only the first run answered rightly.
        only_b: Those that only the second did.
    """
    total = only_a + only_b
    tail = sum(math.comb(total, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**total)
