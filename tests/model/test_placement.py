"""LLMs spread out by a device map, in few bits, and models that take more frames than trained."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from topa.errors import CheckpointError, ConfigError
from topa.model import language
from topa.model.adapter import AdapterLayer
from topa.model.checkpoint import read_config
from topa.model.config import TopaConfig
from topa.model.language import load_language
from topa.model.loading import load_model
from topa.model.topa import TopaForConditionalGeneration


@pytest.fixture
def adapted(tiny_llm_folder, tmp_path):
    """A checkpoint of the paper's adapter around the tiny LLM, nothing left at zero."""
    found = load_language(str(tiny_llm_folder))
    config = TopaConfig(
        found.model.config, llm=str(tiny_llm_folder), feature_dim=6, num_frames=4, adapter_length=3
    )
    model = TopaForConditionalGeneration(config, found.model)
    for _, parameter in model.trainable_parameters():
        parameter.data += torch.randn_like(parameter) * 0.5
    model.save_pretrained(tmp_path)
    return tmp_path


def inputs_of(frames=4):
    slots = torch.tensor([[-1, *range(frames), -1, -1]])
    ids = torch.where(slots < 0, torch.arange(slots.shape[1]) + 5, 0)
    return {"input_ids": ids, "slot_index": slots, "features": torch.ones(1, frames, 6)}


def logits_of(model, frames=4):
    with torch.no_grad():
        return model(**inputs_of(frames)).logits.float()


def test_layers_on_disk_give_the_same(adapted, tiny_llm_folder, tmp_path):
    """One layer waits on the disk: its adapter must not wait there with it."""
    wanted = logits_of(TopaForConditionalGeneration.from_pretrained(adapted))
    places = {
        "model.embed_tokens": "cpu",
        "model.layers.0": "cpu",
        "model.layers.1": "disk",
        "model.norm": "cpu",
        "model.rotary_emb": "cpu",
        "lm_head": "cpu",
    }
    llm = load_language(
        str(tiny_llm_folder), device_map=places, offload_folder=str(tmp_path / "offloaded")
    )
    model = TopaForConditionalGeneration.from_pretrained(adapted, language=llm)
    assert llm.model.model.layers[1].mlp.up_proj.weight.device.type == "meta"
    layers = [module for module in model.modules() if isinstance(module, AdapterLayer)]
    assert {layer.prompt.device.type for layer in layers} == {"cpu"}
    torch.testing.assert_close(logits_of(model), wanted, rtol=0, atol=1e-5)


def test_a_device_map_goes_through(adapted):
    wanted = logits_of(TopaForConditionalGeneration.from_pretrained(adapted))
    model, _ = load_model(adapted, device_map="cpu")
    torch.testing.assert_close(logits_of(model), wanted, rtol=0, atol=1e-6)
    with pytest.raises(ConfigError, match="both device and device_map"):
        load_model(adapted, device="cpu", device_map="cpu")


def test_bits_without_bitsandbytes_name_the_command(adapted, monkeypatch):
    monkeypatch.setattr(language.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"need bitsandbytes.*pip install -e '\.\[quantize\]'"):
        TopaForConditionalGeneration.from_pretrained(adapted, quantization="4bit")


def test_unknown_bits_are_refused(adapted):
    with pytest.raises(ConfigError, match="unknown quantization '3bit'"):
        TopaForConditionalGeneration.from_pretrained(adapted, quantization="3bit")


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_few_bits_are_near_the_whole(tokenizer, bits, tmp_path):
    if importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("needs bitsandbytes (the extra quantize)")
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,  # no less: 4 bits go in blocks of 64
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(shape).save_pretrained(tmp_path / "llm")
    tokenizer.save_pretrained(tmp_path / "llm")
    llm = load_language(str(tmp_path / "llm"))
    config = TopaConfig(llm.model.config, llm=str(tmp_path / "llm"), feature_dim=6, num_frames=4)
    model = TopaForConditionalGeneration(config, llm.model)
    model.save_pretrained(tmp_path / "checkpoint")
    wanted = logits_of(model)
    model, _ = load_model(tmp_path / "checkpoint", quantization=bits)
    kinds = {type(module).__name__ for module in model.language_model.modules()}
    assert kinds & {"Linear4bit", "Linear8bitLt"}
    found = logits_of(model)
    likeness = torch.nn.functional.cosine_similarity(found, wanted, dim=-1)
    assert likeness.min() > 0.9
    assert not torch.equal(found, wanted)


def test_more_frames_are_refused_with_both_numbers(adapted):
    model = TopaForConditionalGeneration.from_pretrained(adapted)
    with pytest.raises(ConfigError, match=r"7 frames given, the model has 4 temporal slots.*=7"):
        model(**inputs_of(7))


def test_more_frames_are_taken_when_asked_for(adapted, tmp_path):
    """Positions 0 and 3 of 4 become 0 and 6 of 7, and those between lie between."""
    few = TopaForConditionalGeneration.from_pretrained(adapted)
    many = TopaForConditionalGeneration.from_pretrained(adapted, num_frames=7)
    old, new = few.temporal_emb.weight, many.temporal_emb.weight
    torch.testing.assert_close(new[::2], old, rtol=0, atol=1e-6)
    torch.testing.assert_close(new[1], (old[0] + old[1]) / 2, rtol=0, atol=1e-6)
    assert logits_of(many, 7).isfinite().all()
    many.save_pretrained(tmp_path / "more")
    assert read_config(tmp_path / "more").num_frames == 7
    model, builder = load_model(adapted, num_frames=7)
    assert builder.num_slots == model.config.num_slots == 7


def test_unknown_fields_of_a_configuration_are_refused(adapted):
    path = adapted / "config.json"
    path.write_text(path.read_text().replace('"adapter_length"', '"adapter_lenght"'))
    with pytest.raises(CheckpointError, match="unknown fields: adapter_lenght"):
        read_config(adapted)
