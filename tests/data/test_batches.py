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
