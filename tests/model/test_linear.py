"""Linear layers for few rows: other products, the same values."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from topa.model.language import load_language
from topa.model.linear import FEW_ROWS, FewRowsLinear, speed_few_rows


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1,), (1, 1), (2, 1), (2, 2), (3, 1), (FEW_ROWS + 1, 2), (0, 2)])
def test_values_are_those_of_the_plain_layer(shape, bias):
    torch.manual_seed(0)
    plain = nn.Linear(48, 20, bias=bias)
    fast = nn.Sequential(copy.deepcopy(plain))
    speed_few_rows(fast)
    x = torch.randn(*shape, 48)
    with torch.inference_mode():
        found, wanted = fast(x), plain(x)
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_training_is_not_touched():
    torch.manual_seed(0)
    plain = nn.Linear(16, 8)
    fast = nn.Sequential(copy.deepcopy(plain))
    speed_few_rows(fast)
    x, y = torch.randn(2, 16), torch.randn(2, 16)
    for layer, inputs in ((plain, x), (fast, x), (plain, y), (fast, y)):
        layer(inputs).square().sum().backward()
    torch.testing.assert_close(fast[0].weight.grad, plain.weight.grad, rtol=0, atol=0)


def test_other_types_and_other_layers_stay_as_they_are():
    class Special(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(8, 8), Special(8, 8)).bfloat16()
    before = model.state_dict()
    x = torch.randn(2, 8, dtype=torch.bfloat16)
    with torch.inference_mode():
        wanted = model(x)
        speed_few_rows(model)
        torch.testing.assert_close(model(x), wanted, rtol=0, atol=0)
    assert [type(layer) for layer in model] == [FewRowsLinear, Special]
    assert model.state_dict().keys() == before.keys()


def test_a_loaded_llm_writes_with_them(tiny_llm_folder):
    model = load_language(str(tiny_llm_folder)).model
    assert isinstance(model.get_output_embeddings(), FewRowsLinear)
    assert not [name for name, layer in model.named_modules() if type(layer) is nn.Linear]
    # The head of an LLM that shares its embeddings still does.
    if model.config.tie_word_embeddings:
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
