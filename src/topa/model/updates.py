"""Linear layers with a low-rank update (arXiv 2106.09685), as fast as plain ones for answering."""

from __future__ import annotations

from peft.tuners import lora
from torch import Tensor, nn

from topa.linear import Packable


class LowRankLinear(lora.Linear, Packable):  # type: ignore[misc]  # peft is not typed
    """A linear layer with a low-rank update, which is part of the weight once packed."""

    def sources(self) -> list[Tensor]:
        """Return the weight W [out, in], A [rank, in] and B [out, rank]."""
        [name] = self.active_adapters
        parts = [self.get_base_layer(), self.lora_A[name], self.lora_B[name]]
        return [part.weight for part in parts]  # type: ignore[misc]

    def combine(self) -> Tensor:
        """Return W + scale B A, [out, in]."""
        [name] = self.active_adapters
        return self.sources()[0] + self.get_delta_weight(name)

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Return x (W + scale B A)^T + b; x is [..., in_features]."""
        packed = self.packed_for(x)
        if packed is not None and not (self.disable_adapters or self.merged):
            bias: Tensor | None = self.get_base_layer().bias  # type: ignore[assignment]
            return packed.multiply(x, bias)
        found: Tensor = super().forward(x, *args, **kwargs)
        return found


def speed_updates(model: nn.Module) -> None:
    """Let every linear layer with a low-rank update be a `LowRankLinear`, with its weights."""
    for module in model.modules():
        if type(module) is lora.Linear:
            module.__class__ = LowRankLinear
