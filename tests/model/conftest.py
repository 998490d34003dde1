"""Tiny LLMs of several architectures, and TOPA models around them with nothing left at zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from topa.data.templates import Prompt, Segment
from topa.model.config import TopaConfig
from topa.model.topa import TopaForConditionalGeneration

VOCABULARY = 61
FRAMES = 4
WIDTH = 6  # of a feature


@pytest.fixture(scope="session")
def make_llm() -> Callable[..., PreTrainedModel]:
    """Makes a random causal LM of 2 layers, 4 heads, 2 key heads and width 16, in float64."""

    def make(kind: str = "llama", **settings: Any) -> PreTrainedModel:
        shape = {
            "vocab_size": VOCABULARY,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 4,
            "max_position_embeddings": 4096,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        config = AutoConfig.for_model(kind, **{**shape, **settings})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            model = AutoModelForCausalLM.from_config(config)
            for parameter in model.parameters():
                # Larger than an untrained LLM's, so that every part of a prompt matters.
                parameter.data.normal_(0, 0.4)
        return model.double().eval()

    return make


@pytest.fixture(scope="session")
def make_model(
    make_llm: Callable[..., PreTrainedModel],
) -> Callable[..., TopaForConditionalGeneration]:
    """Makes a TOPA model whose trainables are all random, in float64."""

    def make(
        variant: str = "adapter",
        kind: str = "llama",
        llm: dict[str, Any] | None = None,
        **settings: Any,
    ) -> TopaForConditionalGeneration:
        language_model = make_llm(kind, **(llm or {}))
        values = {
            "feature_dim": WIDTH,
            "num_frames": FRAMES,
            "adapter_length": 3,
            "lora_rank": 2,
            "bias": 1.5,
            **settings,
        }
        config = TopaConfig(language_model.config, variant=variant, **values)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            model = TopaForConditionalGeneration(config, language_model).double().eval()
            for _, parameter in model.trainable_parameters():
                parameter.data += torch.randn_like(parameter) * 0.5
        return model

    return make


@pytest.fixture(scope="session")
def make_root() -> Callable[..., Prompt]:
    """Makes the start of a prompt: random tokens, then the video slots."""

    def make(generator: torch.Generator, before: int = 3, slots: int = FRAMES) -> Prompt:
        ids = torch.randint(3, VOCABULARY, (before,), generator=generator).tolist()
        return Prompt(
            [Segment((*ids, *[0] * slots), -1, (*[-1] * before, *range(slots)))],
        )

    return make


@pytest.fixture(scope="session")
def add_text() -> Callable[..., int]:
    """Appends a segment of random tokens."""

    def add(
        prompt: Prompt,
        parent: int,
        length: int,
        generator: torch.Generator,
        is_label: bool = False,
    ) -> int:
        ids = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        prompt.segments.append(Segment(tuple(ids), parent, (-1,) * length, is_label))
        return len(prompt.segments) - 1

    return add


@pytest.fixture(scope="session")
def make_prompt(
    make_root: Callable[..., Prompt], add_text: Callable[..., int]
) -> Callable[..., Prompt]:
    """Makes a prompt of questions with options of given lengths in tokens."""

    def make(seed: int, questions: list[list[int]], before: int = 3, slots: int = FRAMES) -> Prompt:
        generator = torch.Generator().manual_seed(seed)
        prompt = make_root(generator, before, slots)
        for number, lengths in enumerate(questions):
            parent = add_text(prompt, 0, 2 + number % 3, generator)
            branches = [add_text(prompt, parent, n, generator, True) for n in lengths]
            prompt.options.append(branches)
            prompt.answers.append(0)
        return prompt

    return make


@pytest.fixture(scope="session")
def make_features() -> Callable[..., torch.Tensor]:
    """Makes unit frame features [n, d]."""

    def make(seed: int, frames: int = FRAMES) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(frames, WIDTH, generator=generator, dtype=torch.float64)
        return torch.nn.functional.normalize(rows, dim=-1)

    return make
