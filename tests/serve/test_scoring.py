"""Scores of many questions together are those of each question alone."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from topa.answer import METHODS, Topa
from topa.model.language import Language, fingerprint_of
from topa.serve.scoring import Asked, Scorer
from topa.serve.states import Beginning, Prefixes
from topa.train.align import build_model

CHOICES = [
    ("What is it?", ["a cat", "a cup of hot coffee on a red saucer"]),
    ("Which of the two men in the video is the taller one?", ["left", "right", "neither of them"]),
    ("Why?", ["it rains", "nobody knows"]),
]


def make_llm(kind: str, tokenizer) -> Language:
    """An LLM of two layers; Mistral's see the last 6 tokens only, so fewer than a prompt has."""
    extra = {"sliding_window": 6} if kind == "mistral" else {}
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **extra,
    )
    llm = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    return Language(llm, tokenizer, fingerprint_of(llm, kind))


@pytest.fixture(params=["llama adapter", "llama lora", "mistral adapter"])
def topa(request, align_config, encoder, tokenizer) -> Topa:
    """A model whose trained parts are not at their silent start."""
    kind, variant = request.param.split()
    section = align_config.model.model_copy(update={"variant": variant})
    config = align_config.model_copy(update={"model": section})
    model, builder = build_model(config, encoder, make_llm(kind, tokenizer))
    torch.manual_seed(0)
    with torch.no_grad():
        for _, parameter in model.trainable_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return Topa(model.eval(), builder, encoder, None)


@pytest.fixture
def asked(encoder, tideos) -> list[Asked]:
    """All questions about a video of 10 frames, two about one of 3."""
    texts = [frame.caption for tideo in tideos for frame in tideo.frames]
    features = encoder.encode_text(texts[:13])
    return [Asked("a", features[:10], CHOICES), Asked("b", features[10:], CHOICES[1:])]


@pytest.mark.parametrize("keep_slot_positions", [False, True])
@pytest.mark.parametrize("subtract_blind", [False, True])
@pytest.mark.parametrize("blind", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_scores_are_those_of_each_question_alone(
    topa, asked, method, blind, subtract_blind, keep_slot_positions
):
    if method == "similarity" and blind:
        pytest.skip("similarity has no blind form")
    topa.model.config.subtract_blind = subtract_blind
    topa.model.config.keep_slot_positions = keep_slot_positions
    scorer = Scorer(topa, Prefixes(topa.model), batch_rows=2)
    for _ in range(2):  # the second time all that can be kept is known
        found = scorer.score(asked, method, blind)
        for each, scores in zip(asked, found, strict=True):
            for choice, together in zip(each.choices, scores, strict=True):
                [[alone]] = topa.score([[choice]], [each.features], method=method, blind=blind)
                torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-3)


def test_the_video_is_read_once_for_options_and_answers(topa, asked):
    prefixes = Prefixes(topa.model)
    Scorer(topa, prefixes).score(asked[:1], "likelihood", blind=False)
    before = prefixes.reused
    prefixes.read([Beginning("a", asked[0].features, topa.builder.open("Who?"))])
    assert prefixes.reused == before + 1


def test_what_is_thought_without_the_video_is_kept(topa, asked):
    topa.model.config.subtract_blind = True
    prefixes = Prefixes(topa.model)
    scorer = Scorer(topa, prefixes)
    passes = []
    topa.model.language_model.get_decoder().register_forward_hook(lambda *_: passes.append(1))
    scorer.score(asked[:1], "likelihood", blind=False)
    assert len(passes) == 2  # beginnings, and the rest: with the video and without in one
    other = Asked("c", asked[1].features, asked[0].choices)
    scorer.score([other], "likelihood", blind=False)
    assert len(passes) == 4


def test_questions_of_any_number_go_through(topa, asked):
    one = Asked("a", asked[0].features, CHOICES[:1])
    scorer = Scorer(topa, Prefixes(topa.model, most=1), batch_rows=4)
    found = scorer.score([one] * 9, "likelihood", blind=False)
    [[alone]] = topa.score([CHOICES[:1]], [one.features], method="likelihood")
    assert len(found) == 9
    for [scores] in found:
        torch.testing.assert_close(scores, alone, rtol=1e-3, atol=1e-3)
