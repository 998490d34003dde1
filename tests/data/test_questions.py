"""Questions: read from JSONL with the line that is wrong, or taken from Tideos."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from topa.data.questions import VideoQuestion, from_tideos, read_questions
from topa.errors import DataError
from topa.tideo.schema import Tideo

ROW: dict[str, Any] = {
    "qid": "a-0",
    "video": "a.mp4",
    "question": "What is it?",
    "options": ["A cat", "A dog"],
    "answer": 1,
}


def write(path: Path, *rows: dict[str, Any] | str) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_questions_come_in_the_order_of_the_file(tmp_path):
    rows = [{**ROW, "qid": name} for name in ("b", "a", "c")]
    path = write(tmp_path / "q.jsonl", rows[0], "", *rows[1:])
    assert [question.qid for question in read_questions(path)] == ["b", "a", "c"]


def test_captions_kind_and_unknown_fields_are_kept(tmp_path):
    row = {**ROW, "captions": ["a dog runs"], "kind": "causal", "type": "CW"}
    (question,) = read_questions(write(tmp_path / "q.jsonl", row))
    assert question.captions == ["a dog runs"]
    assert question.kind == "causal"
    assert question.model_extra == {"type": "CW"}


@pytest.mark.parametrize("count", [2, 26])
def test_two_to_26_options_are_fine(tmp_path, count):
    row = {**ROW, "options": [f"option {i}" for i in range(count)], "answer": count - 1}
    (question,) = read_questions(write(tmp_path / "q.jsonl", row))
    assert question.answer == count - 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answer": 2}, "answer 2 is not one of 2 options"),
        ({"answer": -1}, "answer"),
        ({"answer": "1"}, "answer"),
        ({"answer": True}, "answer"),
        ({"options": ["only one"], "answer": 0}, "options"),
        ({"options": [f"option {i}" for i in range(27)]}, "options"),
        ({"options": ["A cat", " "]}, "options.1"),
        ({"question": ""}, "question"),
        ({"qid": 7}, "qid"),
    ],
)
def test_a_wrong_line_is_named_with_its_field(tmp_path, change, reason):
    path = write(tmp_path / "q.jsonl", ROW, {**ROW, "qid": "a-1", **change})
    with pytest.raises(DataError) as caught:
        read_questions(path)
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert reason in caught.value.what


def test_a_missing_field_is_named(tmp_path):
    row = {name: value for name, value in ROW.items() if name != "video"}
    with pytest.raises(DataError, match="line 1: video: Field required"):
        read_questions(write(tmp_path / "q.jsonl", row))


def test_a_line_that_is_not_json_is_named(tmp_path):
    with pytest.raises(DataError, match="line 3: not valid JSON"):
        read_questions(write(tmp_path / "q.jsonl", ROW, {**ROW, "qid": "a-1"}, '{"qid": '))


def test_a_qid_that_occurs_twice_is_named_with_both_lines(tmp_path):
    with pytest.raises(DataError, match=r"line 3: qid 'a-0' is also on line 1"):
        read_questions(write(tmp_path / "q.jsonl", ROW, {**ROW, "qid": "b"}, ROW))


def test_an_empty_or_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="no records in the file"):
        read_questions(write(tmp_path / "empty.jsonl"))
    with pytest.raises(DataError, match="file not found"):
        read_questions(tmp_path / "absent.jsonl")


def test_every_question_of_a_tideo_becomes_one(tideos: list[Tideo]):
    questions = from_tideos(tideos)
    assert len(questions) == sum(len(tideo.qas) for tideo in tideos)
    first = tideos[0]
    assert questions[1] == VideoQuestion(
        qid=f"{first.id}-1",
        video=first.id,
        question=first.qas[1].question,
        options=first.qas[1].options,
        answer=first.qas[1].answer,
        captions=[first.caption],
        kind=first.qas[1].kind,
    )
    assert len({question.qid for question in questions}) == len(questions)
