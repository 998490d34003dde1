"""EgoSchema: three-minute egocentric videos; 500 public answers, the rest by a test server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from topa.data.questions import VideoQuestion
from topa.errors import DataError
from topa.eval.benchmarks.catalogue import Benchmark, Split
from topa.eval.benchmarks.files import (
    build,
    find_file,
    need_file,
    read_records,
    read_table,
    refuse_repeated,
    take,
    whole,
)
from topa.runs import read_json

SOURCE = "https://github.com/egoschema/EgoSchema (questions, answers; its README: videos)"


def read(root: Path, split: str, subtitles: bool = False) -> list[VideoQuestion]:
    """Read `questions.json` with `subset_answers.json`, or TOPA's `<split>.csv`.

    Raises:
        DataError: A file is missing or a record of it is wrong.
    """
    table = find_file(root, f"{split}.csv", "egoschema")
    if table is not None and find_file(root, "questions.json", "egoschema") is None:
        return _read_table(table)
    path = need_file(root, "questions.json", "egoschema", SOURCE)
    answers = _read_answers(root, split)
    questions = []
    for where, record in read_records(path):
        uid = take(record, "q_uid", where, str)
        if split == "subset" and uid not in answers:
            continue
        fields = {
            "qid": uid,
            "video": uid,
            "question": take(record, "question", where),
            "options": [take(record, f"option {i}", where) for i in range(5)],
            "answer": answers.get(uid),
        }
        questions.append(build(VideoQuestion, where, fields))
    if split == "subset" and (lost := set(answers) - {item.qid for item in questions}):
        raise DataError(f"{len(lost)} answers have no question, the first {min(lost)}", where=path)
    return refuse_repeated(questions, path)


def _read_answers(root: Path, split: str) -> dict[str, Any]:
    """Return the public answers by uid; none are needed for the full set."""
    if split == "subset":
        path = need_file(root, "subset_answers.json", "egoschema", SOURCE)
    else:
        found = find_file(root, "subset_answers.json", "egoschema")
        if found is None:
            return {}
        path = found
    answers = read_json(path)
    if not isinstance(answers, dict):
        raise DataError("an object {uid: answer} is needed", where=path)
    return {uid: whole(answer, uid, str(path)) for uid, answer in answers.items()}


def _read_table(path: Path) -> list[VideoQuestion]:
    """Read uid, question, a0 .. a4 and answer (empty where it is not public)."""
    names = [f"a{i}" for i in range(5)]
    questions = []
    for where, row in read_table(path, ["uid", "question", *names]):
        answer = (row.get("answer") or "").strip()
        fields = {
            "qid": row["uid"],
            "video": row["uid"],
            "question": row["question"],
            "options": [row[name] for name in names],
            "answer": whole(answer, "answer", where) if answer else None,
        }
        questions.append(build(VideoQuestion, where, fields))
    return refuse_repeated(questions, path)


BENCHMARK = Benchmark(
    name="egoschema",
    title="EgoSchema",
    task="choice",
    splits={
        "subset": Split(("questions.json|subset.csv", "subset_answers.json|subset.csv"), 500),
        "full": Split(("questions.json|full.csv",), 5031, answered=False),
    },
    read=read,
    source=SOURCE,
    licence="Ego4D licence agreement, questions and videos alike (as the paper says)",
    paper="Mangalam et al., NeurIPS 2023 (arXiv 2308.09126)",
    features=("features",),
    notes="The full set writes submission.json, {uid: index}, as their validate.py wants it.",
)
