"""Packed prompts against one plain causal pass per option, and generation against a plain loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from topa.data.collate import collate, collate_for_generation
from topa.data.templates import Prompt
from topa.errors import ConfigError
from topa.model.config import TopaConfig
from topa.model.scoring import score_options
from topa.model.topa import TopaForConditionalGeneration

FRAMES = 4
KINDS = ["llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "mistral"]
SCALED = {"granite": {"logits_scaling": 3.0}, "cohere": {"logit_scale": 0.3}}


def path_to(prompt: Prompt, segment: int) -> list[int]:
    """Return the segments from the root to one."""
    path = []
    while segment >= 0:
        path.insert(0, segment)
        segment = prompt.segments[segment].parent
    return path


@torch.no_grad()
def score_alone(model, prompt, features, option):
    """Mean log-likelihood of one option in a causal pass of its own, absent frames left out."""
    shown = len(features) * model.config.slots_per_frame
    path = [prompt.segments[i] for i in path_to(prompt, option)]
    tokens = [
        (token, slot, segment is path[-1])
        for segment in path
        for token, slot in zip(segment.ids, segment.slots, strict=True)
        if slot < shown
    ]
    ids = torch.tensor([[token for token, _, _ in tokens]])
    slots = torch.tensor([[slot for _, slot, _ in tokens]])
    video = features[None] if len(features) else None
    log_probs = model(ids, slot_index=slots, features=video).logits.log_softmax(-1)
    right = [i for i, (_, _, is_label) in enumerate(tokens) if is_label]
    return torch.stack([log_probs[0, i - 1, ids[0, i]] for i in right]).mean()


def assert_scores_are_those_alone(model, prompts, features, found):
    for prompt, shown, questions in zip(prompts, features, found, strict=True):
        for options, scores in zip(prompt.options, questions, strict=True):
            alone = torch.stack([score_alone(model, prompt, shown, i) for i in options])
            torch.testing.assert_close(scores.double(), alone, rtol=0, atol=1e-5)


QUESTIONS = st.lists(st.lists(st.integers(1, 5), min_size=2, max_size=4), min_size=1, max_size=3)


@pytest.mark.parametrize("variant", ["adapter", "lora", "projector"])
def test_packed_options_score_as_each_alone(variant, make_model, make_prompt, make_features):
    model = make_model(variant)

    @settings(max_examples=15, deadline=None, database=None)
    @given(
        shapes=st.lists(st.tuples(QUESTIONS, st.integers(1, 6)), min_size=1, max_size=3),
        frames=st.lists(st.integers(0, FRAMES), min_size=3, max_size=3),
        seed=st.integers(0, 1000),
    )
    def check(shapes, frames, seed):
        prompts = [
            make_prompt(seed + i, questions, before) for i, (questions, before) in enumerate(shapes)
        ]
        features = [make_features(seed + i, n) for i, n in enumerate(frames[: len(prompts)])]
        found = score_options(model, prompts, features)
        assert_scores_are_those_alone(model, prompts, features, found)

    check()


@pytest.mark.parametrize("kind", [*KINDS, *SCALED])
def test_packed_options_score_as_each_alone_in(kind, make_model, make_prompt, make_features):
    model = make_model(kind=kind, llm=SCALED.get(kind))
    prompts = [make_prompt(0, [[2, 3], [1, 1, 4]]), make_prompt(1, [[5, 2]], before=6)]
    features = [make_features(0), make_features(1, 2)]
    found = score_options(model, prompts, features)
    assert_scores_are_those_alone(model, prompts, features, found)


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text", "mistral"])
def test_sliding_windows_hold_in_packed_prompts(kind, make_model, make_prompt, make_features):
    model = make_model(kind=kind, llm={"sliding_window": 5})
    prompts = [make_prompt(0, [[2, 3], [1, 6, 4]]), make_prompt(1, [[5, 2]], before=6)]
    features = [make_features(0), make_features(1)]
    found = score_options(model, prompts, features)
    assert_scores_are_those_alone(model, prompts, features, found)


def test_several_slots_per_frame(make_model, make_prompt, make_features):
    model = make_model(slots_per_frame=3)
    prompts = [make_prompt(0, [[2, 3]], slots=12), make_prompt(1, [[1, 4]], slots=12)]
    features = [make_features(0), make_features(1, 2)]
    found = score_options(model, prompts, features)
    assert_scores_are_those_alone(model, prompts, features, found)


def test_each_sample_keeps_its_own_video_position(make_model, make_prompt, make_features):
    """The official code takes the first sample's video position for the whole batch."""
    model = make_model()
    prompts = [make_prompt(i, [[2, 3]], before=1 + 4 * i) for i in range(3)]
    features = [make_features(i) for i in range(3)]
    together = score_options(model, prompts, features, batch_size=3)
    for i in range(3):
        [single] = score_options(model, prompts[i : i + 1], features[i : i + 1])
        torch.testing.assert_close(together[i], single, rtol=0, atol=1e-6)
    moved = score_options(model, prompts[::-1], features[::-1])[::-1]
    torch.testing.assert_close(together, moved, rtol=0, atol=1e-6)


