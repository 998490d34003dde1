"""Accuracies on validation Tideos, against a plain loop over questions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from topa.data.templates import PromptBuilder
from topa.features.store import encode_tideos, sample_rows
from topa.model.config import TopaConfig
from topa.model.scoring import score_options
from topa.model.topa import TopaForConditionalGeneration
from topa.train.validation import Share, Validation

TASKS = {"contrast": 1.0}


@pytest.fixture
def parts(tiny_llm, tideos, hash_encoder):
    config = TopaConfig(tiny_llm.model.config, variant="projector", feature_dim=8, num_frames=4)
    model = TopaForConditionalGeneration(config, tiny_llm.model).eval()
    model.visual_proj.weight.data.normal_()
    builder = PromptBuilder(tiny_llm.tokenizer, 4)
    return model, builder, tideos[:5], encode_tideos(tideos[:5], hash_encoder, cache=False)


def test_accuracies_are_those_of_a_plain_loop(parts):
    model, builder, tideos, features = parts
    found = Validation.of_tideos(tideos, features, builder, 4, TASKS, batch_size=2).measure(model)
    right = {"accuracy": 0, "raw_accuracy": 0, "blind_accuracy": 0}
    total = 0
    for i, tideo in enumerate(tideos):
        shown = features.of(i)[sample_rows(len(tideo.frames), 4)]
        for qa in tideo.qas:
            prompt = builder.likelihood([(qa.question, qa.options)])
            [[seen]] = score_options(model, [prompt], [shown])
            [[blind]] = score_options(model, [prompt], [shown[:0]])
            for name, scores in zip(right, (seen - blind, seen, blind), strict=True):
                right[name] += int(scores.argmax()) == qa.answer
            total += 1
    assert found == {name: count / total for name, count in right.items()}
    assert 0 < found["blind_accuracy"] < 1


def test_the_order_of_the_tideos_does_not_matter(parts):
    model, builder, tideos, features = parts
    first = Validation.of_tideos(tideos, features, builder, 4, TASKS, batch_size=2).measure(model)
    again = Validation.of_tideos(
        tideos[::-1], reverse(features), builder, 4, TASKS, batch_size=3
    ).measure(model)
    assert first == again


@pytest.mark.parametrize("processes", [2, 3, 7])
@pytest.mark.parametrize("tasks", [TASKS, {"choice": 0.5, "caption": 0.5}], ids=str)
def test_processes_that_share_it_find_what_one_finds(parts, processes, tasks):
    """Also where some have a batch less; each makes as many passes as the others."""
    model, builder, tideos, features = parts
    validation = Validation.of_tideos(tideos, features, builder, 4, tasks, batch_size=2)
    whole = validation.measure(model)
    counts, passes = [], []

    def keep(count):
        counts.append(count)
        return count

    plain = model.target_log_probs
    for rank in range(processes):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                model,
                "target_log_probs",
                lambda batch, rank=rank: passes.append(rank) or plain(batch),
            )
            validation.measure(model, Share(rank, processes, keep))
    assert len({passes.count(rank) for rank in range(processes)}) == 1
    total = torch.stack(counts).sum(0)
    shared = validation.measure(model, Share(add_up=lambda _: total))
    assert shared == pytest.approx(whole, rel=1e-12)
    for name in ("accuracy", "raw_accuracy", "blind_accuracy"):
        assert shared[name] == whole[name]


def reverse(features):
    order = [features.of(i) for i in reversed(range(len(features)))]
    lengths = torch.tensor([0, *(len(frames) for frames in order)])
    return replace(features, frames=torch.cat(order), frame_offsets=lengths.cumsum(0))
