"""Frames said in words: matching pursuit over a dictionary, and the slots it fills."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from topa.errors import ConfigError
from topa.model.checkpoint import load_trainables, save_trainables
from topa.model.words import WordDictionary, collect_words
from topa.tideo.schema import Tideo


def dictionary_of(features: Tensor, tokens: list[list[int]]) -> WordDictionary:
    words = WordDictionary(len(features), features.shape[1])
    words.fill(features, tokens)
    return words


@settings(deadline=None)  # the time says nothing about the words
@given(seed=st.integers(0, 10_000), count=st.integers(1, 5))
def test_pursuit_finds_the_words_a_feature_is_made_of(seed: int, count: int) -> None:
    # Orthonormal words: the sparse sum is unique, and the largest weight is found first.
    generator = torch.Generator().manual_seed(seed)
    words = torch.linalg.qr(torch.randn(16, 16, generator=generator)).Q
    chosen = torch.randperm(16, generator=generator)[:count]
    weights = torch.arange(count, 0, -1, dtype=torch.float32)
    feature = F.normalize(weights @ words[chosen], dim=0)
    found = dictionary_of(words, [[i] for i in range(16)]).pursue(feature[None], count)
    assert found[0].tolist() == chosen.tolist()


def test_pursuit_takes_no_word_twice_even_when_two_have_the_same_feature() -> None:
    features = F.normalize(
        torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0.6, 0.8, 0], [0, 0, 1.0]]), dim=1
    )
    found = dictionary_of(features, [[0], [1], [2], [3]]).pursue(features[:1], 4)
    assert sorted(found[0].tolist()) == [0, 1, 2, 3]


def test_a_word_is_embedded_as_the_mean_of_its_own_tokens() -> None:
    words = dictionary_of(torch.eye(2), [[0], [1, 2]])
    embedding = torch.tensor([[1.0, 0], [0, 2.0], [4.0, 0]])
    # Token 0 is a token like any other; padding does not count.
    assert words.embed(torch.tensor([0, 1]), embedding).tolist() == [[1.0, 0.0], [2.0, 1.0]]


def test_a_dictionary_of_another_size_or_with_overlong_words_is_refused() -> None:
    words = WordDictionary(2, 3, max_tokens=2)
    with pytest.raises(ConfigError, match="3 words given for a dictionary of 2"):
        words.fill(torch.eye(3), [[1], [2], [3]])
    with pytest.raises(ConfigError, match="more than 2 tokens"):
        words.fill(torch.eye(3)[:2], [[1], [2, 3, 4]])


def test_words_are_those_of_several_frames_without_empty_ones(
    tideos: list[Tideo], tokenizer: PreTrainedTokenizerBase
) -> None:
    words = collect_words(tideos, tokenizer, least=2)
    texts = [" ".join(frame.texts).lower() for tideo in tideos for frame in tideo.frames]
    assert words
    assert not {"the", "a", "with"} & set(words)
    for word in words:
        assert sum(word in text for text in texts) >= 2
        assert len(tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) <= 4


def test_words_come_in_one_order_in_every_process() -> None:
    """Python's sets of strings have another order in each; every word here is as common."""
    script = """
from topa.model.words import collect_words
from topa.tideo.schema import Frame, Tideo
frames = [Frame(caption="alpha beta gamma delta epsilon zeta eta theta", objects=["iota"])] * 5
tideo = Tideo.model_construct(frames=frames)
def tokenizer(texts, **kwargs):
    return {"input_ids": [[0] for _ in texts]}
print(collect_words([tideo], tokenizer))
"""
    found = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
    assert "'alpha'" in found.pop()


def test_words_are_saved_and_loaded_with_the_model(make_model, tmp_path) -> None:
    settings = {"variant": "projector", "dictionary_size": 3, "slots_per_frame": 2}
    saved, loaded = make_model(**settings), make_model(**settings)
    features = F.normalize(torch.arange(18.0).view(3, 6) + torch.eye(3, 6), dim=1)
    saved.words.fill(features, [[5], [6, 7], [8, 9, 10]])
    save_trainables(saved, tmp_path)
    load_trainables(loaded, tmp_path)
    assert torch.equal(loaded.words.tokens, saved.words.tokens)
    frames = F.normalize(torch.ones(1, 2, 6, dtype=torch.float64), dim=-1)
    torch.testing.assert_close(loaded.project_frames(frames), saved.project_frames(frames))


def test_an_untrained_slot_is_the_llm_s_own_embedding_of_a_word(make_model) -> None:
    model = make_model(variant="projector", dictionary_size=2, slots_per_frame=1)
    model.visual_proj.weight.data.zero_()
    model.temporal_emb.weight.data.zero_()
    model.words.fill(torch.eye(2, 6), [[5], [6, 7]])
    slots = model.project_frames(torch.eye(2, 6, dtype=torch.float64)[None])
    embedding = model.get_input_embeddings().weight
    torch.testing.assert_close(slots[0, 0], embedding[5])
    torch.testing.assert_close(slots[0, 1], embedding[6:8].mean(0))
