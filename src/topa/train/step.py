"""The model as DDP, FSDP2 and the compiler wrap it, and its weights as checkpoints hold them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from topa.data.collate import Batch
from topa.model.config import TopaConfig
from topa.model.topa import TopaForConditionalGeneration


class StepModel(nn.Module):
    """A TOPA model whose forward gives the log-probabilities of the labels of a batch.

    Wrappers of parallel training act on calls of `forward` alone: calling another method of a
    wrapped model would leave gradients unreduced and shards ungathered.

    Args:
        topa: The model.
        recompute: Keep only the inputs of the LLM's layers and compute the rest again in the
            backward pass (activation checkpointing).
    """

    def __init__(self, topa: TopaForConditionalGeneration, *, recompute: bool = False):
        super().__init__()
        self.topa, self.recompute = topa, recompute
        if recompute:
            topa.language_model.activation_checkpointing_enable({"use_reentrant": False})

    def forward(self, **inputs: Tensor) -> Tensor:
        """Return [N] log-probabilities; the arguments are the tensors of a `Batch`."""
        return self.topa.target_log_probs(Batch(**inputs))

    def target_log_probs(self, batch: Batch) -> Tensor:
        """Do the same for a batch; so this can be scored like a TOPA model."""
        return self(**batch.as_dict())

    def train(self, mode: bool = True) -> StepModel:
        """Set the mode; the layers of the LLM recompute only in training mode of their own."""
        super().train(mode)
        if mode and self.recompute:
            for module in self.topa.language_model.modules():
                if isinstance(module, GradientCheckpointingLayer):
                    module.training = True  # its parts stay as they are: no dropout
        return self

    @property
    def config(self) -> TopaConfig:
        """The configuration of the model."""
        return self.topa.config

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.topa.device


def whole_tensors(model: TopaForConditionalGeneration) -> Iterator[tuple[str, Tensor]]:
    """Yield what a checkpoint holds, shards put together; every process has to ask for all."""
    for name, tensor in model.saved_tensors():
        yield name, tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def fill_tensors(model: TopaForConditionalGeneration, found: dict[str, Tensor]) -> None:
    """Copy whole tensors into those of a model, each process its own shard."""
    with torch.no_grad():
        for name, tensor in model.saved_tensors():
            value = found[name]
            if isinstance(tensor, DTensor):
                value = value.to(tensor.device)
                value = distribute_tensor(value, tensor.device_mesh, tensor.placements)
            tensor.copy_(value)
