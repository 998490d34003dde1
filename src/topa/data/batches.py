"""Which samples go together: prompts of similar length, in an order fixed by (seed, epoch)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from topa.data.dataset import TideoDataset

_BATCHES_PER_CHUNK = 8


class LengthBatches(Sampler[list[int]]):
    """Batches of indices: shuffled, then sorted by prompt length within chunks of 8 batches.

    Args:
        dataset: The samples; its epoch is set along with that of the batches.
        batch_size: Samples per batch; the last batch of an epoch may be smaller.
        seed: Seed of the order.
    """

    def __init__(self, dataset: TideoDataset, batch_size: int, seed: int):
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.epoch = 0

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the order and of the dataset's draws."""
        self.epoch = epoch
        self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(len(self.dataset)).tolist()
        size = self.batch_size * _BATCHES_PER_CHUNK
        for start in range(0, len(order), size):
            chunk = order[start : start + size]
            chunk.sort(key=lambda i: self.dataset.length(i))
            batches = [
                chunk[i : i + self.batch_size] for i in range(0, len(chunk), self.batch_size)
            ]
            for i in rng.permutation(len(batches)):
                yield batches[i]
