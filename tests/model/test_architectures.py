"""Every architecture against the paper's formula written out, and against itself in other forms.

The reference replaces the attention function alone: LLMs keep their own projections, norms, rotary
positions and masks, and what is between them is written as in docs/model.md, in float64, with a
table of biases for every head, query and key.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    Gemma3Config,
    StaticCache,
)
from transformers.masking_utils import eager_mask

from topa.data.collate import collate, collate_for_generation
from topa.errors import ConfigError
from topa.model.adapter import ATTENTION, AdapterLayer, attention_modules
from topa.model.config import TopaConfig
from topa.model.topa import TopaForConditionalGeneration

FRAMES = 4
ARCHITECTURES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "gemma2": {"sliding_window": 6, "attn_logit_softcapping": 2.0},
    "gemma3_text": {"sliding_window": 6},
    "mistral": {"sliding_window": 6},
    "smollm3": {},
    "phi": {},
    "phi3": {},
    "olmo2": {},
    "granite": {"attention_multiplier": 0.7, "logits_scaling": 3.0},
    "cohere2": {"sliding_window": 6},
}
REFERENCE = "topa-reference"


def written_out(module, query, key, value, attention_mask, **kwargs):
    """DESIGN's formula with every table made: [B, H, Q, K] scores, masks and biases."""
    video, softcap = kwargs.get("topa_video"), kwargs.get("softcap")
    scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if attention_mask is not None:
        scores = scores + attention_mask
    adapter = module.topa_adapter
    for row in range(len(query)):
        for i in torch.nonzero(video.after[row]).flatten().tolist():
            for j in torch.nonzero(video.slot_keys[row]).flatten().tolist():
                if j < scores.shape[3]:
                    scores[row, :, i, j] += adapter.video_bias
    out = scores.softmax(-1) @ value
    if hasattr(module, "qkv_proj"):
        made = (adapter.prompt @ module.qkv_proj.weight.T).split(query.shape[-1], -1)
        heads = query.shape[1]
        k_a = torch.stack(made[heads : heads + len(made[heads:]) // 2])
        v_a = torch.stack(made[heads + len(made[heads:]) // 2 :])
    else:
        shape = (len(adapter.prompt), -1, query.shape[-1])
        k_a = module.k_proj(adapter.prompt).view(shape).transpose(0, 1)
        v_a = module.v_proj(adapter.prompt).view(shape).transpose(0, 1)
    k_a, v_a = k_a.repeat_interleave(groups, 0), v_a.repeat_interleave(groups, 0)
    weights = (torch.einsum("bhqd,hld->bhql", query, k_a) * scaling).softmax(-1)
    prompts = torch.einsum("bhql,hld->bhqd", weights, v_a)
    out = out + adapter.gate.tanh()[None, :, None, None] * prompts
    return out.transpose(1, 2), None


AttentionInterface.register(REFERENCE, written_out)
AttentionMaskInterface.register(REFERENCE, eager_mask)


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model(kind, make_model):
    return make_model(kind=kind, llm={"num_hidden_layers": 2, **ARCHITECTURES[kind]})


@pytest.fixture(scope="module")
def inputs(make_prompt, make_features):
    """Three prompts padded on the left, videos at three places, one with masked frames."""
    prompts = [make_prompt(i, [[3]], before=2 + 3 * i) for i in range(3)]
    features = [make_features(i, frames) for i, frames in enumerate((4, 2, 3))]
    return collate_for_generation(prompts, features, FRAMES, 1)


@torch.no_grad()
def logits_of(model, attention, inputs, **kwargs):
    model.language_model.set_attn_implementation(attention)
    try:
        return model(**inputs, **kwargs).logits
    finally:
        model.language_model.set_attn_implementation(ATTENTION)


def test_the_formula(model, inputs):
    found = logits_of(model, ATTENTION, inputs)
    wanted = logits_of(model, REFERENCE, inputs)
    seen = inputs["attention_mask"].bool()
    # Some norms and rotary positions compute in float32 whatever the weights' type.
    torch.testing.assert_close(found[seen], wanted[seen], rtol=0, atol=1e-5)


def test_zero_gates_are_the_untouched_llm(kind, make_model, make_llm):
    """On a prompt of text alone, given as token ids to the LLM that nothing was done to."""
    model = make_model(kind=kind, llm=ARCHITECTURES[kind])
    for module in model.modules():
        if isinstance(module, AdapterLayer):
            module.gate.data.zero_()
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12, 13]])
    plain = make_llm(kind, **ARCHITECTURES[kind])
    plain.set_attn_implementation("eager")
    with torch.no_grad():
        found = model(ids, slot_index=torch.full_like(ids, -1)).logits
        wanted = plain(ids).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@torch.no_grad()
def score_alone(model, prompt, option, shown):
    """Mean log-likelihood of an option in a pass of its own, without slots that hold nothing."""
    path = [prompt.segments[0], prompt.segments[prompt.segments[option].parent]]
    pairs = [
        (token, slot)
        for segment in (*path, prompt.segments[option])
        for token, slot in zip(segment.ids, segment.slots, strict=True)
        if slot < len(shown)
    ]
    ids, slots = (torch.tensor([column]) for column in zip(*pairs, strict=True))
    logits = model(ids, slot_index=slots, features=shown[None]).logits[0].log_softmax(-1)
    count = len(prompt.segments[option].ids)
    places = torch.arange(ids.shape[1] - count, ids.shape[1])
    return logits[places - 1, ids[0, places]].mean()


def test_packed_scores_are_those_of_options_alone(model, make_prompt, make_features):
    prompts = [make_prompt(0, [[2, 3], [1, 6, 4]]), make_prompt(1, [[5, 2]], before=6)]
    features = [make_features(0), make_features(1, 2)]
    found = iter(model.score(collate(prompts, features, FRAMES)))
    for prompt, shown in zip(prompts, features, strict=True):
        for options in prompt.options:
            wanted = [score_alone(model, prompt, option, shown) for option in options]
            torch.testing.assert_close(next(found).double(), torch.stack(wanted), rtol=0, atol=1e-5)
    assert next(found, None) is None


@torch.no_grad()
def step_by_step(model, inputs, start, cache=None):
    """Logits of the tokens from `start` on, one pass each after a first pass of the rest."""
    mask, found = inputs["attention_mask"], []
    for first, last in [(0, start), *((i, i + 1) for i in range(start, mask.shape[1]))]:
        out = model(
            input_ids=inputs["input_ids"][:, first:last],
            slot_index=inputs["slot_index"],
            features=inputs["features"],
            attention_mask=mask[:, :last],
            past_key_values=cache,
            use_cache=True,
        )
        cache = out.past_key_values
        found.append(out.logits)
    return torch.cat(found[1:], 1)


@pytest.mark.parametrize("form", ["dynamic", "static"])
@pytest.mark.parametrize("start", [3, 12])
def test_cached_is_uncached(model, inputs, form, start):
    """From within the video, and from after it: the windows of 6 have let go of some keys."""
    cache = None
    if form == "static":
        text = model.language_model.config
        cache = StaticCache(config=text, max_cache_len=inputs["input_ids"].shape[1] + 3)
    found = step_by_step(model, inputs, start, cache)
    wanted = logits_of(model, ATTENTION, inputs)[:, start:]
    seen = inputs["attention_mask"][:, start:].bool()
    torch.testing.assert_close(found[seen], wanted[seen], rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_is_its_samples(model, inputs, side):
    rows = range(len(inputs["input_ids"]))
    given = {name: tensor.clone() for name, tensor in inputs.items()}
    sizes = [int((given["attention_mask"][row].cumsum(0) == 0).sum()) for row in rows]
    if side == "right":
        for name in ("input_ids", "slot_index", "attention_mask"):
            blank = -1 if name == "slot_index" else 0
            for row, size in zip(rows, sizes, strict=True):
                given[name][row] = torch.cat(
                    [inputs[name][row, size:], inputs[name].new_full((size,), blank)]
                )
    together = logits_of(model, ATTENTION, given)
    length = inputs["input_ids"].shape[1]
    for row, size in zip(rows, sizes, strict=True):
        alone = {
            name: tensor[row : row + 1, size:] if name != "features" else tensor[row : row + 1]
            for name, tensor in inputs.items()
        }
        wanted = logits_of(model, ATTENTION, alone)[0]
        found = together[row, size:] if side == "left" else together[row, : length - size]
        seen = alone["attention_mask"][0].bool()
        torch.testing.assert_close(found[seen], wanted[seen], rtol=0, atol=1e-5)


def test_gradients_are_where_they_belong(kind, make_model, inputs):
    model = make_model(kind=kind, llm=ARCHITECTURES[kind]).train()
    model(**inputs).logits.square().mean().backward()
    trained = dict(model.trainable_parameters())
    for name, parameter in model.named_parameters():
        if name in trained:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name
    expected = {"visual_proj.weight", "temporal_emb.weight"}
    assert {name for name in trained if "topa_adapter" not in name} == expected
    assert len(trained) == 2 + 3 * len(attention_modules(model.language_model))


@pytest.mark.parametrize("kind", ["llama", "gemma2", "phi3"])
def test_gradients_are_those_of_the_formula(kind, make_model, inputs):
    found, wanted = {}, {}
    for attention, gradients in ((ATTENTION, found), (REFERENCE, wanted)):
        model = make_model(kind=kind, llm=ARCHITECTURES[kind])
        model.language_model.set_attn_implementation(attention)
        logits = model(**inputs).logits[inputs["attention_mask"].bool()]
        logits.square().mean().backward()
        gradients.update({name: p.grad for name, p in model.trainable_parameters()})
    for name, gradient in wanted.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-5 * max(scale, 1))


def test_saved_and_loaded_it_is_the_same(kind, model, make_llm, inputs, tmp_path):
    from topa.model.language import Language

    model.save_pretrained(tmp_path)
    llm = make_llm(kind, **{"num_hidden_layers": 2, **ARCHITECTURES[kind]})
    loaded = TopaForConditionalGeneration.from_pretrained(
        tmp_path, language=Language(llm, None, "")
    ).double()
    found, wanted = (logits_of(one, ATTENTION, inputs) for one in (loaded, model))
    seen = inputs["attention_mask"].bool()
    torch.testing.assert_close(found[seen], wanted[seen], rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_16_bits_are_near_64(kind, dtype, make_model, inputs):
    exact = logits_of(make_model(kind=kind, llm=ARCHITECTURES[kind]), ATTENTION, inputs)
    half = make_model(kind=kind, llm=ARCHITECTURES[kind])
    half.language_model.to(dtype)
    given = {**inputs, "features": inputs["features"].float()}
    half.visual_proj.float()
    half.temporal_emb.float()
    found = logits_of(half, ATTENTION, given).double()
    seen = inputs["attention_mask"].bool()
    assert found[seen].isfinite().all()
    # Random weights of a standard deviation of 0.4 amplify the error of 8-bit mantissas.
    likeness = torch.nn.functional.cosine_similarity(found[seen], exact[seen], dim=-1)
    assert likeness.min() > 0.9


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_any_lengths_and_positions(kind, make_model, make_prompt, make_features):
    model = make_model(kind=kind, llm=ARCHITECTURES[kind])

    @settings(max_examples=12, deadline=None, database=None)
    @given(
        befores=st.lists(st.integers(0, 9), min_size=1, max_size=3),
        afters=st.lists(st.integers(1, 9), min_size=3, max_size=3),
        frames=st.lists(st.integers(0, FRAMES), min_size=3, max_size=3),
        seed=st.integers(0, 999),
    )
    def check(befores, afters, frames, seed):
        prompts = [make_prompt(seed + i, [[afters[i]]], n) for i, n in enumerate(befores)]
        features = [make_features(seed + i, frames[i]) for i in range(len(prompts))]
        given_ = collate_for_generation(prompts, features, FRAMES, 1)
        seen = given_["attention_mask"].bool()
        found = logits_of(model, ATTENTION, given_)
        wanted = logits_of(model, REFERENCE, given_)
        torch.testing.assert_close(found[seen], wanted[seen], rtol=0, atol=1e-5)

    check()


def test_several_videos_in_one_prompt(make_model, make_features):
    """Two videos: slots 4 to 7 are the second's, and its positions start at 0 again."""
    model = make_model()
    ids = torch.tensor([[5, *[0] * 4, 6, 7, *[0] * 4, 8, 9]])
    slots = torch.tensor([[-1, *range(4), -1, -1, *range(4, 8), -1, -1]])
    features = torch.stack([make_features(0), make_features(1)])[None]
    given_ = {
        "input_ids": ids,
        "slot_index": slots,
        "features": features,
        "attention_mask": torch.ones_like(ids),
    }
    found = logits_of(model, ATTENTION, given_)
    torch.testing.assert_close(found, logits_of(model, REFERENCE, given_), rtol=0, atol=1e-5)
    with torch.no_grad():
        video = model.embed(ids, slots, features)[0, slots[0] >= 0]
        wanted = [model.project_frames(features[:, number])[0] for number in range(2)]
    torch.testing.assert_close(video, torch.cat(wanted), rtol=0, atol=0)
    with pytest.raises(ConfigError, match=r"slots 0 to 7.*4 frames fill 4"):
        model(**{**given_, "features": features[:, 0]})


def test_the_text_half_of_an_llm_with_images(make_prompt, make_features):
    """Gemma 3 from 4B on comes with an image encoder around the same decoder."""
    shape = {
        "vocab_size": 61,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "sliding_window": 6,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    llm = AutoModelForCausalLM.from_config(Gemma3Config(text_config=shape, vision_config=vision))
    config = TopaConfig(llm.config, feature_dim=6, num_frames=FRAMES, adapter_length=3)
    model = TopaForConditionalGeneration(config, llm).eval().double()
    for _, parameter in model.trainable_parameters():
        parameter.data += torch.randn_like(parameter) * 0.5
    prompt, shown = make_prompt(0, [[2, 3], [1, 6, 4]]), make_features(0)
    found = model.score(collate([prompt], [shown], FRAMES))
    for options, scores in zip(prompt.options, found, strict=True):
        wanted = torch.stack([score_alone(model, prompt, option, shown) for option in options])
        torch.testing.assert_close(scores.double(), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("gpt2", r"GPT2Block.*attn \(GPT2Attention\)"),
        ("gpt_neox", r"GPTNeoXAttention"),
        ("bloom", r"bloom: its positions are biases of distances"),
        ("stablelm", r"StableLmAttention does not call attention functions"),
        ("gpt_oss", r"GptOssAttention has sinks"),
        ("diffllama", r"DiffLlamaAttention subtracts"),
        ("deepseek_v3", r"DeepseekV3Attention"),
        ("mamba", r"mamba: layers of kind"),
        ("gemma4_text", r"gemma4_text: its layers look up embeddings of the token ids"),
    ],
)
def test_unfit_architectures_are_refused_by_name(kind, named, make_llm):
    small = {"vocab_size_per_layer_input": 61} if kind == "gemma4_text" else {}
    llm = make_llm(kind, **small)
    with pytest.raises(ConfigError, match=named):
        TopaForConditionalGeneration(TopaConfig(llm.config), llm)


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("gpt2", "GPT2LMHeadModel: GPT2Model has no linear layers for LoRA"),
        ("gpt_oss", "GptOssAttention has sinks"),
        ("mpt", "mpt: its positions are biases of distances"),
    ],
)
def test_lora_refuses_at_load_what_it_cannot_have(kind, named, make_llm):
    llm = make_llm(kind)
    with pytest.raises(ConfigError, match=named):
        TopaForConditionalGeneration(TopaConfig(llm.config, variant="lora"), llm)


