"""The user's own questions, as JSONL or CSV."""

from __future__ import annotations

import re
from pathlib import Path

from topa.data.questions import VideoQuestion, read_questions
from topa.errors import DataError
from topa.eval.benchmarks.files import build, read_table, refuse_repeated, whole

_OPTION = re.compile(r"(?:a|option[ _]?)(\d+)")


def read_own(path: Path) -> list[VideoQuestion]:
    """Read questions from `.jsonl` (see `VideoQuestion`) or `.csv`.

    A CSV has the columns qid, video, question, answer (index of the right option, empty where
    unknown), the options a0, a1, ... (an empty one is not there), and may have kind (or type),
    start and end.

    Raises:
        DataError: The file is missing, of another kind, or a line of it is wrong.
    """
    if not path.is_file():
        raise DataError("file not found", where=path, mend="Check the path.")
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        return read_questions(path)
    if path.suffix.lower() != ".csv":
        raise DataError(
            f"questions come as .jsonl or .csv, not {path.suffix or 'without a suffix'}",
            where=path,
            mend="Convert them.",
        )
    return refuse_repeated([_question(w, r) for w, r in _rows(path)], path)


def _rows(path: Path) -> list[tuple[str, dict[str, str]]]:
    return list(read_table(path, ["qid", "video", "question", "answer"]))


def _question(where: str, row: dict[str, str]) -> VideoQuestion:
    found = {
        int(match[1]): text.strip()
        for name, text in row.items()
        if name and (match := _OPTION.fullmatch(name.strip().lower())) and (text or "").strip()
    }
    if sorted(found) != list(range(min(found, default=0), min(found, default=0) + len(found))):
        raise DataError("an option is empty and a later one is not", where=where)
    answer = row["answer"].strip()
    fields: dict[str, object] = {
        "qid": row["qid"],
        "video": row["video"],
        "question": row["question"],
        "options": [found[i] for i in sorted(found)],
        "answer": whole(answer, "answer", where) if answer else None,
        "kind": (row.get("kind") or row.get("type") or "").strip() or None,
    }
    for name in ("start", "end"):
        if (row.get(name) or "").strip():
            fields[name] = row[name]
    return build(VideoQuestion, where, fields)
