"""What a packed prompt needs of an LLM: who sees whom, and the output of its head as it is."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PretrainedConfig

from topa.errors import ConfigError

_LAYER_KINDS = {"full_attention", "sliding_attention"}
_DISTANCES = {"bloom", "mpt"}


def check_length(tokens: int, what: str, config: PretrainedConfig) -> None:
    """Refuse what is longer than the LLM has positions for.

    Raises:
        ConfigError: Names both numbers.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and tokens > positions:
        raise ConfigError(
            f"{what}: {tokens} tokens, the LLM has {positions} positions",
            where=config.model_type,
            mend="Use fewer or shorter ones, or an LLM with a longer context.",
        )


def check_language(config: PretrainedConfig) -> None:
    """Refuse an LLM whose packed prompts would not score as its plain ones.

    Raises:
        ConfigError: Layers that are not attention over all or the last tokens, layers that need
            token ids, positions as biases, or a scale of the logits that is not known here.
    """
    if getattr(config, "hidden_size_per_layer_input", 0):
        raise ConfigError(
            "its layers look up embeddings of the token ids, of which a video slot has none",
            where=config.model_type,
            mend="Use an LLM of the Llama, Qwen, Gemma 1 to 3 or Mistral family.",
        )
    if config.model_type in _DISTANCES or getattr(config, "alibi", False):
        raise ConfigError(
            "its positions are biases of distances in the text (ALiBi), not of packed prompts",
            where=config.model_type,
            mend="Use an LLM with rotary positions.",
        )
    kinds = set(getattr(config, "layer_types", None) or ()) - _LAYER_KINDS
    if kinds:
        raise ConfigError(
            f"layers of kind {', '.join(sorted(kinds))} cannot read packed prompts",
            where=config.model_type,
            mend="Use an LLM of the Llama, Qwen, Gemma or Mistral family.",
        )
    _logit_factor(config)


def _logit_factor(config: PretrainedConfig) -> float:
    """Return what an LLM multiplies the output of its head with."""
    kind = config.model_type
    if kind.startswith("granite"):
        return 1 / float(config.logits_scaling)
    if kind.startswith("cohere"):
        return float(config.logit_scale)
    for name in ("logits_scaling", "logit_scale"):
        if getattr(config, name, None) not in (None, 1):
            raise ConfigError(
                f"it is not known what {name} does in this LLM",
                where=kind,
                mend="Use an LLM of the Llama, Qwen, Gemma or Mistral family.",
            )
    return 1.0


def finish_logits(logits: Tensor, config: PretrainedConfig) -> Tensor:
    """Return logits as the LLM's own forward does: scaled (Granite, Cohere), bent (Gemma 2)."""
    logits = logits * _logit_factor(config)
    cap = getattr(config, "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits


def tree_mask(segment_ids: Tensor, visible_segments: Tensor, visible: Tensor) -> Tensor:
    """Return who sees whom, [B, S, S] bool, for packed prompts.

    A token sees earlier visible tokens of its own segment and of its ancestors, and itself.

    Args:
        segment_ids: [B, S], -1 in the padding.
        visible_segments: [B, G, G] segment (dim 1) sees segment (dim 2).
        visible: [B, S] True at tokens that carry something.
    """
    length = segment_ids.shape[1]
    index = segment_ids.clamp(min=0)
    rows = visible_segments.gather(1, index[..., None].expand(-1, -1, visible_segments.shape[2]))
    mask = rows.gather(2, index[:, None, :].expand(-1, length, -1))
    real = segment_ids >= 0
    mask &= (real & visible)[:, None, :] & real[:, :, None]
    causal = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    # Every position sees itself, so that no row of the softmax is empty.
    return (mask & causal) | torch.eye(length, dtype=torch.bool, device=mask.device)


def mask_layers(
    mask: Tensor,
    position_ids: Tensor,
    config: PretrainedConfig,
    key_positions: Tensor | None = None,
) -> Tensor | dict[str, Tensor]:
    """Return [B, 1, S, K] of all layers, or by kind of layer where some have a sliding window.

    Args:
        mask: [B, S, K] of `tree_mask`, after the keys of a cache where there is one.
        position_ids: [B, S] position of each token on its own path.
        config: Of the LLM.
        key_positions: [B, K] the same of every key; `position_ids` without a cache.
    """
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    full = mask[:, None]
    if window is None or (kinds and "sliding_attention" not in kinds):
        return full
    keys = position_ids if key_positions is None else key_positions
    distance = position_ids[:, None, :, None] - keys[:, None, None, :]
    near = full & (distance < window)
    return {"full_attention": full, "sliding_attention": near} if kinds else near


def span_means(log_probs: Tensor, spans: Tensor, count: int) -> Tensor:
    """Return the mean log-probability per token of each of `count` spans, [M].

    Args:
        log_probs: [N] log-probability of each token.
        spans: [N] span of each token.
        count: M.
    """
    sums = log_probs.new_zeros(count).index_add_(0, spans, log_probs)
    lengths = log_probs.new_zeros(count).index_add_(0, spans, torch.ones_like(log_probs))
    return sums / lengths.clamp(min=1)
