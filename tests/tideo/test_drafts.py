"""Whatever a model writes: a Tideo that fits, or a DraftError, and never anything else."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from endpoint import make_draft
from hypothesis import given, settings
from hypothesis import strategies as st

from topa.tideo.drafts import DraftError, draft_schema, finish_tideo, parse_draft
from topa.tideo.schema import Tideo
from topa.tideo.seeds import Seed

SEED = Seed("howto", "to make a kite")
GOOD = json.dumps(make_draft("to make a kite"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "frames",
                    "caption",
                    "qas",
                    "objects",
                    "question",
                    "right",
                    "wrong",
                    "options",
                    "answer",
                    "kind",
                    "open_answer",
                    "x",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=25,
)


def finish(draft: object, key: str = "0123456789abcdef") -> tuple[Tideo, list[str]]:
    return finish_tideo(parse_draft(json.dumps(draft)), seed=SEED, key=key)


def read_any(text: str) -> None:
    try:
        tideo, _ = finish_tideo(parse_draft(text), seed=SEED, key="k")
    except DraftError:
        return  # any other error would fail the test
    assert Tideo.model_validate(tideo.model_dump()) == tideo


@given(st.text(max_size=300))
@settings(max_examples=150, deadline=None)
def test_any_text_is_a_tideo_or_a_draft_error(text):
    read_any(text)


@given(JSON)
@settings(max_examples=200, deadline=None)
def test_any_json_is_a_tideo_or_a_draft_error(value):
    read_any(json.dumps(value))


@given(st.integers(0, len(GOOD)), st.integers(0, 40), st.text(max_size=6))
@settings(max_examples=200, deadline=None)
def test_any_damage_to_a_good_reply_is_a_tideo_or_a_draft_error(start, length, insert):
    read_any(GOOD[:start] + insert + GOOD[start + length :])


@given(st.integers(0, len(GOOD)))
@settings(max_examples=100, deadline=None)
def test_any_cut_is_a_tideo_or_a_draft_error(end):
    read_any(GOOD[:end])


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "{" * 5000, "", "null", "[]"])
def test_deep_and_empty_replies_are_draft_errors(text):
    with pytest.raises(DraftError):
        parse_draft(text)


@pytest.mark.parametrize(
    "wrap",
    [
        "```json\n{}\n```",
        "Here it is:\n{}\nEnjoy!",
        "<think>hm</think>{}",
        "[{}]",
        '{{"tideo": {}}}',
    ],
)
def test_usual_wrappings_are_taken_off(wrap):
    text = (
        wrap.replace("{{", "{").replace("}}", "}").replace("{}", GOOD, 1)
        if "tideo" in wrap
        else (wrap.replace("{}", GOOD))
    )
    tideo, notes = finish_tideo(parse_draft(text), seed=SEED, key="k")
    assert (len(tideo.frames), len(tideo.qas), notes) == (6, 4, [])


def test_trailing_commas_and_a_lost_end_are_mended():
    text = GOOD.replace('"}]}', '"},]}')[:-3]
    tideo, _ = finish_tideo(parse_draft(text), seed=SEED, key="k")
    assert len(tideo.qas) >= 3


def test_the_right_option_lies_everywhere_equally_often():
    draft = make_draft("a")
    places = Counter(
        question.answer for i in range(300) for question in finish(draft, f"key {i}")[0].qas
    )
    # 1,200 questions, 240 a place, standard deviation 14.
    assert set(places) == {0, 1, 2, 3, 4}
    assert all(180 < count < 300 for count in places.values())


def test_the_same_key_gives_the_same_tideo():
    assert finish(make_draft("a")) == finish(make_draft("a"))


def test_the_right_answer_stays_right():
    draft = make_draft("a")
    for item, written in zip(finish(draft)[0].qas, draft["qas"], strict=True):
        assert item.options[item.answer] == written["right"]
        assert sorted(item.options) == sorted([written["right"], *written["wrong"]])


@pytest.mark.parametrize("last", ["All of the above", "None of these", "Both of them", "A and C"])
def test_options_that_speak_of_others_come_last(last):
    draft = make_draft("a")
    draft["qas"][0] |= {"right": last, "wrong": ["one", "two", "three", "four"]}
    if last == "Both of them":
        draft["qas"][0]["right"] = "Both of these"
    (first, *_) = finish(draft)[0].qas
    assert first.options[-1] == draft["qas"][0]["right"]
    assert first.answer == 4


def test_the_right_option_before_one_that_speaks_of_others_lies_everywhere():
    """The order of such options is never drawn again, so that a habit would be learned."""
    draft = make_draft("a")
    draft["qas"][0] |= {"right": "one", "wrong": ["two", "three", "four", "None of these"]}
    found = [finish(draft, f"{i}")[0].qas[0] for i in range(40)]
    assert {question.options[-1] for question in found} == {"None of these"}
    assert {question.answer for question in found} == {0, 1, 2, 3}


def test_words_within_words_do_not_keep_options_in_place():
    draft = make_draft("a")
    draft["qas"][0] |= {"right": "a ball", "wrong": ["a hand", "a wall", "a gown", "a nonet"]}
    assert {finish(draft, f"{i}")[0].qas[0].answer for i in range(40)} == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(("answer", "place"), [("B", 1), ("(b)", 1), ("two", 1), (1, 1), ("E.", 4)])
def test_options_with_a_letter_a_number_or_a_text_are_read(answer, place):
    draft = make_draft("a")
    options = ["one", "two", "three", "four", "five"]
    draft["qas"][0] = {"question": "Which?", "options": options, "answer": answer}
    (first, *_) = finish(draft)[0].qas
    assert first.options[first.answer] == options[place]


@pytest.mark.parametrize(
    "change",
    [
        {"right": "same", "wrong": ["Same", "b", "c", "d"]},
        {"right": ""},
        {"wrong": []},
        {"kind": "funny"},
        {"question": None},
    ],
)
def test_a_wrong_question_is_left_out_and_named(change):
    draft = make_draft("a")
    draft["qas"][1] |= change
    tideo, notes = finish(draft)
    assert len(tideo.qas) == 3
    assert len(notes) == 1
    assert "qas.1" in notes[0]
    draft["qas"][2] |= change
    with pytest.raises(DraftError, match="2 good questions, 3 needed"):
        finish(draft)


def test_too_few_frames_are_told_by_field():
    draft = make_draft("a")
    draft["frames"] = draft["frames"][:3]
    with pytest.raises(DraftError, match="frames"):
        finish(draft)


def test_the_schema_is_flat_and_strict():
    schema = draft_schema()
    text = json.dumps(schema)
    assert "$ref" not in text
    assert "allOf" not in text

    def check(part: dict) -> None:
        if part["type"] == "object":
            assert part["required"] == list(part["properties"])
            assert part["additionalProperties"] is False
            for inner in part["properties"].values():
                check(inner)
        elif part["type"] == "array":
            check(part["items"])

    check(schema)
