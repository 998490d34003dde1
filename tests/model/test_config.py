"""The configuration survives its file, with the LLM's inside it."""

from __future__ import annotations

import pytest
from transformers import AutoConfig, Qwen2Config

from topa.errors import ConfigError
from topa.model.config import VARIANTS, TopaConfig


def test_every_field_comes_back_from_the_file(tmp_path):
    text = Qwen2Config(hidden_size=24, num_attention_heads=3, num_hidden_layers=5)
    config = TopaConfig(
        text_config=text,
        llm="some/llm",
        llm_fingerprint="llm-1",
        encoder="some/encoder",
        encoder_fingerprint="encoder-1",
        tideos=["textvid", "more.jsonl"],
        template_version="topa-9",
        feature_dim=7,
        num_frames=6,
        slots_per_frame=2,
        variant="lora",
        adapter_length=4,
        adapter_layers=3,
        bias=1.25,
        lora_rank=5,
        lora_alpha=9,
        scoring="selection",
        subtract_blind=False,
    )
    config.save_pretrained(tmp_path)
    found = TopaConfig.from_pretrained(tmp_path)
    assert isinstance(found.text_config, Qwen2Config)
    assert found.text_config.hidden_size == 24
    own = [name for name in vars(TopaConfig()) if not name.startswith("_")]
    values = {name: getattr(config, name) for name in own if name != "text_config"}
    volatile = {"transformers_version", "architectures", "torch_dtype", "dtype"}
    for name in set(values) - volatile:
        assert getattr(found, name) == values[name], name


def test_the_text_config_may_be_a_dictionary():
    text = AutoConfig.for_model("llama", hidden_size=32).to_dict()
    assert TopaConfig(text_config=text).text_config.hidden_size == 32


def test_slots_are_frames_times_slots_per_frame():
    assert TopaConfig(num_frames=6, slots_per_frame=3).num_slots == 18


def test_an_unknown_variant_is_refused():
    with pytest.raises(ConfigError, match="unknown variant 'lorra'") as caught:
        TopaConfig(variant="lorra")
    assert all(name in str(caught.value) for name in VARIANTS)
