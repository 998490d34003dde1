"""Checkpoints hold the trainables alone, come back the same, and are refused where they differ."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from topa.errors import CheckpointError, ConfigError, FingerprintError
from topa.model.checkpoint import WEIGHTS_NAME, read_config
from topa.model.config import TopaConfig
from topa.model.language import Language
from topa.model.scoring import score_options
from topa.model.topa import TopaForConditionalGeneration

VARIANTS = ["adapter", "lora", "projector"]


def language_of(llm, fingerprint="llm-1") -> Language:
    return Language(llm, None, fingerprint)  # type: ignore[arg-type]  # no text in these tests


@pytest.fixture(params=VARIANTS)
def saved(request, make_model, tmp_path):
    model = make_model(request.param, llm_fingerprint="llm-1")
    model.save_pretrained(tmp_path)
    return model, tmp_path


def load(folder, make_llm, fingerprint="llm-1", kind="llama", **settings):
    language = language_of(make_llm(kind, **settings), fingerprint)
    return TopaForConditionalGeneration.from_pretrained(folder, language=language)


def test_a_loaded_model_is_the_saved_one(saved, make_llm, make_prompt, make_features):
    model, folder = saved
    found = load(folder, make_llm)
    assert not found.training
    wanted = dict(model.trainable_parameters())
    loaded = dict(found.trainable_parameters())
    assert loaded.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(loaded[name].double(), tensor, rtol=0, atol=1e-6)
    prompts, features = [make_prompt(0, [[2, 3]])], [make_features(0)]
    found.double()
    torch.testing.assert_close(
        score_options(found, prompts, features),
        score_options(model, prompts, features),
        rtol=0,
        atol=1e-4,
    )


def test_the_folder_holds_the_trainables_and_the_configuration(saved):
    model, folder = saved
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", WEIGHTS_NAME]
    tensors = load_file(folder / WEIGHTS_NAME)
    assert tensors.keys() == dict(model.trainable_parameters()).keys()
    assert not any("embed_tokens" in name or "lm_head" in name for name in tensors)


def test_tensors_may_be_stored_in_16_bits(make_model, make_llm, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in load_file(tmp_path / WEIGHTS_NAME).values()} == {
        torch.bfloat16
    }
    loaded = dict(load(tmp_path, make_llm).trainable_parameters())
    for name, tensor in model.trainable_parameters():
        torch.testing.assert_close(loaded[name].double(), tensor, rtol=2**-8, atol=1e-12)


def test_the_dictionary_is_saved_with_the_trainables(
    make_model, make_llm, make_prompt, make_features, tmp_path
):
    model = make_model("lora", dictionary_size=5)
    model.words.fill(torch.eye(6)[:5], [[3], [4, 5], [6], [7], [8, 9]])
    model.save_pretrained(tmp_path)
    found = load(tmp_path, make_llm).double()
    assert torch.equal(found.words.tokens, model.words.tokens)
    prompts, features = [make_prompt(0, [[2, 3]])], [make_features(0)]
    torch.testing.assert_close(
        score_options(found, prompts, features),
        score_options(model, prompts, features),
        rtol=0,
        atol=1e-4,
    )


def change(folder, **tensors):
    """Replace tensors of a checkpoint; None takes one away."""
    found = {**load_file(folder / WEIGHTS_NAME), **tensors}
    save_file({k: v for k, v in found.items() if v is not None}, folder / WEIGHTS_NAME)


def test_missing_tensors_are_refused(saved, make_llm):
    _, folder = saved
    change(folder, **{"visual_proj.weight": None})
    with pytest.raises(CheckpointError, match=r"1 missing: visual_proj\.weight"):
        load(folder, make_llm)


def test_unknown_tensors_are_refused(saved, make_llm):
    _, folder = saved
    change(folder, stranger=torch.zeros(2))
    with pytest.raises(CheckpointError, match="1 unknown: stranger"):
        load(folder, make_llm)


def test_tensors_of_another_shape_are_refused(saved, make_llm):
    _, folder = saved
    change(folder, **{"visual_proj.weight": torch.zeros(16, 5)})
    with pytest.raises(
        CheckpointError, match=r"1 shape: visual_proj\.weight is \(16, 5\), needed is \(16, 6\)"
    ):
        load(folder, make_llm)


def test_all_problems_come_in_one_message(saved, make_llm):
    _, folder = saved
    change(
        folder,
        stranger=torch.zeros(2),
        **{"visual_proj.weight": None, "temporal_emb.weight": torch.zeros(9, 16)},
    )
    with pytest.raises(CheckpointError) as caught:
        load(folder, make_llm)
    for part in ("1 missing", "1 unknown", "1 shape", WEIGHTS_NAME):
        assert part in str(caught.value)


def test_an_llm_of_another_size_is_refused(saved, make_llm):
    _, folder = saved
    with pytest.raises(CheckpointError, match="LLM of width 16, this one has width 24"):
        load(folder, make_llm, hidden_size=24, head_dim=6)


def test_another_llm_is_refused(saved, make_llm):
    _, folder = saved
    with pytest.raises(FingerprintError, match="trained with LLM llm-1, this is llm-2"):
        load(folder, make_llm, "llm-2")


def test_a_broken_file_is_refused(saved, make_llm):
    _, folder = saved
    path = folder / WEIGHTS_NAME
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load(folder, make_llm)


def test_a_missing_file_is_named(saved, make_llm):
    _, folder = saved
    (folder / WEIGHTS_NAME).unlink()
    with pytest.raises(CheckpointError, match=WEIGHTS_NAME):
        load(folder, make_llm)


def test_a_folder_without_configuration_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["{", json.dumps({"model_type": "llama"}), json.dumps({"model_type": "topa", "variant": "x"})],
)
def test_a_configuration_that_is_not_of_topa_is_refused(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_config(tmp_path)


def test_an_llm_that_has_an_adapter_already_is_refused(saved, make_llm):
    model, folder = saved
    if model.config.variant == "projector":
        pytest.skip("puts nothing into the LLM")
    language = language_of(make_llm())
    TopaForConditionalGeneration.from_pretrained(folder, language=language)
    with pytest.raises(ConfigError, match="already"):
        TopaForConditionalGeneration.from_pretrained(folder, language=language)


def test_by_default_every_layer_carries_the_adapter(make_llm):
    llm = make_llm()
    model = TopaForConditionalGeneration(TopaConfig(llm.config), llm)
    names = [name for name, _ in model.trainable_parameters()]
    assert sum(name.endswith("topa_adapter.prompt") for name in names) == 2
