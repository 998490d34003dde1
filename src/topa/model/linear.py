"""Products of a weight with very few rows, which is what writing a token on a CPU consists of."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Up to so many rows the transposed product is the faster one (benchmarks/few_rows.py).
FEW_ROWS = 4


class FewRowsLinear(nn.Linear):
    """A linear layer that multiplies few rows the other way round on a CPU.

    Libraries take W x^T for up to four columns at nearly the speed at which W is read, and x W^T
    several times slower. A single row is taken twice: that is faster than a matrix times a
    vector. Values differ by rounding alone. Training, GPUs and other types are not touched.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return input W^T + b; input is [..., in_features]."""
        rows = input.numel() // self.in_features
        few = 0 < rows <= FEW_ROWS and input.dtype == torch.float32
        if not few or input.device.type != "cpu" or torch.is_grad_enabled():
            return super().forward(input)
        states = input.reshape(rows, -1)
        if rows == 1:
            states = states.repeat(2, 1)
        found = (self.weight @ states.t())[:, :rows].t().reshape(*input.shape[:-1], -1)
        return found if self.bias is None else found + self.bias


def speed_few_rows(model: nn.Module) -> None:
    """Let every plain linear layer of an LLM be a `FewRowsLinear`, with the weights it has."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = FewRowsLinear
