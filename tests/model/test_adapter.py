"""The paper's attention against its formula written out in loops, and where it can live."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from topa.errors import ConfigError
from topa.model.adapter import AdapterLayer, VideoSpan, attention_modules, topa_attention
from topa.model.config import TopaConfig
from topa.model.topa import TopaForConditionalGeneration

BATCH, HEADS, KEY_HEADS, LENGTH, WIDTH, PROMPTS = 2, 6, 2, 7, 4, 3
HIDDEN = HEADS * WIDTH


class Attention(nn.Module):
    """What `topa_attention` asks of an attention module."""

    def __init__(self, generator: torch.Generator):
        super().__init__()
        self.k_proj = nn.Linear(HIDDEN, KEY_HEADS * WIDTH, bias=True, dtype=torch.float64)
        self.v_proj = nn.Linear(HIDDEN, KEY_HEADS * WIDTH, bias=False, dtype=torch.float64)
        self.topa_adapter = AdapterLayer(PROMPTS, HIDDEN, HEADS, 3.5).double()
        self.layer_idx = 0
        for parameter in self.requires_grad_(False).parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)


def explicit(module, query, key, value, visible, slots, after):
    """The formula of the paper, one head and one query at a time."""
    adapter = module.topa_adapter
    k_a = (adapter.prompt @ module.k_proj.weight.T + module.k_proj.bias).view(
        PROMPTS, KEY_HEADS, WIDTH
    )
    v_a = (adapter.prompt @ module.v_proj.weight.T).view(PROMPTS, KEY_HEADS, WIDTH)
    out = torch.zeros(BATCH, query.shape[2], HEADS, WIDTH, dtype=torch.float64)
    for b in range(BATCH):
        for h in range(HEADS):
            group = h // (HEADS // KEY_HEADS)
            for i in range(query.shape[2]):
                q = query[b, h, i]
                scores = torch.full((key.shape[2],), -math.inf, dtype=torch.float64)
                for j in range(key.shape[2]):
                    if visible[b, i, j]:
                        scores[j] = q @ key[b, group, j] / math.sqrt(WIDTH)
                        if after[b, i] and slots[b, j]:
                            scores[j] += adapter.video_bias[h]
                text = scores.softmax(0) @ value[b, group]
                prompts = (k_a[:, group] @ q / math.sqrt(WIDTH)).softmax(0) @ v_a[:, group]
                out[b, i, h] = text + math.tanh(adapter.gate[h]) * prompts
    return out


def case(queries=LENGTH):
    """Random tensors; the video of the two samples lies at different places."""
    generator = torch.Generator().manual_seed(0)
    module = Attention(generator)

    def draw(heads, length):
        # As an LLM makes them: heads and positions swapped, so not contiguous.
        shape = (BATCH, length, heads, WIDTH)
        return torch.randn(shape, generator=generator, dtype=torch.float64).transpose(1, 2)

    query, key, value = draw(HEADS, queries), draw(KEY_HEADS, LENGTH), draw(KEY_HEADS, LENGTH)
    slots = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    slots[0, 1:3] = slots[1, 2:5] = True
    positions = torch.arange(LENGTH - queries, LENGTH)
    after = torch.stack([positions > 2, positions > 4])
    causal = torch.ones(queries, LENGTH, dtype=torch.bool).tril(LENGTH - queries)
    return module, query, key, value, VideoSpan(slots, after), causal.expand(BATCH, -1, -1)


def additive(visible):
    return torch.zeros(visible.shape, dtype=torch.float64).masked_fill(
        ~visible, torch.finfo(torch.float64).min
    )


@pytest.mark.parametrize("learning", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("form", ["none", "bool", "additive"])
def test_attention_is_the_paper_s_formula(form, learning):
    module, query, key, value, span, causal = case()
    mask = {"none": None, "bool": causal[:, None], "additive": additive(causal)[:, None]}[form]
    with torch.set_grad_enabled(learning):
        found, _ = topa_attention(module, query, key, value, mask, topa_video=span)
    wanted = explicit(module, query, key, value, causal, span.slot_keys, span.after)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("learning", [True, False], ids=["training", "inference"])
def test_one_query_with_a_cache_of_keys(learning):
    module, query, key, value, span, causal = case(queries=1)
    with torch.set_grad_enabled(learning):
        found, _ = topa_attention(module, query, key, value, None, topa_video=span)
    wanted = explicit(module, query, key, value, causal, span.slot_keys, span.after)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("learning", [True, False], ids=["training", "inference"])
def test_keys_that_nobody_may_see_are_not_seen(learning):
    module, query, key, value, span, causal = case()
    visible = causal.clone()
    visible[:, :, 1] = False
    visible[:, 1, 1] = True  # itself
    with torch.set_grad_enabled(learning):
        found, _ = topa_attention(module, query, key, value, visible[:, None], topa_video=span)
    wanted = explicit(module, query, key, value, visible, span.slot_keys, span.after)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_keys_past_the_prompt_are_no_slots():
    """While generating, keys outgrow what is known of the prompt."""
    module, query, key, value, span, causal = case(queries=1)
    known = VideoSpan(span.slot_keys[:, :5], span.after)
    found, _ = topa_attention(module, query, key, value, None, topa_video=known)
    wanted = explicit(module, query, key, value, causal, span.slot_keys, span.after)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def prompt_of(model, frames=4):
    ids = torch.tensor([[5, 6, *[0] * frames, 7, 8, 9, 10]])
    slots = torch.tensor([[-1, -1, *range(frames), -1, -1, -1, -1]])
    return {"input_ids": ids, "slot_index": slots}


@pytest.mark.parametrize(
    "kind", ["llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "mistral"]
)
def test_zero_gate_and_zero_bias_leave_the_llm_as_it_is(kind, make_model, make_llm, make_features):
    model = make_model(kind=kind)
    for name, parameter in model.trainable_parameters():
        if name.endswith((".gate", ".video_bias")):
            parameter.data.zero_()
    prompt, features = prompt_of(model), make_features(0)[None]
    with torch.no_grad():
        found = model(**prompt, features=features).logits
        plain = make_llm(kind)
        plain.set_attn_implementation("eager")
        embeds = model.embed(prompt["input_ids"], prompt["slot_index"], features)
        wanted = plain(inputs_embeds=embeds).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "kind", ["llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "mistral"]
)
@pytest.mark.parametrize("variant", ["adapter", "lora", "projector"])
def test_later_tokens_do_not_change_earlier_ones(kind, variant, make_model, make_features):
    """The mask function is registered: without it transformers drops causality in silence."""
    model, features = make_model(variant, kind), make_features(0)[None]
    prompt = prompt_of(model)
    other = prompt["input_ids"].clone()
    other[:, -1] = 33
    with torch.no_grad():
        first = model(**prompt, features=features).logits
        second = model(**{**prompt, "input_ids": other}, features=features).logits
    torch.testing.assert_close(first[:, :-1], second[:, :-1], rtol=0, atol=1e-9)
    assert not torch.allclose(first[:, -1], second[:, -1])


def test_gate_and_bias_start_where_the_paper_starts_them(make_llm):
    llm = make_llm()
    TopaForConditionalGeneration(TopaConfig(llm.config, adapter_length=5), llm)
    for module in attention_modules(llm):
        assert module.topa_adapter.gate.tolist() == [0.0] * 4
        assert module.topa_adapter.video_bias.tolist() == [-3.5] * 4
        assert module.topa_adapter.prompt.shape == (5, 16)


def test_a_few_layers_are_the_top_ones(make_llm):
    llm = make_llm(num_hidden_layers=3)
    TopaForConditionalGeneration(TopaConfig(llm.config, adapter_layers=2), llm)
    having = [hasattr(module, "topa_adapter") for module in attention_modules(llm)]
    assert having == [False, True, True]


def test_more_adapter_layers_than_layers_are_refused(make_llm):
    llm = make_llm()
    with pytest.raises(ConfigError, match="adapter_layers is 3, the LLM has 2 layers"):
        TopaForConditionalGeneration(TopaConfig(llm.config, adapter_layers=3), llm)


def test_an_architecture_without_the_projections_is_refused_by_name(make_llm):
    llm = make_llm("gpt2", n_embd=16, n_layer=2, n_head=4)
    with pytest.raises(ConfigError, match=r"GPT2LMHeadModel: .*q_proj.*attn \(GPT2Attention\)"):
        TopaForConditionalGeneration(TopaConfig(llm.config), llm)
