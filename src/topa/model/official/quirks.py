"""What the authors' code does to an LLM, and a checkpoint of it therefore needs of one.

Three settings of `TopaConfig` hold it; all are off for checkpoints that topa trained itself.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from topa.errors import ConfigError

__all__ = ["count_slots", "fit_language"]


def fit_language(llm: PreTrainedModel, skipped_layers: int, rope_theta: float | None) -> None:
    """Change an LLM in place to what the authors' code makes of it.

    Args:
        llm: A decoder of the Llama layout.
        skipped_layers: So many lower layers are left out: the authors' code runs only those
            that carry an adapter.
        rope_theta: Base of the rotary positions, if not the LLM's own: the authors' code
            ignores that of params.json, so Llama 3 was trained with 10000 instead of 500000.

    Raises:
        ConfigError: The LLM has no more layers than are left out, or no rotary positions.
    """
    if skipped_layers:
        _skip_layers(llm, skipped_layers)
    if rope_theta is not None:
        _set_rope(llm, rope_theta)


def _skip_layers(llm: PreTrainedModel, count: int) -> None:
    decoder = llm.get_decoder()
    layers: nn.ModuleList = decoder.layers
    if count >= len(layers):
        raise ConfigError(
            f"skipped_layers is {count}, the LLM has {len(layers)} layers",
            where=type(llm).__name__,
            mend="Use the LLM that the checkpoint was trained on.",
        )
    decoder.layers = layers[count:]
    for module in decoder.layers.modules():
        if isinstance(getattr(module, "layer_idx", None), int):
            module.layer_idx -= count  # type: ignore[operator, assignment]
    for config in {id(part): part for part in (llm.config, decoder.config)}.values():
        config.num_hidden_layers = len(decoder.layers)
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[count:]


def _set_rope(llm: PreTrainedModel, theta: float) -> None:
    decoder = llm.get_decoder()
    rotary = getattr(decoder, "rotary_emb", None)
    config = decoder.config
    if rotary is None or not isinstance(getattr(config, "rope_parameters", None), dict):
        raise ConfigError(
            "rope_theta is given, but this LLM has no rotary positions to set it for",
            where=type(llm).__name__,
            mend="Use a Llama model.",
        )
    wanted = {"rope_type": "default", "rope_theta": float(theta)}
    config.rope_parameters = wanted
    llm.config.rope_parameters = dict(wanted)
    decoder.rotary_emb = type(rotary)(config=config).to(rotary.inv_freq.device)


def count_slots(counted: Tensor, slot_index: Tensor | None) -> Tensor:
    """Return which tokens count as positions: those that are seen, and every video slot.

    topa masks the slots of missing frames, and the text moves up. The authors' code always
    fills T slots, so a checkpoint of theirs expects the text that follows at its place.

    Args:
        counted: [B, K] 1 or True at tokens that are seen.
        slot_index: [B, P] slot number at each position of the prompt, -1 elsewhere; P <= K.
    """
    if slot_index is None:
        return counted
    slots = F.pad(slot_index >= 0, (0, counted.shape[1] - slot_index.shape[1]))
    return counted.bool() | slots