def test_an_adapter_longer_than_the_positions_is_refused(make_llm):
    llm = make_llm(max_position_embeddings=32)
    with pytest.raises(ConfigError, match="adapter_length: 33 tokens, the LLM has 32 positions"):
        TopaForConditionalGeneration(TopaConfig(llm.config, adapter_length=33), llm)


def test_a_prompt_longer_than_the_positions_is_refused(make_model):
    model = make_model(llm={"max_position_embeddings": 32})
    with pytest.raises(ConfigError, match="33 tokens, the LLM has 32 positions"):
        model(torch.ones(1, 33, dtype=torch.long))


def test_the_bias_is_as_strong_as_the_paper_says(make_model):
    """Equal keys: with g2 = -3.5 a slot gets exp(-3.5) of the weight of a token."""
    from topa.model.attention import VideoBias, attend

    query = torch.zeros(1, 2, 3, 8)
    key = torch.zeros(1, 2, 3, 8)
    value = torch.zeros(1, 2, 3, 8)
    value[..., 0, 0] = 1  # the slot
    bias = VideoBias(
        torch.tensor([-3.5, 0.0]),
        torch.tensor([[False, False, True]]),
        torch.tensor([[True, False, False]]),
    )
    out = attend(query, key, value, None, scaling=8**-0.5, bias=bias)[0, :, 2, 0]
    assert out[0] == pytest.approx(math.exp(-3.5) / (math.exp(-3.5) + 2))
    assert out[1] == pytest.approx(1 / 3)
