"""Comparing two runs: by hand, clustered, and only on the same questions."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from topa.errors import DataError
from topa.eval.comparison import compare_runs, mcnemar


def write(folder: Path, answers: str, videos: str = "aabb") -> Path:
    """Write a run: r right, w wrong, f failed."""
    folder.mkdir()
    rows: list[dict[str, Any]] = [
        {
            "id": str(i),
            "video": video,
            "answer": 0,
            "predicted": {"r": 0, "w": 1, "f": None}[letter],
        }
        for i, (letter, video) in enumerate(zip(answers, videos, strict=True))
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "predictions.jsonl").write_text(text, encoding="utf-8")
    return folder


def test_a_difference_with_its_clustered_error(tmp_path):
    a, b = write(tmp_path / "a", "wwrf"), write(tmp_path / "b", "rrrw")
    (row,) = compare_runs(a, b)["metrics"]
    assert (row["a"], row["b"], row["difference"], row["n"]) == (0.25, 0.75, 0.5, 4)
    # Differences 1, 1 | 0, 0 around 0.5: sums of +1 and -1 in two clusters, sqrt(2 * 2) / 4.
    assert row["stderr"] == pytest.approx(math.sqrt(2 * (1 + 1)) / 4)
    assert row["p"] == pytest.approx(math.erfc(1 / math.sqrt(2)))
    assert (row["only_a"], row["only_b"], row["mcnemar"]) == (0, 2, 0.5)


def test_a_run_does_not_differ_from_itself(tmp_path):
    a = write(tmp_path / "a", "wrwr")
    (row,) = compare_runs(a, a / "predictions.jsonl")["metrics"]
    assert (row["difference"], row["p"], row["mcnemar"]) == (0, 1, 1)


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"), [(0, 0, 1.0), (5, 5, 1.0), (0, 5, 2 / 32), (1, 7, 2 * 9 / 256)]
)
def test_mcnemar_is_the_exact_binomial_test(only_a, only_b, p):
    assert mcnemar(only_a, only_b) == pytest.approx(p)


def test_other_questions_are_refused(tmp_path):
    a, b = write(tmp_path / "a", "rrrr"), write(tmp_path / "b", "rrr", "aab")
    with pytest.raises(DataError, match="1 questions are in one run only, the first 3"):
        compare_runs(a, b)


def test_captions_are_compared_by_their_scores(tmp_path):
    for name, captions in (
        ("a", ["a cat sits here", "one two"]),
        ("b", ["a cat sits here", "a dog runs by"]),
    ):
        (tmp_path / name).mkdir()
        rows = [
            {"id": v, "video": v, "caption": c, "references": [r]}
            for v, c, r in zip("xy", captions, ["a cat sits here", "a dog runs by"], strict=True)
        ]
        (tmp_path / name / "predictions.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
        )
    metrics = {
        row["metric"]: row for row in compare_runs(tmp_path / "a", tmp_path / "b")["metrics"]
    }
    assert metrics["ROUGE-L"]["a"] == pytest.approx(0.5)
    assert metrics["ROUGE-L"]["b"] == pytest.approx(1.0)
    assert metrics["CIDEr"]["difference"] == pytest.approx(5.0)


def test_what_is_not_a_run_is_named(tmp_path):
    with pytest.raises(DataError, match="no predictions"):
        compare_runs(tmp_path, tmp_path)
