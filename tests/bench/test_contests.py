"""The paper's own way gives what ours gives, on a tiny LLM and small sizes."""

from __future__ import annotations

import pytest
import torch

from topa.bench import model as contests
from topa.bench.model import Bench, contest_align, contest_caption, contest_choice
from topa.bench.storage import contest_features, contest_memory, contest_video


@pytest.fixture
def bench(make_tiny_llm, monkeypatch) -> Bench:
    monkeypatch.setattr(contests, "load_language", lambda name: make_tiny_llm())
    return Bench.load("tiny", count=12)


def assert_agree(contest):
    ours, reference = contest.ours(), contest.reference()
    contest.check(ours, reference)
    return ours


def test_choice(bench):
    scores = assert_agree(contest_choice(bench, 3))
    assert scores.shape == (3, 5)
    assert scores.std(1).min() > 1e-4  # letters do differ


def test_caption(bench):
    tokens = assert_agree(contest_caption(bench, 2, 6))
    assert [len(row) for row in tokens] == [6, 6]


def test_align(bench, tmp_path):
    contest = contest_align(bench, tmp_path, 6, 3)
    loss, gradients = assert_agree(contest)
    assert loss > 0
    assert gradients.norm() > 0
    with pytest.raises(AssertionError, match="gradients differ"):
        contest.check((loss, gradients), (loss, gradients * 1.01))


def test_memory():
    assert assert_agree(contest_memory(5000, 16, 4)).shape == (4, 16)


def test_features(tmp_path):
    assert assert_agree(contest_features(tmp_path, 20, 30, 8)).shape == (20, 10, 8)


def test_video(tmp_path):
    assert len(assert_agree(contest_video(tmp_path, 5, 4))) == 4
    assert torch.is_grad_enabled()


def test_memory_needs_no_room_for_scores():
    details = contest_memory(400_000, 32, 10).details()
    if details["extra_mb_reference"] is None:
        pytest.skip("the peak of resident memory is not known on this system")
    # The scores alone are 16 MB; some of it may be room that the process had already.
    assert details["extra_mb_reference"] > 8
    assert details["extra_mb_ours"] <= details["extra_mb_reference"] / 10
