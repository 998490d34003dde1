"""Linear layers for answering on a CPU: other products, the same values."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from topa import linear
from topa.linear import FEW_ROWS, InferenceLinear, pack, speed_inference, unpack
from topa.model.language import load_language
from topa.model.loading import load_model
from topa.model.updates import LowRankLinear, speed_updates

SHAPES = [(1,), (1, 1), (2, 1), (2, 2), (3, 1), (FEW_ROWS + 1, 2), (2, 40), (0, 2)]


def make_updated() -> nn.Sequential:
    """Return two layers, the first with a low-rank update."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 32), nn.Linear(32, 20, bias=False))
    speed_inference(model)
    inject_adapter_in_model(
        LoraConfig(r=4, lora_alpha=8, target_modules=["0"], init_lora_weights=False), model
    )
    speed_updates(model)
    return model.requires_grad_(False).eval()


def compute_plainly(model: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    """Return what `make_updated` stands for, in float64: (W + 2 B A) x + b, then V x."""
    first, second = model[0], model[1]
    base = first.get_base_layer()
    a, b = first.lora_A["default"].weight.double(), first.lora_B["default"].weight.double()
    hidden = x.double() @ (base.weight.double() + 2 * b @ a).T + base.bias.double()
    return (hidden @ second.weight.double().T).float()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_are_those_of_the_plain_layer(shape, bias):
    torch.manual_seed(0)
    plain = nn.Linear(48, 20, bias=bias)
    fast = nn.Sequential(copy.deepcopy(plain))
    speed_inference(fast)
    x = torch.randn(*shape, 48)
    with torch.inference_mode():
        found, wanted = fast(x), plain(x)
        assert pack(fast)
        packed = fast(x)
    assert found.shape == packed.shape == wanted.shape
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(packed, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_packed_weight_has_its_update_in_it(shape):
    model = make_updated()
    x = torch.randn(*shape, 48)
    with torch.inference_mode():
        unpacked = model(x)
        assert pack(model)
        assert model[0].packed is not None
        found = model(x)
    wanted = compute_plainly(model, x)
    torch.testing.assert_close(unpacked, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def _change_update(model: nn.Sequential) -> None:
    model[0].lora_B["default"].weight.add_(1)


@torch.no_grad()
def _change_weight(model: nn.Sequential) -> None:
    model[1].weight.mul_(2)


def _load_others(model: nn.Sequential) -> None:
    model.load_state_dict({name: each + 1 for name, each in model.state_dict().items()})


def _swap_data(model: nn.Sequential) -> None:
    model[0].get_base_layer().weight.data = torch.ones(32, 48)


@pytest.mark.parametrize("change", [_change_update, _change_weight, _load_others, _swap_data])
def test_weights_that_changed_since_are_not_answered_from(change):
    model = make_updated()
    x = torch.randn(3, 48)
    with torch.inference_mode():
        assert pack(model)
        before = model(x)
    change(model)
    with torch.inference_mode():
        found = model(x)
    assert not torch.allclose(found, before, atol=1e-3)
    torch.testing.assert_close(found, compute_plainly(model, x), rtol=1e-5, atol=1e-4)


def test_updates_that_are_merged_or_switched_off_are_not_added_twice():
    x = torch.randn(3, 48)
    for switch in (lambda layer: layer.merge(), lambda layer: layer.enable_adapters(False)):
        packed, plain = make_updated(), make_updated()
        with torch.inference_mode():
            assert pack(packed)
            switch(packed[0]), switch(plain[0])
            torch.testing.assert_close(packed(x), plain(x), rtol=1e-5, atol=1e-5)


def test_training_is_not_touched():
    torch.manual_seed(0)
    plain = nn.Linear(16, 8)
    fast = nn.Sequential(copy.deepcopy(plain))
    speed_inference(fast)
    assert pack(fast)
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
        speed_inference(model)
        assert not pack(model)
        torch.testing.assert_close(model(x), wanted, rtol=0, atol=0)
    assert [type(layer) for layer in model] == [InferenceLinear, Special]
    assert model.state_dict().keys() == before.keys()


def test_autocast_decides_about_the_type():
    model = make_updated()
    x = torch.randn(3, 48)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        wanted = model(x)
        assert pack(model)
        found = model(x)
    assert found.dtype == wanted.dtype == torch.bfloat16
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_a_large_llm_is_not_kept_twice(monkeypatch):
    model = make_updated()
    numbers = 48 * 32 + 32 * 20  # the low-rank parts are not packed
    monkeypatch.setattr(linear, "MOST_PACKED", 4 * numbers - 1)
    assert not pack(model)
    assert model[0].packed is None
    monkeypatch.setattr(linear, "MOST_PACKED", 4 * numbers)
    assert pack(model)


def test_a_copy_and_a_file_come_without():
    model = make_updated()
    assert pack(model)
    keys = model.state_dict().keys()
    assert not [name for name in keys if "packed" in name]
    twin = copy.deepcopy(model)
    file = io.BytesIO()
    torch.save(model, file)
    loaded = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    x = torch.randn(3, 48)
    for other in (twin, loaded):
        assert other[0].packed is None
        torch.testing.assert_close(other(x), model(x), rtol=1e-5, atol=1e-5)


def test_a_loaded_llm_writes_with_them(tiny_llm_folder):
    model = load_language(str(tiny_llm_folder)).model
    assert isinstance(model.get_output_embeddings(), InferenceLinear)
    assert not [name for name, layer in model.named_modules() if type(layer) is nn.Linear]
    # The head of an LLM that shares its embeddings still does.
    if model.config.tie_word_embeddings:
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_a_loaded_checkpoint_is_packed_until_it_is_trained():
    model, _ = load_model("embedded")
    layers = [
        module
        for module in model.language_model.modules()
        if type(module) is LowRankLinear or module is model.get_output_embeddings()
    ]
    assert len(layers) == 30 * 7 + 1
    assert all(layer.packed is not None for layer in layers)
    ids = torch.arange(100, 120)[None]
    with torch.inference_mode():
        packed = model(input_ids=ids).logits
        model.train()
        assert all(layer.packed is None for layer in layers)
        unpack(model)  # what is not packed can be unpacked
        model.eval()
        plain = model(input_ids=ids).logits
    torch.testing.assert_close(packed, plain, rtol=1e-4, atol=2e-3)
