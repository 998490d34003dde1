"""Loading a checkpoint together with its LLM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from topa.data.templates import PromptBuilder
from topa.errors import ConfigError
from topa.linear import pack
from topa.model.checkpoint import read_config
from topa.model.language import Quantization, load_language
from topa.model.topa import TopaForConditionalGeneration


def load_model(
    checkpoint: str | Path = "embedded",
    *,
    llm: str | None = None,
    device: str | None = None,
    dtype: torch.dtype = torch.float32,
    device_map: str | dict[str, Any] | None = None,
    quantization: Quantization | None = None,
    num_frames: int | None = None,
) -> tuple[TopaForConditionalGeneration, PromptBuilder]:
    """Load a checkpoint and its LLM, without encoder and memory, ready to answer.

    On a CPU, the weights of a small LLM are kept twice, once as they are multiplied fastest.

    Args:
        checkpoint: "embedded" (ships with topa), a folder written by `topa align`, or a hub id.
        llm: Where to find the LLM, if not where the checkpoint says.
        device: Where the LLM runs; a GPU if there is one.
        dtype: Type of the LLM's weights.
        device_map: Where its layers go, instead of `device` ("auto", or module by module).
        quantization: "8bit" or "4bit" weights, through bitsandbytes.
        num_frames: Interpolate the temporal embeddings to so many frames.

    Raises:
        CheckpointError: There is no checkpoint, or it does not fit the LLM.
        FingerprintError: The LLM is another one than the checkpoint was trained on.
        ConfigError: Both `device` and `device_map`, or bitsandbytes is not installed.
    """
    if device is not None and device_map is not None:
        raise ConfigError("both device and device_map are given", mend="Give one of them.")
    config = read_config(checkpoint)
    language = load_language(
        llm or config.llm, dtype, device_map=device_map, quantization=quantization
    )
    model = TopaForConditionalGeneration.from_pretrained(
        checkpoint, language=language, num_frames=num_frames
    )
    if device_map is None and quantization is None:
        chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model.to(torch.device(chosen))  # type: ignore[arg-type]
    pack(model.language_model)
    config = model.config
    return model, PromptBuilder(language.tokenizer, config.num_slots, config.template_version)
