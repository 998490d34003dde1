"""Loading the frozen LLM: the embedded one, a GGUF file, a folder or a hub id."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from topa.errors import ConfigError
from topa.runs import cache_dir, digest, sha256_of
from topa.weights import SMOLLM2_GGUF

logger = logging.getLogger(__name__)


@dataclass
class Language:
    """A frozen LLM with its tokenizer and identity."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str


def load_language(source: str, dtype: torch.dtype = torch.float32) -> Language:
    """Load a causal LM with every weight frozen.

    Args:
        source: "embedded", a GGUF file, a folder or a hub id.
        dtype: Type of the weights in memory.

    Raises:
        WeightsError: The embedded LLM's package is missing.
        ConfigError: Nothing loadable is at `source`.
    """
    if source == "embedded":
        folder = _embedded_folder()
        fingerprint = f"smollm2-135m-{SMOLLM2_GGUF.sha256[:12]}"
    elif source.endswith(".gguf"):
        path = Path(source)
        if not path.is_file():
            raise ConfigError("GGUF file not found", where=source, mend="Check the path.")
        sha = sha256_of(path)
        folder = _unpacked_gguf(path, sha)
        fingerprint = f"gguf-{sha[:12]}"
    else:
        folder, fingerprint = Path(source), ""
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
        model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the LLM cannot be loaded ({str(error).splitlines()[0]})",
            where=source,
            mend='Use "embedded", a GGUF file, a Hugging Face folder or a hub id.',
        ) from error
    model.requires_grad_(False)
    model.eval()
    return Language(model, tokenizer, fingerprint or fingerprint_of(model, source))


def fingerprint_of(model: PreTrainedModel, source: str) -> str:
    """Return the identity of an LLM: its hub revision, or its shape and a sample of its weights."""
    revision = getattr(model.config, "_commit_hash", None)
    if revision:
        return f"{source}@{revision[:12]}"
    shape = json.dumps([model.config.model_type, model.config.vocab_size, model.config.hidden_size])
    weight: Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    # Rounded, so that the same weights in 32 and in 16 bits have one identity.
    rounded = weight[:: max(1, len(weight) // 64)].to(torch.bfloat16)
    sample = rounded.float().cpu().numpy().tobytes().hex()
    return f"{model.config.model_type}-{digest(shape, sample)}"


def _embedded_folder() -> Path:
    """Return the folder of the embedded LLM as safetensors, unpacked on first use."""
    sha = SMOLLM2_GGUF.sha256
    folder = cache_dir("llm") / sha[:16]
    if (folder / "complete").is_file():
        SMOLLM2_GGUF.find()  # the package is part of the set-up even when its copy is cached
        return folder
    return _unpacked_gguf(SMOLLM2_GGUF.verified(), sha)


def _unpacked_gguf(path: Path, sha: str) -> Path:
    """Dequantise a GGUF file once into float32 safetensors: 0.3 s to load instead of 20 s."""
    folder = cache_dir("llm") / sha[:16]
    if (folder / "complete").is_file():
        return folder
    logger.info("unpacking %s (once)", path.name)
    tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    quantised = AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype=torch.float32
    )
    fields = quantised.config.to_dict()
    fields.pop("quantization_config", None)  # the weights are plain floats from here on
    config = AutoConfig.for_model(**fields)
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(quantised.state_dict())
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".unpacking-"))
    try:
        plain.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / "complete").touch()
        try:
            os.rename(temporary, folder)
        except OSError:
            # Another process finished first: its copy is the same.
            if not (folder / "complete").is_file():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder
