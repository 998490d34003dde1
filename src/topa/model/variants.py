"""What is trained inside the LLM: the paper's adapter, LoRA, or nothing."""

from __future__ import annotations

from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import PreTrainedModel

from topa.errors import ConfigError
from topa.model.adapter import add_adapter
from topa.model.config import TopaConfig
from topa.model.updates import speed_updates


def add_variant(llm: PreTrainedModel, config: TopaConfig) -> None:
    """Put the trainables of `config.variant` into an LLM.

    Raises:
        ConfigError: The LLM carries those of another model, or cannot take the adapter.
    """
    _check_untouched(llm)
    _check_sinks(llm)
    if config.variant == "adapter":
        add_adapter(llm, config.adapter_length, config.adapter_layers, config.bias)
    elif config.variant == "lora":
        _add_lora(llm, config)


def _check_untouched(llm: PreTrainedModel) -> None:
    """Refuse an LLM that another model has changed: the two would share trainables."""
    changed = any(
        hasattr(module, "topa_adapter") or hasattr(module, "lora_A") for module in llm.modules()
    )
    if changed:
        raise ConfigError(
            "this LLM already carries the adapter or LoRA of another model",
            where=type(llm).__name__,
            mend="Load the LLM again for each model.",
        )


def _check_sinks(llm: PreTrainedModel) -> None:
    """Refuse attention with sinks (GPT-OSS): the attention function of topa has none."""
    for module in llm.modules():
        if getattr(module, "sinks", None) is not None:
            raise ConfigError(
                f"{type(module).__name__} has sinks, which the formula leaves out",
                where=type(llm).__name__,
                mend="Use an LLM of the Llama, Qwen, Gemma or Mistral family.",
            )


def _add_lora(llm: PreTrainedModel, config: TopaConfig) -> None:
    """Put trainable low-rank updates (arXiv 2106.09685) on every linear layer but the head."""
    linear = {
        name.rsplit(".", 1)[-1]
        for name, module in llm.get_decoder().named_modules()
        if isinstance(module, nn.Linear)
    }
    if not linear:
        raise ConfigError(
            f"{type(llm.get_decoder()).__name__} has no linear layers for LoRA",
            where=type(llm).__name__,
            mend='Use variant "projector", or an LLM of another family.',
        )
    inject_adapter_in_model(
        LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=sorted(linear)),
        llm,
    )
    speed_updates(llm)
