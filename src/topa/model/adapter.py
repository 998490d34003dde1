"""The paper's adapter, in the attention function of any decoder with k_proj and v_proj.

    out = softmax(q k^T / sqrt(d) + causal + B) v + tanh(g1) softmax(q k_A^T / sqrt(d)) v_A

k_A and v_A are the layer's own key and value projections of its learned prompts, without
rotary positions; B adds g2 (per head) where the query lies after the last video slot and
the key is a video slot (paper section 3.3; LLaMA-Adapter, arXiv 2303.16199).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from topa.errors import ConfigError

ATTENTION = "topa"


@dataclass
class VideoSpan:
    """Where the video lies, for the attention bias.

    Attributes:
        slot_keys: [B, P] True where the key is a video slot; keys past P are none.
        after: [B, Q] True where the query lies after the last video slot.
    """

    slot_keys: Tensor
    after: Tensor


class AdapterLayer(nn.Module):
    """Learned prompts and per-head gates of one attention layer.

    Args:
        length: Number of prompts.
        hidden_size: D of the LLM.
        num_heads: Query heads.
        bias: g2 starts at -bias.
    """

    def __init__(self, length: int, hidden_size: int, num_heads: int, bias: float):
        super().__init__()
        self.prompt = nn.Parameter(torch.empty(length, hidden_size).normal_())
        self.gate = nn.Parameter(torch.zeros(num_heads))
        self.video_bias = nn.Parameter(torch.full((num_heads,), -bias))


def attention_modules(llm: PreTrainedModel) -> list[nn.Module]:
    """Return the attention modules of a decoder, in layer order.

    Raises:
        ConfigError: The architecture has no attention with q_proj, k_proj and v_proj.
    """
    found = [
        module
        for module in llm.modules()
        if all(hasattr(module, name) for name in ("q_proj", "k_proj", "v_proj", "layer_idx"))
    ]
    if not found:
        names = sorted(
            {type(m).__name__ for m in llm.modules() if "attention" in type(m).__name__.lower()}
        )
        raise ConfigError(
            f"no attention with q_proj, k_proj and v_proj (found: {', '.join(names) or 'none'})",
            where=type(llm).__name__,
            mend='Use variant "lora" or "projector", or an LLM of the Llama family of layouts.',
        )
    return sorted(found, key=lambda module: int(module.layer_idx))  # type: ignore[arg-type]


def add_adapter(llm: PreTrainedModel, length: int, layers: int | None, bias: float) -> None:
    """Give the top `layers` attention modules (all if None) an `AdapterLayer`.

    Raises:
        ConfigError: The LLM has fewer layers, or an unsuitable attention.
    """
    modules = attention_modules(llm)
    count = len(modules) if layers is None else layers
    if count > len(modules):
        raise ConfigError(
            f"adapter_layers is {count}, the LLM has {len(modules)} layers",
            mend="Lower model.adapter_layers.",
        )
    config = llm.config
    for module in modules[len(modules) - count :]:
        device = next(module.parameters()).device
        layer = AdapterLayer(length, config.hidden_size, config.num_attention_heads, bias)
        # Trainables stay float32 whatever the LLM's type: small steps vanish in 16 bits.
        module.topa_adapter = layer.to(device)  # type: ignore[assignment]


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    dropout: float,
    softcap: float | None,
) -> Tensor:
    """Softmax attention with grouped heads: [B, H, Q, d] x [B, Hkv, K, d] -> [B, H, Q, d]."""
    # The CPU kernel's backward is several times slower than matrix products at these sizes.
    slow = query.device.type == "cpu" and torch.is_grad_enabled() and dropout == 0.0
    if softcap is None and (mask is None or not slow):
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None and query.shape[2] > 1,
            scale=scaling,
            dropout_p=dropout,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    if mask is None:
        mask = _causal_mask(query.shape[2], key.shape[2], query.device)
    groups = query.shape[1] // key.shape[1]
    batch, heads, length, width = query.shape
    grouped = query.reshape(batch, heads // groups, groups * length, width)
    scores = (grouped @ key.transpose(-1, -2)) * scaling
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    scores = scores.view(batch, heads, length, key.shape[2])
    if mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    else:
        scores = scores + mask
    weights = scores.softmax(-1).view(batch, heads // groups, groups * length, key.shape[2])
    weights = F.dropout(weights, dropout)
    return (weights @ value).view(batch, heads, length, width)


def _causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """Return [1, 1, Q, K] True where a key may be seen: the last query sees every key."""
    mask = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return mask[None, None]


def _with_video_bias(
    mask: Tensor | None, video: VideoSpan, gate: Tensor, query: Tensor, key: Tensor
) -> Tensor:
    """Return the additive mask [B, H, Q, K] that holds causality and the per-head video bias."""
    keys, queries = key.shape[2], query.shape[2]
    if mask is None:
        mask = _causal_mask(queries, keys, query.device)
    slot_keys = F.pad(video.slot_keys, (0, keys - video.slot_keys.shape[1]))
    biased = (video.after[:, None, :, None] & slot_keys[:, None, None, :]).to(query.dtype)
    bias = biased * gate.to(query.dtype)[None, :, None, None]
    if mask.dtype == torch.bool:
        return bias.masked_fill(~mask, torch.finfo(query.dtype).min)
    return bias + mask


def topa_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    topa_video: VideoSpan | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention function for `transformers.AttentionInterface`.

    Args:
        module: The attention module; its `topa_adapter`, if any, is applied.
        query: [B, H, Q, d], after rotary positions.
        key: [B, Hkv, K, d].
        value: [B, Hkv, K, d].
        attention_mask: [B, 1, Q, K], bool (True = visible) or additive; None = causal.
        scaling: Factor of the scores, d**-0.5 by default.
        dropout: Probability of dropping a weight.
        softcap: Scores are bent to lie within this (Gemma 2).
        topa_video: Where the video lies; no bias without it.

    Returns:
        [B, Q, H, d] and None (weights are not kept).

    Raises:
        ConfigError: The LLM's attention has sinks, which would be lost.
    """
    if kwargs.get("s_aux") is not None:
        raise ConfigError(
            "attention with sinks is not supported",
            where=type(module).__name__,
            mend="Use an LLM of the Llama, Qwen, Gemma or Mistral family.",
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    adapter: AdapterLayer | None = getattr(module, "topa_adapter", None)
    mask = attention_mask
    if adapter is not None and topa_video is not None:
        mask = _with_video_bias(mask, topa_video, adapter.video_bias, query, key)
    out = _attend(query, key, value, mask, scaling, dropout, softcap)
    if adapter is not None:
        out = out + _attend_prompts(module, adapter, query, scaling)
    return out.transpose(1, 2).contiguous(), None


def _attend_prompts(
    module: nn.Module, adapter: AdapterLayer, query: Tensor, scaling: float
) -> Tensor:
    """Return tanh(g1) softmax(q k_A^T) v_A, [B, H, Q, d]; k_A, v_A are made once per call."""
    length, width = adapter.prompt.shape[0], query.shape[-1]
    prompt = adapter.prompt.to(query.dtype)
    key = module.k_proj(prompt).view(1, length, -1, width).transpose(1, 2)  # type: ignore[operator]
    value = module.v_proj(prompt).view(1, length, -1, width).transpose(1, 2)  # type: ignore[operator]
    batch, heads, queries, _ = query.shape
    groups = heads // key.shape[1]
    # One product over batch, group and query: the prompts are the same for all of them.
    grouped = query.reshape(batch, heads // groups, groups * queries, width)
    weights = ((grouped @ key.transpose(-1, -2)) * scaling).softmax(-1)
    attended = (weights @ value).view(batch, heads, queries, width)
    return attended * adapter.gate.tanh().to(query.dtype)[None, :, None, None]


AttentionInterface.register(ATTENTION, topa_attention)
# Without the mask function of the same name transformers passes no mask and causality is lost
# (huggingface/transformers#45811).
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
