"""Loading a checkpoint together with its LLM."""

from __future__ import annotations

import pytest

from topa.errors import CheckpointError, FingerprintError
from topa.model.loading import load_model
from topa.model.topa import TopaForConditionalGeneration


def test_model_and_prompts_fit_each_other(checkpoint):
    model, builder = load_model(checkpoint, device="cpu")
    assert isinstance(model, TopaForConditionalGeneration)
    assert not model.training
    assert builder.num_slots == model.config.num_slots


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_model(tmp_path)


def test_another_llm_than_that_of_training_is_refused(checkpoint, tiny_llm, tmp_path):
    tiny_llm.model.get_input_embeddings().weight.data += 1
    tiny_llm.model.save_pretrained(tmp_path)
    tiny_llm.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(FingerprintError, match="trained with LLM"):
        load_model(checkpoint, llm=str(tmp_path))
