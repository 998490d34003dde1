"""Which samples go together: prompts of similar length, in an order fixed by (seed, epoch)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from torch.utils.data import Sampler

_BATCHES_PER_CHUNK = 8


class Lengths(Protocol):
    """Samples that know how long they are."""

    def __len__(self) -> int: ...

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the draws."""
        ...

    def length(self, index: int) -> int:
        """Return the number of tokens of a sample, 0 where it is left out."""
        ...


def filler(index: int) -> int:
    """Return what stands in a batch for a sample that counts as nothing.

    A process that has no sample left where others still have one takes a step all the same:
    gradients are averaged over all of them.
    """
    return -1 - index


class LengthBatches(Sampler[list[int]]):
    """Batches of indices: shuffled, then sorted by prompt length within chunks of 8 batches.

    Every batch is that of all processes together, and each takes every n-th sample of it. So
    the samples of a step are the same for any number of processes with the same product of
    processes and batch size, none comes twice, and neighbours in length are spread evenly.

    Args:
        dataset: The samples; its epoch is set along with that of the batches.
        batch_size: Samples per batch of one process; the last of an epoch may be smaller.
        seed: Seed of the order.
        processes: How many processes share the batches.
        rank: Which of them this is.

    Attributes:
        left_out: Samples of this epoch that were too long, so far.
    """

    def __init__(
        self, dataset: Lengths, batch_size: int, seed: int, *, processes: int = 1, rank: int = 0
    ):
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.processes, self.rank = processes, rank
        self.epoch = self.left_out = 0

    def __len__(self) -> int:
        return -(-len(self.dataset) // (self.batch_size * self.processes))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the order and of the dataset's draws."""
        self.epoch = epoch
        self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(len(self.dataset)).tolist()
        together = self.batch_size * self.processes
        size = together * _BATCHES_PER_CHUNK
        self.left_out = 0
        for start in range(0, len(order), size):
            drawn = order[start : start + size]
            lengths = {i: self.dataset.length(i) for i in drawn}
            chunk = sorted((i for i in drawn if lengths[i]), key=lengths.__getitem__)
            self.left_out += len(drawn) - len(chunk)
            # As many batches as there would be, were none left out: len() must hold.
            firsts = range(0, len(drawn), together)
            batches = [chunk[first : first + together] for first in firsts]
            for i in rng.permutation(len(batches)):
                yield batches[i][self.rank :: self.processes] or [filler(drawn[0])]
