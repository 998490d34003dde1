"""Overlong prompts lose frames or are left out; their text stays whole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topa.data.lengths import fit_prompt
from topa.data.templates import Prompt, Segment


def make_prompt(text: int, frames: int, per_frame: int, label: int) -> Prompt:
    slots = frames * per_frame
    root = Segment((1,) * text + (0,) * slots, -1, (-1,) * text + tuple(range(slots)))
    return Prompt([root, Segment((2,) * label, 0, (-1,) * label, is_label=True)])


@given(
    st.integers(1, 30),
    st.integers(1, 12),
    st.integers(1, 4),
    st.integers(1, 30),
    st.integers(1, 90),
)
def test_what_is_cut_is_video_and_no_more_than_needed(text, frames, per_frame, label, most):
    prompt = make_prompt(text, frames, per_frame, label)
    fitted, kept = fit_prompt(prompt, most, frames, per_frame, "cut")
    if len(prompt) <= most:
        assert fitted is prompt
        assert kept == frames
    elif text + label + per_frame > most:
        assert (fitted, kept) == (None, 0)
    else:
        assert fitted is not None
        assert len(fitted) <= most < len(fitted) + per_frame
        assert fitted.segments[0].slots == (-1,) * text + tuple(range(kept * per_frame))
        assert fitted.segments[1:] == prompt.segments[1:]
        assert len(fitted.segments[0].ids) == text + kept * per_frame


@pytest.mark.parametrize(("most", "left"), [(19, False), (18, True)])
def test_dropping_takes_all_or_nothing(most, left):
    prompt = make_prompt(5, 10, 1, 4)
    fitted, _ = fit_prompt(prompt, most, 10, 1, "drop")
    assert (fitted is None) == left


def test_without_a_limit_nothing_changes():
    prompt = make_prompt(5, 10, 2, 400)
    assert fit_prompt(prompt, None, 10, 2, "drop") == (prompt, 10)
