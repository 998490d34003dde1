"""The paper's adapter, in the attention function of any decoder that transformers can dispatch.

    out = softmax(q k^T / sqrt(d) + causal + B) v + tanh(g1) softmax(q k_A^T / sqrt(d)) v_A

k_A and v_A are the layer's own key and value projections of its learned prompts, without
rotary positions; B adds g2 (per head) where the query lies after the last video slot and
the key is a video slot (paper section 3.3; LLaMA-Adapter, arXiv 2303.16199).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from topa.errors import ConfigError
from topa.model.attention import VideoBias, VideoSpan, attend, pack, spread
from topa.model.packing import check_length
from topa.model.placement import device_of

ATTENTION = "topa"
# Their attention calls the function, but is not softmax(q k^T) v by itself.
_OTHER_FORMULAS = {"diffllama": "subtracts two attentions", "doge": "masks by a learned gate"}
_INSTEAD = 'Use variant "lora" or "projector", or an LLM of another family (docs/model.md).'

__all__ = [
    "ATTENTION",
    "AdapterLayer",
    "VideoSpan",
    "add_adapter",
    "attention_modules",
    "topa_attention",
]


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


def _has_projections(module: nn.Module) -> bool:
    return all(hasattr(module, name) for name in ("q_proj", "k_proj", "v_proj"))


def _is_fused(module: nn.Module) -> bool:
    """Whether one linear layer makes queries, keys and values, in this order (Phi-3)."""
    fused = getattr(module, "qkv_proj", None)
    config = getattr(module, "config", None)
    if not isinstance(fused, nn.Linear) or config is None or not hasattr(module, "head_dim"):
        return False
    heads = config.num_attention_heads + 2 * config.num_key_value_heads
    return "Phi" in type(module).__name__ and fused.out_features == heads * module.head_dim


def attention_modules(llm: PreTrainedModel) -> list[nn.Module]:
    """Return the attention modules of a decoder, in layer order.

    Raises:
        ConfigError: The architecture cannot take the adapter; names the module at fault.
    """
    where = type(llm).__name__
    found = []
    for index, layer in enumerate(_layers(llm)):
        inside = list(layer.named_modules())
        fit = [m for _, m in inside if _has_projections(m) or _is_fused(m)]
        if len(fit) != 1:
            near = [
                f"{name} ({type(m).__name__})"
                for name, m in inside
                if name and ("attn" in name.lower() or "attention" in name.lower())
                if "." not in name
            ]
            raise ConfigError(
                f"layer {index} ({type(layer).__name__}) has {len(fit)} attentions with q_proj, "
                f"k_proj and v_proj, one is needed; its attention: {', '.join(near) or 'none'}",
                where=where,
                mend=_INSTEAD,
            )
        _check_attention(fit[0], llm)
        found.append(fit[0])
    return found


def _layers(llm: PreTrainedModel) -> list[nn.Module]:
    """Return the decoder layers of an LLM."""
    count = llm.config.get_text_config(decoder=True).num_hidden_layers
    for module in llm.get_decoder().modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    raise ConfigError(
        f"{type(llm.get_decoder()).__name__} has no list of {count} decoder layers",
        where=type(llm).__name__,
        mend=_INSTEAD,
    )


def _check_attention(module: nn.Module, llm: PreTrainedModel) -> None:
    """Refuse an attention whose output the adapter's formula would not describe.

    Raises:
        ConfigError: Says what is unfit, and names the module.
    """
    name = type(module).__name__
    problem = None
    if not llm._supports_attention_backend:
        problem = "does not call attention functions from outside"
    elif llm.config.model_type in _OTHER_FORMULAS:
        problem = _OTHER_FORMULAS[llm.config.model_type]
    elif not isinstance(getattr(module, "layer_idx", None), int):
        problem = "does not know the number of its layer (layer_idx)"
    elif not getattr(module, "is_causal", True):
        problem = "is not causal"
    elif _has_projections(module):
        key, value = module.k_proj, module.v_proj
        if getattr(key, "out_features", 0) != getattr(value, "out_features", 1):
            problem = "has keys and values of different widths"
    if problem:
        raise ConfigError(f"{name} {problem}", where=type(llm).__name__, mend=_INSTEAD)


def add_adapter(llm: PreTrainedModel, length: int, layers: int | None, bias: float) -> None:
    """Give the top `layers` attention modules (all if None) an `AdapterLayer`.

    Raises:
        ConfigError: The LLM has fewer layers or positions, or an unsuitable attention.
    """
    modules = attention_modules(llm)
    count = len(modules) if layers is None else layers
    if count > len(modules):
        raise ConfigError(
            f"adapter_layers is {count}, the LLM has {len(modules)} layers",
            mend="Lower model.adapter_layers.",
        )
    config = llm.config.get_text_config(decoder=True)
    check_length(length, "model.adapter_length", config)
    for module in modules[len(modules) - count :]:
        layer = AdapterLayer(length, config.hidden_size, config.num_attention_heads, bias)
        # Trainables stay float32 whatever the LLM's type: small steps vanish in 16 bits.
        module.topa_adapter = layer.to(device_of(module))  # type: ignore[assignment]


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
        query: [B, H, Q, d], after rotary positions; packed as [1, H, tokens, d], and keys and
            values likewise, where `topa_video` has places for them.
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
    of_prompts = None
    if adapter is not None:
        k_a, v_a = _project_prompts(module, adapter, query, topa_video)
        gate = adapter.gate.tanh().to(query.dtype)[None, :, None, None]
        of_prompts = gate * _attend_prompts(query, k_a, v_a, scaling)
    places = topa_video.places if topa_video is not None else None
    if places is not None:
        query, key, value = (spread(states, places) for states in (query, key, value))
    bias = None
    if adapter is not None and topa_video is not None:
        slots = topa_video.slots_at(int(module.layer_idx), key.shape[2])  # type: ignore[arg-type]
        bias = VideoBias(adapter.video_bias, topa_video.after, slots)
    out = attend(
        query,
        key,
        value,
        attention_mask,
        scaling=scaling,
        dropout=dropout,
        softcap=softcap,
        bias=bias,
    )
    if topa_video is not None and topa_video.tokens is not None:
        out = pack(out, topa_video.tokens)
    if of_prompts is not None:
        out = out + of_prompts
    return out.transpose(1, 2).contiguous(), None


def _project_prompts(
    module: nn.Module, adapter: AdapterLayer, query: Tensor, video: VideoSpan | None
) -> tuple[Tensor, Tensor]:
    """Return k_A and v_A, [1, Hkv, length, d]; kept beside the cache of keys, where there is one.

    While one token is generated, they would otherwise be most of the work of the layer.
    """
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    kept = video.prompts if video is not None else None
    if kept is not None and layer in kept:
        return kept[layer]
    prompt = adapter.prompt.to(query.dtype)
    if hasattr(module, "qkv_proj"):
        made = module.qkv_proj(prompt)  # type: ignore[operator]
        of_query = query.shape[1] * query.shape[-1]
        key, value = made[:, of_query:].chunk(2, -1)
    else:
        key, value = module.k_proj(prompt), module.v_proj(prompt)  # type: ignore[operator]
    key, value = (x.view(1, len(prompt), -1, query.shape[-1]).transpose(1, 2) for x in (key, value))
    if kept is not None:
        kept[layer] = key, value
    return key, value


def _attend_prompts(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Return softmax(q k_A^T) v_A, [B, H, Q, d]: one product over batch, group and query.

    Args:
        query: [B, H, Q, d].
        key: [1, Hkv, length, d], the same for all samples.
        value: [1, Hkv, length, d].
        scaling: Factor of the scores.
    """
    batch, heads, queries, width = query.shape
    groups = heads // key.shape[1]
    grouped = query.reshape(batch, heads // groups, groups * queries, width)
    scores = (grouped @ key.transpose(-1, -2)) * scaling
    exact = torch.promote_types(scores.dtype, torch.float32)
    weights = scores.softmax(-1, dtype=exact).to(value.dtype)
    return (weights @ value).view(batch, heads, queries, width)


AttentionInterface.register(ATTENTION, topa_attention)
# Without the mask function of the same name transformers passes no mask and causality is lost
# (huggingface/transformers#45811).
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
