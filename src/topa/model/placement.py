"""Where the parts of an LLM compute that a device map has spread out."""

from __future__ import annotations

import torch
from torch import nn


def is_placed(llm: nn.Module) -> bool:
    """Whether a device map, or a quantised loading, has put the LLM where it is."""
    return getattr(llm, "hf_device_map", None) is not None


def device_of(module: nn.Module) -> torch.device:
    """Return where a module computes; offloaded weights wait elsewhere ("meta" for a disk)."""
    for part in module.modules():
        hook = getattr(part, "_hf_hook", None)
        for one in getattr(hook, "hooks", (hook,)):
            device = getattr(one, "execution_device", None)
            if device is not None:
                return torch.device(device)
    return next(module.parameters()).device
