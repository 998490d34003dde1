"""Batches of similar length: every sample once per epoch, in an order fixed by (seed, epoch)."""

from __future__ import annotations

import pytest

from topa.data.batches import LengthBatches
from topa.data.dataset import TideoDataset
from topa.data.templates import PromptBuilder


@pytest.fixture
def dataset(tideos, features, tokenizer) -> TideoDataset:
    tasks = {"choice": 1.0, "caption": 1.0, "contrast": 1.0}
    return TideoDataset(tideos, features, PromptBuilder(tokenizer, 4), num_frames=4, tasks=tasks)


@pytest.mark.parametrize("size", [1, 2, 5, 12, 20])
def test_every_sample_comes_once(size, dataset):
    batches = list(LengthBatches(dataset, size, 0))
    assert sorted(i for batch in batches for i in batch) == list(range(12))
    assert len(batches) == len(LengthBatches(dataset, size, 0)) == -(-12 // size)
    assert all(len(batch) <= size for batch in batches)


def test_the_order_is_fixed_by_seed_and_epoch(dataset):
    def order(seed, epoch):
        batches = LengthBatches(dataset, 2, seed)
        batches.set_epoch(epoch)
        return list(batches)

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(1, 1)


def test_the_dataset_moves_to_the_same_epoch(dataset):
    LengthBatches(dataset, 2, 0).set_epoch(7)
    assert dataset.epoch == 7


def test_samples_of_a_batch_are_neighbours_in_length(dataset):
    """12 samples of batches of 2 are within one chunk: batches partition the sorted lengths."""
    batches = list(LengthBatches(dataset, 2, 0))
    spans = sorted(sorted(dataset.length(i) for i in batch) for batch in batches)
    assert [n for span in spans for n in span] == sorted(dataset.length(i) for i in range(12))


def test_batches_do_not_come_in_the_order_of_length(dataset):
    batches = list(LengthBatches(dataset, 2, 0))
    lengths = [dataset.length(batch[0]) for batch in batches]
    assert lengths != sorted(lengths)


# Several processes -------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "processes"), [(2, 2), (1, 3), (3, 4), (1, 12)])
def test_processes_share_the_batches_of_one(size, processes, dataset):
    together = list(LengthBatches(dataset, size * processes, 3))
    parts = [
        list(LengthBatches(dataset, size, 3, processes=processes, rank=rank))
        for rank in range(processes)
    ]
    assert {len(part) for part in parts} == {len(together)}
    for step, batch in enumerate(together):
        shared = [index for part in parts for index in part[step]]
        assert sorted(index for index in shared if index >= 0) == sorted(batch)
        assert all(len(part[step]) in range(1, size + 1) for part in parts)


def test_a_process_without_a_sample_takes_one_that_counts_as_nothing(dataset):
    """12 samples, 5 processes: in one of three steps only two of them have one."""
    ranks = [list(LengthBatches(dataset, 1, 0, processes=5, rank=rank)) for rank in range(5)]
    fillers = [index for batches in ranks for (index,) in batches if index < 0]
    assert len(fillers) == 3
    assert sorted(i for batches in ranks for (i,) in batches if i >= 0) == list(range(12))
    sample = dataset[fillers[0]]
    assert not any(segment.is_label for segment in sample.prompt.segments)
    assert sample.features.shape == (1, 8)


def test_samples_that_are_too_long_are_counted_and_left_out(tideos, features, tokenizer):
    def make(most):
        return TideoDataset(
            tideos,
            features,
            PromptBuilder(tokenizer, 4),
            num_frames=4,
            tasks={"caption": 1.0},
            max_length=most,
            overlong="drop",
        )

    whole = make(None)
    lengths = sorted(whole.length(i) for i in range(12))
    short = make(lengths[6])
    expected = [i for i in range(12) if whole.length(i) <= lengths[6]]
    batches = LengthBatches(short, 2, 0)
    found = [index for batch in batches for index in batch]
    assert sorted(index for index in found if index >= 0) == expected
    assert batches.left_out == 12 - len(expected) > 0
    assert len(list(batches)) == len(batches) == 6
