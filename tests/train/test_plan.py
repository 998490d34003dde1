"""Plans: known sizes of known LLMs, and counts against a real run."""

from __future__ import annotations

import pytest

from topa.errors import ConfigError
from topa.train.plan import check_plan, plan, read_shape


def test_the_count_without_memory_is_that_of_a_real_run():
    """Both add up what autograd keeps; one of them computes."""
    for row in check_plan((1, 3)):
        assert row["ratio"] == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(
    ("llm", "weights"),
    # As their publishers give them.
    [("llama2-7b", 6_738_415_616), ("llama2-13b", 13_015_864_320), ("llama3-8b", 8_030_261_248)],
)
def test_the_papers_llms_have_their_known_sizes(llm, weights):
    found = plan(llm, gpus=1, gpu_memory=80, batch_size=1)
    assert found.frozen_weights == weights
    assert found.memory.frozen == 2 * weights  # bfloat16
    width = read_shape(llm).hidden_size
    layers, heads = read_shape(llm).num_hidden_layers, read_shape(llm).num_attention_heads
    assert found.trained_weights == 768 * width + 10 * width + layers * (50 * width + 2 * heads)


def test_what_fits_is_chosen_in_the_order_of_speed():
    def way(gpus, gpu_memory):
        found = plan("llama2-7b", gpus=gpus, gpu_memory=gpu_memory)
        return found.parallel, found.recompute, found.fits

    assert way(4, 80) == ("ddp", False, True)
    assert way(4, 22) == ("ddp", True, True)
    assert way(4, 10) == ("fsdp", True, True)
    assert way(1, 10) == ("ddp", True, False)


def test_time_goes_with_work_and_machines():
    one = plan("embedded", gpus=1, gpu_memory=80)
    two = plan("embedded", gpus=2, gpu_memory=80, epochs=40)
    assert two.hours == pytest.approx(one.hours)
    assert two.operations == pytest.approx(2 * one.operations)


def test_an_unknown_llm_and_impossible_numbers_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="llama2-7b"):
        read_shape(str(tmp_path))
    with pytest.raises(ConfigError, match="above 0"):
        plan("embedded", gpus=1, gpu_memory=80, mfu=0.0)
