"""Fine-tuning: what is started from, what is held out, what cannot be read."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from topa.config import FinetuneConfig, load_config
from topa.data.questions import VideoQuestion
from topa.errors import ConfigError, VideoError
from topa.model.checkpoint import read_config
from topa.runs import read_jsonl
from topa.train import finetune as tuning
from topa.train.align import build_model
from topa.train.finetune import finetune, key_of, split_videos


@pytest.fixture
def start(settings, hash_encoder, make_tiny_llm, tmp_path):
    """An untrained checkpoint of the tiny LLM."""
    model, _ = build_model(settings("model.variant=adapter"), hash_encoder, make_tiny_llm())
    with torch.no_grad():
        for _, parameter in model.trainable_parameters():
            parameter.add_(1.0)  # not what fresh ones are
    model.save_pretrained(tmp_path / "start")
    return tmp_path / "start"


@pytest.fixture
def tune(start, make_tiny_llm, monkeypatch, tmp_path):
    monkeypatch.setattr(tuning, "load_language", lambda *_: make_tiny_llm())

    def tune(*overrides, out="tuned", questions=None, **kwargs):
        config = load_config(
            FinetuneConfig,
            overrides=[
                f"start={start}",
                "data.validation=0.25",
                "data.tasks={choice: 1.0}",
                "train.max_steps=2",
                "train.batch_size=2",
                "train.log_every=1",
                *overrides,
                f"out={tmp_path / out}",
            ],
        )
        return finetune(
            config, make_questions() if questions is None else questions, load, **kwargs
        )

    return tune


def make_questions(videos: int = 8) -> list[VideoQuestion]:
    return [
        VideoQuestion(
            qid=f"{video}-{number}",
            video=f"v{video}",
            question="What is it?",
            options=["a cat", "a dog", "a cow"],
            answer=(video + number) % 3,
        )
        for video in range(videos)
        for number in range(2)
    ]


def load(question: VideoQuestion) -> torch.Tensor:
    if question.video == "v5":
        raise VideoError("cannot be opened", where="v5")
    return torch.nn.functional.normalize(torch.ones(3, 8) + float(question.video[1:]), dim=-1)


def trainables(folder):
    return load_file(folder / "model.safetensors")


def test_a_checkpoint_is_tuned_and_knows_how_it_was_taught(tune, start, tmp_path):
    said: list[str] = []
    result = tune(say=said.append)
    assert result.steps == 2
    assert "Left out: v5: cannot be opened" in said
    assert "2 of 16 questions have no video." in said
    before, after = trainables(start), trainables(result.checkpoint)
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert read_config(result.checkpoint).scoring == "selection"
    assert {"eval_accuracy", "eval_blind_accuracy", "eval_nll_choice"} <= result.metrics.keys()
    losses = [
        row["loss"] for _, row in read_jsonl(tmp_path / "tuned/metrics.jsonl") if "loss" in row
    ]
    assert len(losses) == 2
    again = tune()
    assert again == result


def test_from_scratch_takes_the_shape_alone(tune, start):
    still = ("train.learning_rate=1e-30", "train.weight_decay=0", "data.validation=0")
    kept = trainables(tune(*still, out="kept").checkpoint)
    fresh = trainables(tune(*still, "from_scratch=true", out="fresh").checkpoint)
    before = trainables(start)
    assert all(torch.equal(before[name], kept[name]) for name in before)
    assert all(not torch.equal(before[name], fresh[name]) for name in before)


def test_no_video_is_on_both_sides():
    questions = make_questions(20)
    chosen, held = split_videos(questions, 0.25, 0)
    assert len({q.video for q in held}) == 5
    assert not {q.video for q in chosen} & {q.video for q in held}
    assert sorted(q.qid for q in chosen + held) == sorted(q.qid for q in questions)
    assert split_videos(questions, 0.25, 0) == (chosen, held)
    with pytest.raises(ConfigError, match="no questions are left"):
        split_videos(make_questions(1), 0.9, 0)


def test_parts_of_a_video_are_kept_apart():
    question = make_questions(1)[0]
    part = question.model_copy(update={"start": 1.0, "end": 2.5})
    assert (key_of(question), key_of(part)) == ("v0", "v0@1.0-2.5")


def test_nothing_readable_is_an_error(tune):
    only = [question for question in make_questions() if question.video == "v5"]
    with pytest.raises(ConfigError, match="not one video could be read"):
        tune(questions=only)