def test_padding_does_not_matter(make_model, make_prompt, make_features):
    model = make_model()
    prompt, features = make_prompt(0, [[2, 3], [1, 2]]), make_features(0, 3)
    with torch.no_grad():
        short, long = (
            model.target_log_probs(collate([prompt], [features], FRAMES, multiple))
            for multiple in (1, 64)
        )
    torch.testing.assert_close(short, long, rtol=0, atol=1e-6)


def test_what_masked_frames_hold_does_not_matter(make_model, make_prompt, make_features):
    """Padding goes nowhere; the official code turned it into the mean of the memory."""
    model, prompt = make_model(), make_prompt(0, [[2, 3]])
    batch = collate([prompt], [make_features(0, 2)], FRAMES)
    with torch.no_grad():
        before = model.target_log_probs(batch)
        batch.features[:, 2:] = 100.0
        torch.testing.assert_close(model.target_log_probs(batch), before, rtol=0, atol=0)
        batch.frame_mask[:] = True
        assert not torch.allclose(model.target_log_probs(batch), before)


def test_blind_is_the_same_as_no_frames(make_model, make_prompt, make_features):
    model, prompt = make_model(), make_prompt(0, [[2, 3]])
    blind = score_options(model, [prompt], [make_features(0)], blind=True)
    none = score_options(model, [prompt], [make_features(0)[:0]])
    torch.testing.assert_close(blind, none, rtol=0, atol=0)
    assert not torch.allclose(blind[0][0], score_options(model, [prompt], [make_features(0)])[0][0])


def test_the_order_of_frames_matters(make_model, make_prompt, make_features):
    model, prompt, features = make_model(), make_prompt(0, [[2, 3]]), make_features(0)
    forward, backward = score_options(model, [prompt] * 2, [features, features.flip(0)])
    assert not torch.allclose(forward[0], backward[0])


def test_gradients_reach_the_trainables_alone(make_model, make_prompt, make_features):
    for variant in ("adapter", "lora", "projector"):
        model = make_model(variant)
        batch = collate([make_prompt(0, [[2, 3]])], [make_features(0)], FRAMES)
        model.target_log_probs(batch).sum().backward()
        trained = dict(model.trainable_parameters())
        assert {"visual_proj.weight", "temporal_emb.weight"} <= set(trained)
        for name, parameter in model.named_parameters():
            reached = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
            assert reached == (name in trained), name
        extra = {"adapter": "topa_adapter", "lora": "lora_", "projector": "\0"}[variant]
        others = [name for name in trained if name.startswith("language_model.")]
        assert all(extra in name for name in others)
        assert bool(others) == (variant != "projector")


def test_a_model_in_training_has_no_dropout_of_the_llm(make_model, make_prompt, make_features):
    for variant in ("adapter", "lora"):
        model = make_model(variant, llm={"attention_dropout": 0.5}).train()
        batch = collate([make_prompt(0, [[2, 3]])], [make_features(0)], FRAMES)
        first, second = model.target_log_probs(batch), model.target_log_probs(batch)
        torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_features_that_do_not_fit_are_refused(make_model, make_features):
    model = make_model()
    with pytest.raises(ConfigError, match="5 frames given, the model has 4 temporal slots"):
        model.project_frames(make_features(0, 5)[None])
    with pytest.raises(ConfigError, match="width 3, the model was made for 6"):
        model.project_frames(torch.zeros(1, 4, 3))


def test_an_unknown_scale_of_the_logits_is_refused(make_llm):
    llm = make_llm()
    llm.config.logits_scaling = 2.0
    with pytest.raises(ConfigError, match="logits_scaling"):
        TopaForConditionalGeneration(TopaConfig(llm.config), llm)


