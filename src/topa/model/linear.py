"""Linear layers as fast as a CPU reads their weights, for answering; training is not touched.

Three things slow an LLM down that writes and scores on a CPU: libraries take x W^T for a few rows
several times as long as reading W; each product repacks W for the processor's vector units; and
low-rank updates make three small products of one. `pack` keeps each weight once more, its update
added, in the layout that oneDNN multiplies from (benchmarks/few_rows.py).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import cache

import torch
from peft.tuners import lora
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

    def __init__(self, weight: Tensor, sources: Iterable[Tensor]):
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


class InferenceLinear(nn.Linear):
    """A linear layer that is fast without gradients, in float32 on a CPU.

    Values differ by rounding alone. Training, GPUs and other types are not touched.
    """

    packed: Packed | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Return input W^T + b; input is [..., in_features]."""
        if not _is_plain_inference(input):
            return super().forward(input)
        if self.packed is not None:
            if self.packed.is_current():
                return self.packed.multiply(input, self.bias)
            self.packed = None
        rows = input.numel() // self.in_features
        if not 0 < rows <= FEW_ROWS:
            return super().forward(input)
        # A single row is taken twice: that is faster than a matrix times a vector.
        states = input.reshape(rows, -1)
        if rows == 1:
            states = states.repeat(2, 1)
        found = (self.weight @ states.t())[:, :rows].t().reshape(*input.shape[:-1], -1)
        return found if self.bias is None else found + self.bias


class LowRankLinear(lora.Linear):  # type: ignore[misc]  # peft is not typed
    """A linear layer with a low-rank update, which is part of the weight once packed."""

    packed: Packed | None = None

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Return x (W + scale B A)^T + b; x is [..., in_features]."""
        if self.packed is not None and _is_plain_inference(x):
            if self.packed.is_current() and not (self.disable_adapters or self.merged):
                bias: Tensor | None = self.get_base_layer().bias  # type: ignore[assignment]
                return self.packed.multiply(x, bias)
            self.packed = None
        found: Tensor = super().forward(x, *args, **kwargs)
        return found

    def pack(self) -> None:
        """Keep the weight with its update in oneDNN's layout."""
        [name] = self.active_adapters
        weight: Tensor = self.get_base_layer().weight  # type: ignore[assignment]
        parts: list[Tensor] = [self.lora_A[name].weight, self.lora_B[name].weight]  # type: ignore[list-item]
        self.packed = Packed(weight + self.get_delta_weight(name), [weight, *parts])


def speed_inference(model: nn.Module) -> None:
    """Let every plain linear layer of an LLM be an `InferenceLinear`, with the weights it has."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = InferenceLinear


def speed_updates(model: nn.Module) -> None:
    """Let every linear layer with a low-rank update be a `LowRankLinear`, with its weights."""
    for module in model.modules():
        if type(module) is lora.Linear:
            module.__class__ = LowRankLinear


@torch.no_grad()
def pack(model: nn.Module) -> bool:
    """Keep the weights of an LLM once more as a CPU multiplies them fastest.

    Returns:
        Whether it was done: all weights are float32 on a CPU that can, and not too many.
    """
    updated = [module for module in model.modules() if type(module) is LowRankLinear]
    inside = {id(module.get_base_layer()) for module in updated}
    plain = [
        module
        for module in model.modules()
        if type(module) is InferenceLinear and id(module) not in inside
    ]
    weights: list[Tensor] = [module.weight for module in plain]
    weights += [module.get_base_layer().weight for module in updated]  # type: ignore[misc]
    fit = all(each.dtype == torch.float32 and each.device.type == "cpu" for each in weights)
    size = sum(each.numel() * each.element_size() for each in weights)
    if not fit or size > MOST_PACKED or not _can_pack():
        return False
    for module in updated:
        module.pack()
    for layer in plain:
        layer.packed = Packed(layer.weight, [layer.weight])
    return True


def unpack(model: nn.Module) -> None:
    """Forget what `pack` has kept."""
    for module in model.modules():
        if isinstance(module, InferenceLinear | LowRankLinear):
            module.packed = None


def _is_plain_inference(input: Tensor) -> bool:
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
