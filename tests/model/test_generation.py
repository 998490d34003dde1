"""generate() of transformers with video: static caches, sampling, beams, several videos."""

from __future__ import annotations

import pytest
import torch
from transformers import CompileConfig

from topa.data.collate import collate_for_generation

FRAMES = 4
KINDS = {
    "llama": {},
    "qwen3": {},
    "gemma2": {"sliding_window": 6},
    "gemma3_text": {"sliding_window": 6},
    "mistral": {"sliding_window": 6},
    "phi3": {},
}


@pytest.fixture(scope="module")
def inputs(make_prompt, make_features):
    prompts = [make_prompt(i, [[2]], before=1 + 4 * i) for i in range(3)]
    features = [make_features(i, frames) for i, frames in enumerate((4, 2, 3))]
    return collate_for_generation(prompts, features, FRAMES, 1)


def generate(model, inputs, count=8, **kwargs):
    kwargs = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, **kwargs}
    tokens = model.generate(**inputs, max_new_tokens=count, **kwargs)
    return tokens[:, inputs["input_ids"].shape[1] :]


@torch.no_grad()
def continue_uncached(model, inputs, count=8):
    """Greedy decoding with the whole text in every pass."""
    given = dict(inputs)
    for _ in range(count):
        new = model(**given, use_cache=False).logits[:, -1:].argmax(-1)
        given["input_ids"] = torch.cat([given["input_ids"], new], 1)
        for name, value in (("slot_index", -1), ("attention_mask", 1)):
            more = torch.full_like(new, value)
            given[name] = torch.cat([given[name], more], 1)
    return given["input_ids"][:, -count:]


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_greedy_decoding_is_that_without_a_cache(kind, cache, make_model, inputs):
    model = make_model(kind=kind, llm=KINDS[kind])
    found = generate(model, inputs, cache_implementation=cache)
    assert torch.equal(found, continue_uncached(model, inputs))


@pytest.mark.slow
def test_a_compiled_forward_gives_the_same(make_model, inputs):
    """As a GPU compiles it for a static cache; traced without a compiler of kernels here."""
    model = make_model()
    config = CompileConfig(backend="eager", fullgraph=False, mode=None)
    config._compile_all_devices = True
    found = generate(model, inputs, cache_implementation="static", compile_config=config)
    assert torch.equal(found, generate(model, inputs))


def test_one_seed_samples_the_same_with_either_cache(make_model, inputs):
    model = make_model()
    drawn = []
    for cache in (None, "static"):
        torch.manual_seed(3)
        drawn.append(generate(model, inputs, do_sample=True, cache_implementation=cache))
    assert torch.equal(*drawn)
    torch.manual_seed(4)
    assert not torch.equal(drawn[0], generate(model, inputs, do_sample=True))


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_beams_of_a_batch_are_those_of_each_alone(kind, make_model, inputs):
    model = make_model(kind=kind, llm=KINDS[kind])
    together = generate(model, inputs, num_beams=3)
    for row in range(3):
        blank = int((inputs["attention_mask"][row].cumsum(0) == 0).sum())
        alone = {
            name: tensor[row : row + 1, blank:] if name != "features" else tensor[row : row + 1]
            for name, tensor in inputs.items()
        }
        assert torch.equal(generate(model, alone, num_beams=3)[0], together[row])


def test_several_videos_generate_with_either_cache(make_model, make_features):
    model = make_model()
    slots = [-1, *range(4), -1, *range(4, 8), -1]
    inputs = {
        "input_ids": torch.tensor([[max(0, -slot) * (5 + i) for i, slot in enumerate(slots)]]),
        "slot_index": torch.tensor([slots]),
        "attention_mask": torch.ones(1, len(slots), dtype=torch.long),
        "features": torch.stack([make_features(0), make_features(1)])[None],
    }
    found = generate(model, inputs)
    assert torch.equal(found, continue_uncached(model, inputs))
    assert torch.equal(found, generate(model, inputs, cache_implementation="static"))
    swapped = {**inputs, "features": inputs["features"].flip(1)}
    with torch.no_grad():
        first, second = (model(**given).logits[:, -1] for given in (inputs, swapped))
    assert not torch.allclose(first, second)
