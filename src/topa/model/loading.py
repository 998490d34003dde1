"""Loading a checkpoint together with its LLM."""

from __future__ import annotations

from pathlib import Path

import torch

from topa.data.templates import PromptBuilder
from topa.model.checkpoint import read_config
from topa.model.language import load_language
from topa.model.topa import TopaForConditionalGeneration


def load_model(
    checkpoint: str | Path = "embedded",
    *,
    llm: str | None = None,
    device: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[TopaForConditionalGeneration, PromptBuilder]:
    """Load a checkpoint and its LLM, without encoder and memory.

    Args:
        checkpoint: "embedded" (ships with topa) or a folder written by `topa align`.
        llm: Where to find the LLM, if not where the checkpoint says.
        device: Where the LLM runs; a GPU if there is one.
        dtype: Type of the LLM's weights.

    Raises:
        CheckpointError: There is no checkpoint, or it does not fit the LLM.
        FingerprintError: The LLM is another one than the checkpoint was trained on.
    """
    config = read_config(checkpoint)
    language = load_language(llm or config.llm, dtype)
    model = TopaForConditionalGeneration.from_pretrained(checkpoint, language=language)
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model.to(torch.device(chosen))  # type: ignore[arg-type]
    config = model.config
    return model, PromptBuilder(language.tokenizer, config.num_slots, config.template_version)
