"""Annotation files that hold something else than they should: an error that says where."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topa.errors import DataError
from topa.eval.benchmarks import find_benchmark

OPTIONS = {f"a{i}": f"option {i}" for i in range(5)}
# One record of each kind of JSON file, and its split.
FILES: dict[str, tuple[str, dict[str, Any]]] = {
    "egoschema": (
        "full",
        {
            "questions.json": [
                {"q_uid": "a", "question": "q", **{f"option {i}": f"o{i}" for i in range(5)}}
            ],
            "subset_answers.json": {"a": 1},
        },
    ),
    "star": (
        "val",
        {
            "STAR_val.json": [
                {
                    "question_id": "Interaction_1",
                    "question": "q",
                    "video_id": "v",
                    "start": 1.0,
                    "end": 2.0,
                    "answer": "x",
                    "choices": [{"choice_id": i, "choice": text} for i, text in enumerate("xyz")],
                }
            ]
        },
    ),
    "tvqa": (
        "val",
        {
            "tvqa_val.jsonl": {
                **{"q": "q", "qid": 1, "vid_name": "v", "ts": "1.0-2.0", "answer_idx": 0},
                **OPTIONS,
            },
            "tvqa_preprocessed_subtitles.jsonl": {
                "vid_name": "v",
                "sub": [{"text": "hi", "start": 1, "end": 2}],
            },
        },
    ),
    "mvbench": (
        "state_change",
        {
            "json/state_change.json": [
                {"video": "v.mp4", "question": "q", "candidates": ["a", "b"], "answer": "a"}
            ]
        },
    ),
    "msrvtt": (
        "test",
        {
            "test_videodatainfo.json": {
                "videos": [{"video_id": "v", "split": "test"}],
                "sentences": [{"video_id": "v", "caption": "c"}],
            }
        },
    ),
    "vatex": ("val", {"vatex_validation_v1.0.json": [{"videoID": "v", "enCap": ["a", "b"]}]}),
}
OTHER = st.sampled_from(
    [None, True, 0, -1, 1.5, float("nan"), float("inf"), "", "x", [], [1], ["a"], {}, [{}]]
)


def damage(value: Any, data: st.DataObject) -> Any:
    """Put something else in the place of one part of a value, or leave a field out."""
    if not isinstance(value, dict | list) or not value or not data.draw(st.integers(0, 3)):
        return data.draw(OTHER)
    if isinstance(value, list):
        place = data.draw(st.integers(0, len(value) - 1))
        return [*value[:place], damage(value[place], data), *value[place + 1 :]]
    name = data.draw(st.sampled_from(list(value)))
    rest = {key: part for key, part in value.items() if key != name}
    return rest if not data.draw(st.integers(0, 4)) else {**rest, name: damage(value[name], data)}


def read(name: str, folder: Path, files: dict[str, Any]) -> list[Any]:
    for file, value in files.items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(json.dumps(value), encoding="utf-8")
    return list(find_benchmark(name).read(folder, FILES[name][0], name == "tvqa"))


@pytest.mark.parametrize("name", FILES)
def test_the_records_are_good_as_they_stand(tmp_path, name):
    assert len(read(name, tmp_path, FILES[name][1])) == 1


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_damage_is_read_or_told(tmp_path_factory, name, data):
    files = FILES[name][1]
    wrong = data.draw(st.sampled_from(list(files)))
    folder = tmp_path_factory.mktemp("damaged")
    with contextlib.suppress(DataError):  # any other error fails the test
        read(name, folder, {**files, wrong: damage(files[wrong], data)})
