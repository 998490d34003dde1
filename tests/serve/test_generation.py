"""Answers written together are those written alone."""

from __future__ import annotations

import pytest
import torch

from topa.answer import Topa
from topa.serve.generation import Generation, Request
from topa.serve.states import Beginning, Prefixes
from topa.serve.writing import Sampling, Writer
from topa.train.align import build_model

QUESTIONS = ["What is it?", "Which of the two men in the video is the taller one?", "Why?"]


@pytest.fixture(params=["adapter", "lora"])
def model(request, align_config, encoder, make_tiny_llm) -> Topa:
    """A model whose trained parts are not at their silent start."""
    section = align_config.model.model_copy(update={"variant": request.param})
    config = align_config.model_copy(update={"model": section})
    torch.manual_seed(0)
    model, builder = build_model(config, encoder, make_tiny_llm())
    with torch.no_grad():
        for _, parameter in model.trainable_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return Topa(model.eval(), builder, encoder, None)


@pytest.fixture
def videos(encoder, tideos):
    """Features of four videos: 10, 3 and 5 frames, and one that is masked."""
    texts = [frame.caption for tideo in tideos for frame in tideo.frames]
    features = encoder.encode_text(texts[:18])
    return [features[:10], features[10:13], features[13:18], features[:0]]


def start(topa, question, features, key, sampling=None, answers=1) -> Request:
    prompt = topa.builder.open(question)
    ids = [token for segment in prompt.segments for token in segment.ids]
    tokenizer, eos = topa.builder.tokenizer, topa.builder.eos_id
    writers = [Writer(tokenizer, eos, ids, sampling or Sampling(12)) for _ in range(answers)]
    return Request(Beginning(key, features, prompt), writers)


class Reader:
    """Collects what is written."""

    def __init__(self, generation: Generation):
        self.generation = generation
        self.seen: list[Writer] = []  # kept, or another writer could get the id of one that is gone
        self.texts: dict[int, str] = {}
        self.reasons: dict[int, str] = {}

    def take(self, written) -> None:
        for writer, piece in written:
            self.seen.append(writer)
            self.texts[id(writer)] = self.texts.get(id(writer), "") + piece.text
            if piece.finish:
                self.reasons[id(writer)] = piece.finish
        self.generation.leave([writer for writer, piece in written if piece.finish])

    def finish(self) -> None:
        while self.generation.writers:
            self.take(self.generation.step())

    def text(self, request: Request, answer: int = 0) -> str:
        return self.texts[id(request.writers[answer])]


def test_rows_that_join_and_leave_at_any_time_write_what_each_writes_alone(model, videos):
    generation = Generation(model.model, Prefixes(model.model))
    reader = Reader(generation)
    requests = [
        start(model, question, features, number, Sampling(6 + 3 * number))
        for number, (question, features) in enumerate(
            zip([*QUESTIONS, "Who?"], videos, strict=True)
        )
    ]
    reader.take(generation.join(requests[:2]))
    for _ in range(3):
        reader.take(generation.step())
    reader.take(generation.join(requests[2:]))
    reader.finish()
    for number, (request, question) in enumerate(zip(requests, [*QUESTIONS, "Who?"], strict=True)):
        prompt = model.builder.open(question)
        [alone] = model.generate([prompt], [videos[number]], 6 + 3 * number)
        assert reader.text(request) == alone


def test_a_video_is_read_once_for_several_questions(model, videos):
    prefixes = Prefixes(model.model)
    generation = Generation(model.model, prefixes)
    reader = Reader(generation)
    reader.take(generation.join([start(model, "First?", videos[0], "a")]))
    reader.finish()
    requests = [start(model, question, videos[0], "a") for question in QUESTIONS]
    other = start(model, QUESTIONS[0], videos[1], "b")
    reader.take(generation.join([*requests, other]))
    reader.finish()
    assert prefixes.reused == 3
    for request, question in zip(requests, QUESTIONS, strict=True):
        prompt = model.builder.open(question)
        assert reader.text(request) == model.generate([prompt], [videos[0]], 12)[0]
    prompt = model.builder.open(QUESTIONS[0])
    assert reader.text(other) == model.generate([prompt], [videos[1]], 12)[0]


def test_several_answers_share_one_prompt(model, videos):
    generation = Generation(model.model, Prefixes(model.model))
    reader = Reader(generation)
    request = start(model, QUESTIONS[0], videos[0], "a", answers=3)
    reader.take(generation.join([request]))
    assert len(generation.writers) == 3
    reader.finish()
    alone = model.generate([model.builder.open(QUESTIONS[0])], [videos[0]], 12)[0]
    assert [reader.text(request, k) for k in range(3)] == [alone] * 3


def test_old_videos_are_forgotten(model, videos):
    prefixes = Prefixes(model.model, most=1)
    for key in ("a", "b", "a"):
        prefixes.read([start(model, "What?", videos[0], key).beginning])
    assert prefixes.reused == 0
    prefixes.read([start(model, "Who?", videos[0], "a").beginning])
    assert prefixes.reused == 1


def test_a_masked_video_is_read_once_whichever_it_is(model, videos):
    prefixes = Prefixes(model.model)
    state = prefixes.read([start(model, "Who?", videos[3], key).beginning for key in ("a", "b")])
    assert prefixes.reused == 1
    assert state.mask.shape[0] == 2
    assert not state.mask[state.slots >= 0].any()


def test_a_seed_makes_the_same_draws(model, videos):
    texts = []
    for seed in (1, 1, 2):
        generation = Generation(model.model, Prefixes(model.model))
        reader = Reader(generation)
        sampling = Sampling(10, temperature=1.0, top_p=0.95, seed=seed)
        request = start(model, "What?", videos[0], "a", sampling)
        reader.take(generation.join([request]))
        reader.finish()
        texts.append(reader.text(request))
    assert texts[0] == texts[1] != texts[2]
