"""The step by other ways: activations computed again, compiled, in 16 bits, with workers."""

from __future__ import annotations

import pytest
import torch

from topa.data.dataset import TideoDataset
from topa.features.store import encode_tideos
from topa.runs import read_jsonl
from topa.train.align import build_model
from topa.train.step import StepModel
from topa.train.trainer import SampleCollator


@pytest.fixture
def make_step(settings, tideos, hash_encoder, make_tiny_llm):
    """Makes a model of a variant whose every part has a gradient, and a batch for it."""

    def make(variant, recompute):
        config = settings(f"model.variant={variant}", "model.adapter_length=4")
        model, builder = build_model(config, hash_encoder, make_tiny_llm())
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for _, parameter in model.trainable_parameters():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        features = encode_tideos(tideos, hash_encoder, cache=False)
        dataset = TideoDataset(tideos, features, builder, num_frames=4, tasks=config.data.tasks)
        inputs = SampleCollator(4)([dataset[i] for i in range(4)])
        inputs.pop("blind")
        return StepModel(model, recompute=recompute).train(), inputs

    return make


@pytest.mark.parametrize("variant", ["adapter", "lora", "projector"])
def test_what_is_computed_again_is_the_same(variant, make_step):
    """Log-probabilities and gradients to the bit; the layers do run twice."""
    found = []
    for recompute in (False, True):
        step, inputs = make_step(variant, recompute)
        passes = []
        norm = step.topa.language_model.get_decoder().layers[0].input_layernorm
        norm.register_forward_hook(lambda *_, passes=passes: passes.append(1))
        log_probs = step(**inputs)
        log_probs.sum().backward()
        assert len(passes) == 1 + recompute
        gradients = {name: p.grad for name, p in step.topa.trainable_parameters()}
        found.append((log_probs.detach(), gradients))
    (first, before), (again, after) = found
    assert torch.equal(first, again)
    assert before.keys() == after.keys()
    for name, gradient in before.items():
        assert gradient is not None
        assert torch.equal(gradient, after[name]), name
        assert gradient.abs().sum() > 0, name


def losses(out):
    return [row["loss"] for _, row in read_jsonl(out / "metrics.jsonl") if "loss" in row]


SHORT = ("train.max_steps=3", "train.log_every=1", "data.validation=0")


def test_recompute_and_workers_change_nothing(settings, run, tmp_path):
    """Workers draw the samples of the right epoch: 12 Tideos are 3 steps, the 4th is the next."""
    ways = {"plain": (), "recompute": ("train.recompute=true",), "workers": ("train.workers=2",)}
    for name, way in ways.items():
        steps = ("train.max_steps=4", "train.batch_size=4", "train.accumulation=1")
        run(settings(*SHORT, *steps, *way, out=name))
    plain = losses(tmp_path / "plain")
    assert len(plain) == 4
    assert losses(tmp_path / "recompute") == plain
    assert losses(tmp_path / "workers") == plain


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("variant", ["adapter", "lora"])
def test_a_compiled_model_trains_alike(variant, settings, run, tmp_path):
    """Needs a C++ compiler; fused operations round differently."""
    way = (*SHORT, f"model.variant={variant}", "model.adapter_length=4")
    run(settings(*way, out="plain"))
    run(settings(*way, "train.compile=true", out="compiled"))
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-3)