# Generation -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def open_prompt(make_root, add_text):
    def make(seed: int, before: int, length: int) -> Prompt:
        generator = torch.Generator().manual_seed(seed)
        prompt = make_root(generator, before)
        add_text(prompt, 0, length, generator)
        return prompt

    return make


@torch.no_grad()
def continue_plainly(model, prompt, features, count):
    """Greedy decoding without a cache, absent frames left out: the whole text again each time."""
    pairs = [
        (token, slot)
        for segment in prompt.segments
        for token, slot in zip(segment.ids, segment.slots, strict=True)
        if slot < len(features)
    ]
    ids, slots = [a for a, _ in pairs], [b for _, b in pairs]
    video, new = (features[None] if len(features) else None), []
    for _ in range(count):
        logits = model(torch.tensor([ids]), slot_index=torch.tensor([slots]), features=video).logits
        new.append(int(logits[0, -1].argmax()))
        ids, slots = [*ids, new[-1]], [*slots, -1]
    return new


def generate(model, prompts, features, count=8, **kwargs):
    inputs = collate_for_generation(prompts, features, FRAMES, model.config.slots_per_frame)
    kwargs = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, **kwargs}
    tokens = model.generate(**inputs, max_new_tokens=count, **kwargs)
    return tokens[:, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("variant", ["adapter", "lora", "projector"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma", "gemma2", "gemma3_text"])
def test_generating_with_a_cache_is_the_plain_loop(
    variant, kind, make_model, open_prompt, make_features
):
    model = make_model(variant, kind)
    prompt, features = open_prompt(0, 3, 4), make_features(0)
    [found] = generate(model, [prompt], [features])
    assert found == continue_plainly(model, prompt, features, 8)


@pytest.mark.parametrize("variant", ["adapter", "lora"])
def test_a_batch_generates_what_each_prompt_does_alone(
    variant, make_model, open_prompt, make_features
):
    """Padding on the left, videos at different positions, missing frames, a blind prompt."""
    model = make_model(variant)
    prompts = [open_prompt(i, 1 + 3 * i, 2 + i) for i in range(4)]
    features = [make_features(i, n) for i, n in enumerate((4, 2, 3, 0))]
    found = generate(model, prompts, features)
    for prompt, shown, tokens in zip(prompts, features, found, strict=True):
        assert tokens == continue_plainly(model, prompt, shown, 8)


def test_beams_find_nothing_less_likely_than_greedy(make_model, open_prompt, make_features):
    model = make_model()
    prompts = [open_prompt(i, 3 + i, 4) for i in range(2)]
    features = [make_features(0), make_features(1, 2)]
    beams = generate(model, prompts, features, num_beams=4)
    greedy = generate(model, prompts, features)
    one = generate(model, prompts, features, num_beams=1)
    assert one == greedy
    for i, prompt in enumerate(prompts):
        likely = [log_likelihood(model, prompt, features[i], x[i]) for x in (beams, greedy)]
        assert likely[0] >= likely[1] - 1e-6


@torch.no_grad()
def log_likelihood(model, prompt, features, tokens):
    inputs = collate_for_generation([prompt], [features], FRAMES, 1)
    ids = torch.cat([inputs["input_ids"], torch.tensor([tokens])], 1)
    extra = torch.ones(1, len(tokens), dtype=torch.long)
    logits = model(
        ids,
        slot_index=torch.cat([inputs["slot_index"], -extra], 1),
        features=inputs["features"],
        attention_mask=torch.cat([inputs["attention_mask"], extra], 1),
    ).logits
    places = range(ids.shape[1] - len(tokens) - 1, ids.shape[1] - 1)
    return sum(float(logits[0, p].log_softmax(-1)[t]) for p, t in zip(places, tokens, strict=True))


def test_labels_give_the_usual_loss(make_model, open_prompt, make_features):
    model, prompt = make_model(), open_prompt(0, 3, 6)
    inputs = collate_for_generation([prompt], [make_features(0)], FRAMES, 1)
    labels = inputs["input_ids"].clone()
    labels[:, :-3] = -100
    with torch.no_grad():
        out = model(**inputs, labels=labels)
    wanted = torch.nn.functional.cross_entropy(out.logits[0, -4:-1], labels[0, -3:])
    torch.testing.assert_close(out.loss.double(), wanted, rtol=0, atol=1e-6)
