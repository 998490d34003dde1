"""Loading the frozen LLM: the embedded one, a GGUF file, a folder or a hub id."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from topa.errors import ConfigError
from topa.linear import speed_inference
from topa.runs import cache_dir, digest, sha256_of
from topa.weights import SMOLLM2_GGUF

Quantization = Literal["8bit", "4bit"]

logger = logging.getLogger(__name__)


@dataclass
class Language:
    """A frozen LLM with its tokenizer and identity."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str


def load_language(
    source: str,
    dtype: torch.dtype = torch.float32,
    *,
    device_map: str | dict[str, Any] | None = None,
    quantization: Quantization | None = None,
    revision: str | None = None,
    **placement: Any,
) -> Language:
    """Load a causal LM with every weight frozen.

    Args:
        source: "embedded", a GGUF file, a folder or a hub id.
        dtype: Type of the weights in memory.
        device_map: Where layers go, as transformers takes it ("auto", or module by module).
        quantization: "8bit" or "4bit" weights, through bitsandbytes.
        revision: Branch, tag or commit of a hub id.
        **placement: `max_memory` and `offload_folder`, beside a `device_map`.

    Raises:
        WeightsError: The embedded LLM's package is missing.
        ConfigError: Nothing loadable is at `source`, or bitsandbytes is not installed.
    """
    unknown = set(placement) - {"max_memory", "offload_folder"}
    if unknown:
        raise ConfigError(f"unknown arguments {sorted(unknown)}", where="load_language")
    folder, fingerprint = _locate(source)
    options: dict[str, Any] = {"revision": revision} if revision is not None else {}
    if device_map is not None:
        options |= {"device_map": device_map, **placement}
    if quantization is not None:
        options["quantization_config"] = _bits(quantization, dtype)
    tokenizer = _load_tokenizer(folder, source, revision)
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options)
    except (OSError, ValueError) as error:
        raise _unloadable(source, error) from error
    model.requires_grad_(False)
    model.eval()
    speed_inference(model)
    return Language(model, tokenizer, fingerprint or fingerprint_of(model, source))


def load_tokenizer(source: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of an LLM alone.

    Args:
        source: As for `load_language`.
        revision: Branch, tag or commit of a hub id.

    Raises:
        WeightsError: The embedded LLM's package is missing.
        ConfigError: Nothing loadable is at `source`.
    """
    return _load_tokenizer(_locate(source)[0], source, revision)


def _load_tokenizer(folder: str, source: str, revision: str | None) -> PreTrainedTokenizerBase:
    options = {} if revision is None else {"revision": revision}
    try:
        return AutoTokenizer.from_pretrained(folder, **options)
    except (OSError, ValueError) as error:
        raise _unloadable(source, error) from error


def _locate(source: str) -> tuple[str, str]:
    """Return what transformers loads an LLM from, and its fingerprint ("" if not known yet).

    Raises:
        WeightsError: The embedded LLM's package is missing.
        ConfigError: There is no such GGUF file.
    """
    if source == "embedded":
        return str(_embedded_folder()), f"smollm2-135m-{SMOLLM2_GGUF.sha256[:12]}"
    if not source.endswith(".gguf"):
        return source, ""
    path = Path(source)
    if not path.is_file():
        raise ConfigError("GGUF file not found", where=source, mend="Check the path.")
    sha = sha256_of(path)
    return str(_unpacked_gguf(path, sha)), f"gguf-{sha[:12]}"


def _unloadable(source: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"the LLM cannot be loaded ({str(error).splitlines()[0]})",
        where=source,
        mend='Use "embedded", a GGUF file, a Hugging Face folder or a hub id.',
    )


def _bits(quantization: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    """Return how bitsandbytes is to store the weights.

    Raises:
        ConfigError: It is not installed, or knows no such way.
    """
    if quantization not in get_args(Quantization):
        raise ConfigError(
            f"unknown quantization {quantization!r}",
            mend=f"Use one of {get_args(Quantization)}.",
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"{quantization} weights need bitsandbytes, which is not installed",
            where="quantization",
            mend="Run: pip install -e '.[quantize]'",
        )
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )


def fingerprint_of(model: PreTrainedModel, source: str) -> str:
    """Return the identity of an LLM: its hub revision, or its shape and a sample of its weights."""
    revision = getattr(model.config, "_commit_hash", None)
    if revision:
        return f"{source}@{revision[:12]}"
    text = model.config.get_text_config(decoder=True)
    shape = json.dumps([model.config.model_type, text.vocab_size, text.hidden_size])
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
