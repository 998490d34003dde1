"""Tideos from JSONL: every fault is named with its file, line and field."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from topa.errors import DataError
from topa.tideo.schema import Frame, Question, Tideo, read_tideos, write_tideos


def record(**changes):
    question = {"question": "What?", "options": ["a", "b", "c"], "answer": 1}
    return {
        "id": "t1",
        "source": "howto",
        "seed": "how to fold a kite",
        "frames": [{"caption": f"frame {i}", "objects": ["a kite"]} for i in range(5)],
        "caption": "A kite is folded.",
        "qas": [question] * 3,
        **changes,
    }


@pytest.fixture
def write(tmp_path):
    def write(*rows):
        path = tmp_path / "tideos.jsonl"
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


def test_what_is_written_is_read_back(tideos, tmp_path):
    path = tmp_path / "tideos.jsonl"
    write_tideos(path, tideos)
    assert read_tideos(path) == tideos


def test_texts_of_a_frame_are_its_caption_and_objects():
    frame = Frame(caption=" A man runs. ", objects=["a man", "a road"])
    assert frame.texts == ["A man runs.", "a man", "a road"]


def test_tideos_cannot_be_changed():
    tideo = Tideo.model_validate(record())
    with pytest.raises(ValidationError, match="frozen"):
        tideo.caption = "Another."


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"frames": record()["frames"][:4]}, "frames"),
        ({"frames": record()["frames"] * 4}, "frames"),
        ({"frames": [{"caption": "x", "objects": []}] * 5}, r"frames\.0\.objects"),
        ({"frames": [{"caption": "x", "objects": ["o"] * 6}] * 5}, r"frames\.0\.objects"),
        ({"frames": [{"caption": "  ", "objects": ["o"]}] * 5}, r"frames\.0\.caption"),
        ({"qas": record()["qas"][:2]}, "qas"),
        ({"qas": record()["qas"] * 3}, "qas"),
        ({"source": "youtube"}, "source"),
        ({"caption": ""}, "caption"),
        ({"id": ""}, "id"),
        ({"title": "x"}, "title"),
    ],
)
def test_a_record_out_of_bounds_names_line_and_field(changes, field, write):
    path = write(record(), record(id="t2", **changes) if "id" not in changes else record(**changes))
    with pytest.raises(DataError, match=rf"line 2: .*{field}"):
        read_tideos(path)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"answer": 3}, "answer 3 is not one of 3 options"),
        ({"answer": -1}, "greater than or equal to 0"),
        ({"options": ["a", "b", "A"]}, "two options are the same"),
        ({"options": ["a"]}, "at least 2 items"),
        ({"options": [str(i) for i in range(27)]}, "at most 26 items"),
        ({"options": ["a", " "]}, "at least 1 character"),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused(changes, problem):
    with pytest.raises(ValidationError, match=problem):
        Question.model_validate({**record()["qas"][0], **changes})


def test_all_faults_of_a_line_come_at_once(write):
    with pytest.raises(DataError) as caught:
        read_tideos(write(record(source="x", caption="", extra=1)))
    assert all(name in str(caught.value) for name in ("source", "caption", "extra"))


def test_an_id_that_occurs_twice_names_both_lines(write):
    with pytest.raises(DataError, match="line 3: id 't1' is also on line 1"):
        read_tideos(write(record(), record(id="t2"), record()))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"id": '], "line 1: not valid JSON"),
        (["[1]"], "line 1: a JSON object is needed"),
        ([""], "no records in the file"),
    ],
)
def test_a_file_of_something_else_is_refused(lines, message, write):
    with pytest.raises(DataError, match=message):
        read_tideos(write(*lines))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl: file not found"):
        read_tideos(tmp_path / "none.jsonl")
