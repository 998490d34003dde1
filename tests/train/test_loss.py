"""The losses against torch's own on hand-made numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from topa.data.collate import Batch
from topa.train.loss import compute_losses

NOBODY = torch.tensor([False])


def batch_of(spans, rows=None, answers=()):
    """Make the targets of a batch.

    Args:
        spans: For each labelled span: number of its tokens and its question, -1 for none.
        rows: Prompt of each span; all of one by default.
        answers: Right span of each question.
    """
    lengths = [length for length, _ in spans]
    rows = rows or [0] * len(spans)
    empty = torch.zeros(0)
    numbers = [i for i, length in enumerate(lengths) for _ in range(length)]
    return Batch(
        input_ids=empty,
        slot_index=empty,
        segment_ids=empty,
        visible_segments=empty,
        features=empty,
        frame_mask=empty,
        target_rows=torch.tensor([rows[i] for i in numbers], dtype=torch.long),
        target_sources=empty,
        target_ids=empty,
        target_spans=torch.tensor(numbers, dtype=torch.long),
        span_groups=torch.tensor([group for _, group in spans], dtype=torch.long),
        group_answers=torch.tensor(answers, dtype=torch.long),
    )


def test_label_tokens_are_summed_and_counted():
    batch = batch_of([(2, -1), (3, -1)], rows=[0, 1])
    log_probs = torch.tensor([-1.0, -2.0, -0.5, -0.25, -4.0])
    losses = compute_losses(log_probs, batch, torch.tensor([False, False]))
    assert float(losses.nll) == 7.75
    assert int(losses.tokens) == 5
    assert float(losses.contrast) == int(losses.questions) == int(losses.seen) == 0


@pytest.mark.parametrize("sharpness", [1.0, 2.5, 200.0])
def test_contrast_is_cross_entropy_of_mean_likelihoods(sharpness):
    # Question 0: options of 1, 2 and 3 tokens, the second right; question 1: 2 options.
    batch = batch_of([(1, 0), (2, 0), (3, 0), (1, 1), (1, 1)], answers=[1, 3])
    log_probs = torch.tensor([-3.0, -1.0, -2.0, -4.0, -5.0, -0.6, -2.0, -1.0])
    losses = compute_losses(log_probs, batch, NOBODY, sharpness)
    first = sharpness * torch.tensor([[-3.0, -1.5, -3.2]])
    second = sharpness * torch.tensor([[-2.0, -1.0]])
    wanted = functional.cross_entropy(first, torch.tensor([1])) + functional.cross_entropy(
        second, torch.tensor([0])
    )
    torch.testing.assert_close(losses.contrast, wanted)
    assert int(losses.questions) == int(losses.seen) == 2
    assert int(losses.right) == 1
    assert int(losses.tokens) == 0
    assert float(losses.nll) == 0


def test_labels_and_options_of_one_batch_do_not_mix():
    batch = batch_of([(2, -1), (1, 0), (1, 0), (1, -1)], rows=[0, 1, 1, 1], answers=[2])
    log_probs = torch.tensor([-1.0, -2.0, -0.7, -0.2, -30.0])
    losses = compute_losses(log_probs, batch, torch.tensor([False, False]))
    assert float(losses.nll) == 33.0
    assert int(losses.tokens) == 3
    wanted = functional.cross_entropy(torch.tensor([[-0.7, -0.2]]), torch.tensor([1]))
    torch.testing.assert_close(losses.contrast, wanted)


def test_a_blind_question_costs_nothing_where_no_option_is_preferred():
    batch = batch_of([(2, 0), (1, 0), (1, 0)], answers=[0])
    log_probs = torch.tensor([-1.0, -3.0, -2.0, -2.0])
    losses = compute_losses(log_probs, batch, torch.tensor([True]))
    torch.testing.assert_close(losses.contrast, torch.tensor(0.0), rtol=0, atol=1e-6)
    assert int(losses.questions) == 1
    assert int(losses.seen) == int(losses.right) == 0


def test_a_blind_question_costs_its_distance_from_the_uniform_distribution():
    batch = batch_of([(1, 0), (1, 0)], rows=[1, 1], answers=[0])
    log_probs = torch.tensor([-1.0, -3.0])
    losses = compute_losses(log_probs, batch, torch.tensor([False, True]))
    p = torch.tensor([-1.0, -3.0]).softmax(0)
    wanted = sum(0.5 * math.log(0.5 / float(q)) for q in p)  # KL(uniform || p)
    assert float(losses.contrast) == pytest.approx(wanted, abs=1e-6)


def test_the_blind_loss_does_not_know_the_answer():
    batch = [batch_of([(1, 0), (1, 0)], answers=[right]) for right in (0, 1)]
    log_probs, blind = torch.tensor([-1.0, -3.0]), torch.tensor([True])
    first, second = (compute_losses(log_probs, item, blind).contrast for item in batch)
    assert first == second


def test_likelihoods_far_apart_keep_finite_losses_and_gradients():
    """Their exponentials vanish or overflow in 32 bits."""
    batch = batch_of([(1, 0), (1, 0), (1, -1)], answers=[0])
    log_probs = torch.tensor([-900.0, -700.0, -1.0], requires_grad=True)
    losses = compute_losses(log_probs, batch, NOBODY)
    (losses.contrast + losses.nll).backward()
    assert float(losses.contrast.detach()) == 200.0
    assert log_probs.grad.tolist() == [-1.0, 1.0, -1.0]


def test_gradients_are_those_of_cross_entropy():
    batch = batch_of([(1, 0), (2, 0), (1, -1)], answers=[1])
    log_probs = torch.tensor([-0.5, -1.0, -2.0, -0.1], requires_grad=True)
    compute_losses(log_probs, batch, NOBODY, sharpness=2.0).contrast.backward()
    found = log_probs.grad.clone()
    other = log_probs.detach().clone().requires_grad_()
    scores = 2.0 * torch.stack([other[0], other[1:3].mean()])
    functional.cross_entropy(scores[None], torch.tensor([1])).backward()
    torch.testing.assert_close(found, other.grad)
