"""The closed-form start: a ridge regression to token embeddings, of their usual length."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from topa.data.templates import PromptBuilder
from topa.features.store import encode_tideos
from topa.model.config import TopaConfig
from topa.model.topa import TopaForConditionalGeneration
from topa.tideo.schema import Frame
from topa.train.start import ridge, slot_texts, start_projector, start_words

FRAME = Frame(caption="a man runs", objects=["a man", "a road", "a dog"])


@pytest.mark.parametrize(
    ("slots", "texts"),
    [
        (1, ["a man runs a man a road a dog"]),
        (2, ["a man runs", "a man a road a dog"]),
        (3, ["a man runs", "a man a dog", "a road"]),
        (5, ["a man runs", "a man", "a road", "a dog", "a man runs"]),
    ],
)
def test_slots_share_the_texts_of_a_frame(slots, texts):
    assert slot_texts(FRAME, slots) == texts


def test_ridge_is_least_squares_with_a_penalty():
    """As an ordinary least-squares problem with sqrt(strength) times the identity below."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    targets = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    stacked = np.vstack([inputs.numpy(), np.sqrt(2.5) * np.eye(4)])
    padded = np.vstack([targets.numpy(), np.zeros((4, 3))])
    wanted = np.linalg.lstsq(stacked, padded, rcond=None)[0]
    np.testing.assert_allclose(
        ridge(inputs.T @ inputs, inputs.T @ targets, 2.5).numpy(), wanted, atol=1e-10
    )


class WordEncoder:
    """A text is the direction of its mean token embedding, so that a projector can be right."""

    fingerprint = "words"

    def __init__(self, embedding, tokenizer):
        self.embedding, self.tokenizer, self.dim = embedding, tokenizer, embedding.shape[1]

    def encode_text(self, texts, *, progress=None):
        rows = [self.embedding[self.tokenizer(f" {text}")["input_ids"]].mean(0) for text in texts]
        return torch.nn.functional.normalize(torch.stack(rows), dim=-1)


@pytest.mark.parametrize("slots", [1, 2])
def test_frames_start_near_the_tokens_of_their_texts(slots, tiny_llm, tideos, monkeypatch):
    table = tiny_llm.model.get_input_embeddings().weight.detach()
    encoder = WordEncoder(table, tiny_llm.tokenizer)
    features = encode_tideos(tideos, encoder, cache=False)
    config = TopaConfig(
        tiny_llm.model.config, feature_dim=encoder.dim, num_frames=4, slots_per_frame=slots
    )
    model = TopaForConditionalGeneration(config, tiny_llm.model)
    builder = PromptBuilder(tiny_llm.tokenizer, config.num_slots)
    explained = start_projector(model, builder, tideos, features)
    assert 0.3 < explained < 1
    monkeypatch.setattr("topa.train.start._CHUNK", 5)
    monkeypatch.setattr("topa.train.start._ROWS", 7)
    weight = model.visual_proj.weight.detach().clone()
    assert start_projector(model, builder, tideos, features) == pytest.approx(explained, rel=1e-9)
    torch.testing.assert_close(model.visual_proj.weight.detach(), weight)
    embedding = model.get_input_embeddings().weight
    with torch.no_grad():
        placed = model.visual_proj(features.frames).view(len(features.frames), slots, -1)
    # As long as token embeddings are.
    length = float(embedding.norm(dim=1).mean())
    assert float(placed.norm(dim=-1).mean()) == pytest.approx(length, rel=1e-4)
    # Nearer to its own texts than to those of another frame.
    frames = [frame for tideo in tideos for frame in tideo.frames]
    texts = torch.stack(
        [
            torch.stack(
                [
                    embedding[list(builder.tokenize(f" {text}"))].mean(0)
                    for text in slot_texts(frame, slots)
                ]
            )
            for frame in frames
        ]
    )
    texts = texts - texts.mean(0)
    similar = torch.nn.functional.cosine_similarity
    own = similar(placed, texts, dim=-1).mean()
    other = similar(placed, texts.roll(7, 0), dim=-1).mean()
    assert own > other + 0.1


def test_words_fill_the_dictionary_and_the_projector_adds_nothing(tiny_llm, hash_encoder):
    words = ["kite", "road", "dog"]
    config = TopaConfig(tiny_llm.model.config, feature_dim=8, num_frames=4, dictionary_size=3)
    model = TopaForConditionalGeneration(config, tiny_llm.model)
    builder = PromptBuilder(tiny_llm.tokenizer, config.num_slots)
    start_words(model, builder, words, hash_encoder)
    torch.testing.assert_close(model.words.features, hash_encoder.encode_text(words))
    with torch.no_grad():
        slots = model.project_frames(hash_encoder.encode_text(words)[None])[0]
    embedding = model.get_input_embeddings().weight
    for word, slot in zip(words, slots, strict=True):
        mean = embedding[list(builder.tokenize(f" {word}"))].mean(0)
        similar = torch.nn.functional.cosine_similarity(slot, mean, dim=0)
        assert float(similar) == pytest.approx(1, abs=1e-5)
