"""Operations and speeds, against PyTorch's own counter and plain division."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from topa.model.config import TopaConfig
from topa.model.topa import TopaForConditionalGeneration
from topa.train.meter import Meter, StepCost
from topa.train.plan import make_batch


def make_model(variant: str) -> TopaForConditionalGeneration:
    shape = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    config = TopaConfig(shape, variant=variant, feature_dim=768, adapter_length=8)
    return TopaForConditionalGeneration(config, LlamaForCausalLM(shape)).train()


@pytest.mark.parametrize("variant", ["adapter", "lora", "projector"])
def test_operations_are_those_that_pytorch_counts(variant):
    """Without padding. Attention is computed on whole squares, of which half is needed."""
    model = make_model(variant)
    size, length, labels = 3, 24, 8
    batch = make_batch(size, length, labels, "cpu")
    with FlopCounterMode(display=False) as counter:
        model.target_log_probs(batch).sum().backward()
    cost = StepCost(model)
    counted = cost.of(size, size * length, 2 * size * length**2, size * labels)
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_speeds_leave_pauses_out_and_count_no_padding(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("topa.train.meter.time.perf_counter", lambda: clock[0])
    model = make_model("projector")
    meter = Meter(StepCost(model), 1e9, torch.device("cpu"))
    segments = torch.tensor([[0, 0, 0, -1], [0, 0, -1, -1]])
    # The two have one token in common.
    computed = torch.tensor([0, 1, 2, 5])
    meter.count({"segment_ids": segments, "target_ids": torch.zeros(2), "tokens": computed})
    with meter.wait():
        clock[0] += 1.0
    with meter.pause():
        clock[0] += 100.0
    clock[0] += 3.0
    found = meter.read(lambda counts: counts, 1)
    expected = StepCost(model).of(2, 4, 9 + 4, 2) / 4.0 / 1e9
    assert found == pytest.approx(
        {
            "samples_per_second": 2 / 4,
            "tokens_per_second": 5 / 4,
            "padded_tokens_per_second": 8 / 4,
            "data_wait": 1 / 4,
            "mfu": expected,
        },
        rel=1e-3,
    )
    assert meter.counts.sum() == 0
