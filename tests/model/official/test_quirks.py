"""What the authors' code does to an LLM, against their model written out from the formula."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from topa.data.collate import collate, collate_for_generation
from topa.data.templates import Prompt, Segment
from topa.errors import ConfigError
from topa.model.config import TopaConfig
from topa.model.official.conversion import build_model, make_config
from topa.model.official.meta import convert_language
from topa.model.official.quirks import count_slots, fit_language
from topa.model.official.trainables import read_checkpoint

from .conftest import ADAPTER, FEATURE, FRAMES, LAYERS, AuthorsModel

START = 5
IDS = [7, 8, 9, 10, 11, *[0] * FRAMES, *range(20, 31)]
"""A prompt with its video at positions 5 to 8."""
TURNING = 5e-5
"""transformers computes rotary angles in float32, also within a float64 model."""


@pytest.fixture
def load(tmp_path, make_llm_tensors, write_llm, make_trained):
    """Loads the model and that of the authors, from the same files, in float64."""

    def load(adapted: int = LAYERS, rope_theta: float | None = None):
        params, tensors = make_llm_tensors(rope_theta=rope_theta)
        trained = make_trained(adapted)
        torch.save({"model": trained, "epoch": 3}, tmp_path / "checkpoint_3.pth")
        official = read_checkpoint(tmp_path / "checkpoint_3.pth", ADAPTER)
        convert_language(write_llm(tmp_path / "meta", params, tensors), tmp_path / "llm")
        llm = AutoModelForCausalLM.from_pretrained(tmp_path / "llm", dtype=torch.float64)
        model = build_model(official, llm, make_config(official, llm.config, 10000.0))
        return model.double().eval(), AuthorsModel(params, tensors, trained, ADAPTER)

    return load


def slots_of(ids: list[int]) -> torch.Tensor:
    slots = torch.full((1, len(ids)), -1)
    slots[0, START : START + FRAMES] = torch.arange(FRAMES)
    return slots


@pytest.mark.parametrize("adapted", [3, 2, 1])
def test_only_the_layers_with_an_adapter_are_run(load, adapted):
    """adapter_layer < n_layers: the authors' loop starts at the first adapted layer."""
    model, authors = load(adapted)
    assert (model.config.skipped_layers, len(model.language_model.model.layers)) == (
        LAYERS - adapted,
        adapted,
    )
    video = torch.randn(1, FRAMES, FEATURE, dtype=torch.float64)
    ids = torch.tensor([IDS])
    with torch.inference_mode():
        found = model(input_ids=ids, slot_index=slots_of(IDS), features=video).logits[0]
    assert torch.allclose(found, authors.logits(ids[0], video[0], START), atol=TURNING)


def test_a_cache_fits_the_layers_that_are_left(load):
    model, _ = load(2)
    ids, slots = torch.tensor([IDS]), slots_of(IDS)
    video = torch.randn(1, FRAMES, FEATURE, dtype=torch.float64)
    with torch.inference_mode():
        whole = model(input_ids=ids, slot_index=slots, features=video).logits
        first = model(
            input_ids=ids[:, :-1], slot_index=slots[:, :-1], features=video, use_cache=True
        )
        last = model(
            input_ids=ids[:, -1:],
            slot_index=slots[:, :-1],
            attention_mask=torch.ones_like(ids),
            past_key_values=first.past_key_values,
        )
    assert len(first.past_key_values) == 2
    assert torch.allclose(last.logits[:, -1], whole[:, -1], atol=1e-6)


@pytest.mark.parametrize("own", [None, 10000.0, 500000.0])
def test_rotary_positions_have_the_base_of_the_training(load, own):
    """Whatever params.json says, the authors' code turned with base 10000."""
    model, authors = load(rope_theta=own)
    assert model.config.rope_theta == (10000.0 if own == 500000.0 else None)
    video = torch.randn(1, FRAMES, FEATURE, dtype=torch.float64)
    ids = torch.tensor([IDS])
    with torch.inference_mode():
        found = model(input_ids=ids, slot_index=slots_of(IDS), features=video).logits[0]
    assert torch.allclose(found, authors.logits(ids[0], video[0], START), atol=TURNING)


@pytest.mark.parametrize("frames", [1, 3, 4])
def test_slots_of_missing_frames_keep_their_positions_and_are_not_seen(load, frames):
    model, authors = load()
    video = torch.zeros(FRAMES, FEATURE, dtype=torch.float64)
    video[:frames] = torch.randn(frames, FEATURE, dtype=torch.float64)
    seen = torch.ones(len(IDS), dtype=torch.bool)
    seen[START + frames : START + FRAMES] = False
    expected = authors.logits(torch.tensor(IDS), video, START, seen)
    root = Segment(tuple(IDS[:12]), -1, tuple(slots_of(IDS)[0, :12].tolist()))
    label = Segment(tuple(IDS[12:]), 0, (-1,) * 8, is_label=True)
    prompt = Prompt([root, label])
    with torch.inference_mode():
        batch = collate([prompt, prompt], [video[:frames], video[:frames]], FRAMES)
        found = model.target_log_probs(batch)
    wanted = expected[11:-1].log_softmax(-1)[torch.arange(8), torch.tensor(IDS[12:])]
    assert torch.allclose(found.double(), torch.cat([wanted, wanted]), atol=TURNING)


@pytest.mark.parametrize("frames", [2, 4])
def test_generation_counts_the_same_positions(load, frames):
    """Two prompts of different lengths, padded on the left, against one token at a time."""
    model, authors = load()
    video = torch.randn(frames, FEATURE, dtype=torch.float64)
    prompts = []
    for ids in (IDS, IDS[:12]):
        slots = slots_of(ids)[0].tolist()
        prompts.append(Prompt([Segment(tuple(ids), -1, tuple(slots))]))
    inputs = collate_for_generation(prompts, [video, video], FRAMES, 1)
    with torch.inference_mode():
        found = model.generate(**inputs, max_new_tokens=4, do_sample=False, pad_token_id=0)
    padded = torch.zeros(FRAMES, FEATURE, dtype=torch.float64)
    padded[:frames] = video
    for row, ids in enumerate((list(IDS), IDS[:12])):
        for _ in range(4):
            seen = torch.ones(len(ids), dtype=torch.bool)
            seen[START + frames : START + FRAMES] = False
            logits = authors.logits(torch.tensor(ids), padded, START, seen)
            ids.append(int(logits[-1].argmax()))
        assert found[row, -4:].tolist() == ids[-4:]


def test_slots_are_counted_up_to_the_end_of_the_cache():
    seen = torch.tensor([[0, 1, 1, 0, 0, 1, 1, 1]])
    slots = torch.tensor([[-1, -1, 0, 1, 2, -1]])
    assert count_slots(seen, slots).int().tolist() == [[0, 1, 1, 1, 1, 1, 1, 1]]
    assert count_slots(seen, None) is seen


def test_what_does_not_fit_the_llm_is_refused():
    config = {"vocab_size": 9, "num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2}
    text = TopaConfig(text_config={"model_type": "llama", "intermediate_size": 8, **config})
    llm = AutoModelForCausalLM.from_config(text.text_config)
    with pytest.raises(ConfigError, match="skipped_layers is 2, the LLM has 2 layers"):
        fit_language(llm, 2, None)
    gpt2 = TopaConfig(text_config={"model_type": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 2})
    with pytest.raises(ConfigError, match="no rotary positions"):
        fit_language(AutoModelForCausalLM.from_config(gpt2.text_config), 0, 10000.0)
