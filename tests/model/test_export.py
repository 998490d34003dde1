"""Plain weights and a front give what the model gives, through transformers alone."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from topa.data.collate import collate_for_generation
from topa.errors import CheckpointError, ConfigError
from topa.model.export import EmbeddingFront, export_plain, load_plain, merge_lora

FRAMES = 4
KINDS = ["llama", "qwen3", "gemma2", "gemma3_text", "phi3"]


class NoTokenizer:
    """Saves nothing: these tests have no text."""

    def save_pretrained(self, folder):
        pass


@torch.no_grad()
def logits_of(model, prompt, shown):
    inputs = collate_for_generation([prompt], [shown], FRAMES, model.config.slots_per_frame)
    out = model(**inputs).logits[0]
    return out[inputs["attention_mask"][0].bool()]


@pytest.mark.parametrize("variant", ["lora", "projector"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_two_halves_are_the_model(
    variant, kind, make_model, make_prompt, make_features, tmp_path
):
    model = make_model(variant, kind, slots_per_frame=2)
    cases = [(make_prompt(i, [[3]], slots=8), make_features(i, n)) for i, n in enumerate((4, 2))]
    wanted = [logits_of(model, prompt, shown) for prompt, shown in cases]
    export_plain(model, NoTokenizer(), tmp_path)
    names = {type(m).__module__.split(".")[0] for m in model.language_model.modules()}
    assert names <= {"transformers", "torch"}  # nothing of peft or topa is left in it
    llm, front = load_plain(tmp_path)
    llm.double()
    for (prompt, shown), logits in zip(cases, wanted, strict=True):
        [embeds] = front([prompt], [shown.float()])
        found = llm(inputs_embeds=embeds[None].double()).logits[0]
        torch.testing.assert_close(found, logits, rtol=0, atol=2e-4)


@torch.no_grad()
def test_the_dictionary_goes_along(make_model, make_prompt, make_features, tmp_path):
    model = make_model("lora", "gemma3_text", dictionary_size=5)
    model.words.fill(torch.eye(6)[:5], [[3], [4, 5], [6], [7], [8, 9]])
    prompt, shown = make_prompt(0, [[3]]), make_features(0)
    wanted = logits_of(model, prompt, shown)
    export_plain(model, NoTokenizer(), tmp_path)
    llm, front = load_plain(tmp_path)
    [embeds] = front([prompt], [shown.float()])
    found = llm.double()(inputs_embeds=embeds[None].double()).logits[0]
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-4)


def test_the_plain_half_is_an_llm_of_transformers_alone(make_model, tmp_path):
    export_plain(make_model("lora"), NoTokenizer(), tmp_path, dtype=torch.bfloat16)
    llm = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(llm).__name__ == "LlamaForCausalLM"
    assert llm.dtype == torch.bfloat16


def test_the_paper_s_adapter_cannot_be_merged(make_model):
    with pytest.raises(ConfigError, match="part of the attention and cannot be merged"):
        merge_lora(make_model("adapter").language_model)


def test_a_folder_without_a_front_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        EmbeddingFront.from_pretrained(tmp_path)
