"""Ways of choosing among options; the end-to-end properties are in tests/test_answer.py."""

from __future__ import annotations

import pytest
import torch

from topa.model.methods import combine, score_similarity


class PlaneEncoder:
    """Encodes the words of three questions and options as known directions of a plane."""

    dim = 2
    fingerprint = "plane"

    def encode_text(self, texts, *, progress=None):
        directions = {"q right": [1.0, 0.0], "q left": [-1.0, 0.0], "q up": [0.0, 1.0]}
        return torch.tensor([directions[text] for text in texts])


def test_similarity_takes_the_frame_nearest_to_question_and_option():
    frames = torch.tensor([[0.6, 0.8], [0.0, -1.0]])
    scores = score_similarity(PlaneEncoder(), [[("q", ["right", "left", "up"])]], [frames])
    # Cosines with the two frames: right 0.6 and 0; left -0.6 and 0; up 0.8 and -1.
    assert scores[0][0].tolist() == pytest.approx([0.6, 0.0, 0.8])


def test_combining_weighs_both_kinds_alike_whatever_their_scale():
    first = [[torch.tensor([1.0, 3.0])]]
    second = [[torch.tensor([2000.0, 0.0])]]
    # Standardised: (-1, 1) and (1, -1), which cancel.
    assert combine(first, second)[0][0].tolist() == pytest.approx([0.0, 0.0])


def test_scores_that_are_all_equal_have_no_say():
    combined = combine([[torch.tensor([5.0, 5.0, 5.0])]], [[torch.tensor([0.0, 0.0, 3.0])]])
    assert combined[0][0].isfinite().all()
    assert int(combined[0][0].argmax()) == 2
