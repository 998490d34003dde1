"""Linear layers as fast as a CPU reads their weights, for answering; training is not touched.

Two things slow a network down on a CPU: libraries take x W^T for a few rows several times as long
as reading W, and each product lays W out anew for the processor's vector units. `pack` keeps each
weight once more in the layout that oneDNN multiplies from (benchmarks/few_rows.py).
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn

# Up to so many rows the transposed product is the faster one where nothing is packed.
FEW_ROWS = 4
# Packed weights come beside the plain ones: no more than so many bytes of them.
MOST_PACKED = 2 * 2**30

_log = logging.getLogger(__name__)


class Packed:
    """A weight in oneDNN's layout, and what it was made of.

    Args:
        weight: float32 [out, in].
        sources: Tensors that it depends on.
    """

    def __init__(self, weight: Tensor, sources: Sequence[Tensor]):
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
        self._sources = [(source, *_state(source)) for source in sources]

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """A copy of the layer, or a pickle, comes without: oneDNN's layout is this process's."""
        return type(None), ()

    def is_current(self) -> bool:
        """Return whether nothing that it was made of has changed."""
        return all(_state(source) == (place, version) for source, place, version in self._sources)

    def multiply(self, input: Tensor, bias: Tensor | None) -> Tensor:
        """Return input W^T + b; input is [..., in]."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            input, self._weight, bias, "none", [], ""
        )
        return product


class Packable(nn.Module):
    """A layer whose weight can be packed."""

    packed: Packed | None = None

    @abstractmethod
    def sources(self) -> list[Tensor]:
        """Return the weight [out, in], and what else the packed one is made of."""

    def combine(self) -> Tensor:
        """Return the weight [out, in] that is to be packed."""
        return self.sources()[0]

    def packed_for(self, input: Tensor) -> Packed | None:
        """Return the packed weight if it is there, in time, and right for an input."""
        if self.packed is None or not is_plain_inference(input):
            return None
        if not self.packed.is_current():
            self.packed = None
        return self.packed


class InferenceLinear(nn.Linear, Packable):
    """A linear layer that is fast without gradients, in float32 on a CPU.

    Values differ by rounding alone. Training, GPUs and other types are not touched.
    """

    def sources(self) -> list[Tensor]:
        """Return the weight [out, in]."""
        return [self.weight]

    def forward(self, input: Tensor) -> Tensor:
        """Return input W^T + b; input is [..., in_features]."""
        packed = self.packed_for(input)
        if packed is not None:
            return packed.multiply(input, self.bias)
        rows = input.numel() // self.in_features
        if not 0 < rows <= FEW_ROWS or not is_plain_inference(input):
            return super().forward(input)
        # A single row is taken twice: that is faster than a matrix times a vector.
        states = input.reshape(rows, -1)
        if rows == 1:
            states = states.repeat(2, 1)
        found = (self.weight @ states.t())[:, :rows].t().reshape(*input.shape[:-1], -1)
        return found if self.bias is None else found + self.bias


def speed_inference(model: nn.Module) -> None:
    """Let every plain linear layer of a network be an `InferenceLinear`, with its weights."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = InferenceLinear


@torch.no_grad()
def pack(model: nn.Module) -> bool:
    """Keep the weights of a network once more as a CPU multiplies them fastest.

    Returns:
        Whether it was done: all weights are float32 on a CPU that can, and not too many.
    """
    layers = [module for module in model.modules() if isinstance(module, Packable)]
    inside = {id(part) for layer in layers for part in layer.modules() if part is not layer}
    layers = [layer for layer in layers if id(layer) not in inside]
    weights = [layer.sources()[0] for layer in layers]
    fit = all(each.dtype == torch.float32 and each.device.type == "cpu" for each in weights)
    size = sum(each.numel() * each.element_size() for each in weights)
    if not fit or size > MOST_PACKED or not _can_pack():
        return False
    for layer in layers:
        layer.packed = Packed(layer.combine(), layer.sources())
    return True


def unpack(model: nn.Module) -> None:
    """Forget what `pack` has kept."""
    for module in model.modules():
        if isinstance(module, Packable):
            module.packed = None


def is_plain_inference(input: Tensor) -> bool:
    """Return whether no gradient and no other type than float32 on a CPU is asked for."""
    return (
        not torch.is_grad_enabled()
        and input.dtype == torch.float32
        and input.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
    )


def _state(tensor: Tensor) -> tuple[int, int]:
    """Return what changes when a tensor is written to or lies elsewhere."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


@cache
def _can_pack() -> bool:
    """Return whether this PyTorch multiplies packed weights, and rightly."""
    weight, x = torch.linspace(-1, 1, 48 * 32).view(48, 32), torch.linspace(-1, 1, 64).view(2, 32)
    try:
        found = Packed(weight, []).multiply(x, None)
    except (AttributeError, RuntimeError) as error:
        _log.info("weights are not packed: %s", str(error).splitlines()[0])
        return False
    right = torch.allclose(found, x @ weight.t(), rtol=1e-4, atol=1e-4)
    if not right:
        _log.warning("weights are not packed: oneDNN multiplies them wrongly here")
    return right
