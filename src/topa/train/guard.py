"""A loss that is not a number stops the run, and its batch is kept."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from topa.errors import TopaError
from topa.runs import atomic_path


class LossGuard:
    """Looks at every loss without making the step wait for it.

    On a CPU a loss is looked at as soon as it is there. On a GPU it is looked at when that of
    the next micro-batch has been put into the queue, and before anything is saved: looking at
    once would leave the GPU idle.

    Args:
        path: Where the batch of such a loss is kept.
    """

    def __init__(self, path: Path):
        self.path = path
        self.pending: tuple[Tensor, dict[str, Tensor], int] | None = None

    def watch(self, loss: Tensor, inputs: dict[str, Tensor], step: int) -> None:
        """Look at the loss of a micro-batch, or at the one before it.

        Raises:
            TopaError: That loss is not finite.
        """
        before, self.pending = self.pending, (loss.detach(), inputs, step)
        if loss.device.type == "cpu":
            self.flush()
        elif before is not None:
            self._check(*before)

    def flush(self) -> None:
        """Look at what has not been looked at.

        Raises:
            TopaError: That loss is not finite.
        """
        pending, self.pending = self.pending, None
        if pending is not None:
            self._check(*pending)

    def _check(self, loss: Tensor, inputs: dict[str, Tensor], step: int) -> None:
        if bool(loss.isfinite()):
            return
        with atomic_path(self.path) as temporary:
            torch.save({name: tensor.cpu() for name, tensor in inputs.items()}, temporary)
        raise TopaError(
            f"the loss is {float(loss)} at step {step}",
            where=self.path,
            mend="The batch is saved there; lower the learning rate or check the features.",
        )
