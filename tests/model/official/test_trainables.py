"""The authors' checkpoint_N.pth: what is read of it, and its names there and back."""

from __future__ import annotations

import argparse
import os

import pytest
import torch

from topa.errors import CheckpointError, ConfigError, DataError
from topa.model.official.trainables import name_for_topa, name_officially, read_checkpoint

from .conftest import ADAPTER, HEADS, LAYERS


@pytest.fixture
def save(tmp_path):
    def save(tree):
        path = tmp_path / "checkpoint_3.pth"
        torch.save(tree, path)
        return path

    return save


def test_a_training_file_with_optimizer_and_arguments_is_read(save, make_trained):
    trained = make_trained(2)
    parameters = {name: torch.nn.Parameter(tensor) for name, tensor in trained.items()}
    weight = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(weight.parameters())
    weight(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    arguments = argparse.Namespace(adapter_len=ADAPTER, adapter_layer=2, bias=3.0, resume="")
    path = save(
        {
            "model": parameters,
            "optimizer": optimizer.state_dict(),
            "epoch": 19,
            "scaler": {"scale": 65536.0, "growth_interval": 2000},
            "args": arguments,
        }
    )
    found = read_checkpoint(path)
    assert (found.adapter_length, found.adapted_layers, found.skipped_layers) == (ADAPTER, 2, 1)
    assert (found.num_layers, found.num_heads, found.hidden_size) == (LAYERS, HEADS, 32)
    assert (found.epoch, found.bias) == (19, 3.0)
    assert all(torch.equal(found.tensors[name], trained[name]) for name in trained)
    assert not any(tensor.requires_grad for tensor in found.tensors.values())


def test_names_of_distributed_training_are_read(save, make_trained):
    path = save({"model": {f"module.{k}": v for k, v in make_trained().items()}})
    assert read_checkpoint(path).adapted_layers == LAYERS


@pytest.mark.parametrize("adapted", [3, 2])
def test_names_go_there_and_back_bit_by_bit(save, make_trained, adapted):
    trained = make_trained(adapted)
    official = read_checkpoint(save({"model": trained}), ADAPTER)
    named = name_for_topa(official)
    top = f"language_model.model.layers.{adapted - 1}.self_attn.topa_adapter"
    assert torch.equal(named[f"{top}.prompt"], trained["adapter_query.weight"][-ADAPTER:])
    assert torch.equal(named[f"{top}.gate"], trained["layers.2.attention.gate1"].flatten())
    assert torch.equal(named[f"{top}.video_bias"], trained["layers.2.attention.gate2"].flatten())
    back = name_officially(named, official.skipped_layers, 3.5)
    assert set(back) == set(trained)
    assert all(torch.equal(back[name], trained[name]) for name in trained)
    assert all(back[name].shape == trained[name].shape for name in trained)


def test_every_layer_has_an_adapter_where_the_file_does_not_say(save, make_trained):
    assert read_checkpoint(save({"model": make_trained()})).adapter_length == ADAPTER


@pytest.mark.parametrize(("adapted", "length"), [(1, None), (3, 4), (2, 1)])
def test_prompts_that_do_not_divide_are_told(save, make_trained, adapted, length):
    trained = make_trained(adapted)
    if adapted == 1:
        trained["adapter_query.weight"] = trained["adapter_query.weight"][:2]
    with pytest.raises(CheckpointError, match=r"do not divide .*--adapter-length"):
        read_checkpoint(save({"model": trained}), length)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visual_proj.weight": None}, "missing visual_proj.weight"),
        ({"layers.1.attention.gate1": None}, r"missing layers\.1\.attention\.gate1"),
        ({"layers.0.attention.lora": torch.ones(1)}, r"unknown layers\.0\.attention\.lora"),
        ({"temporal_emb.weight": torch.ones(4, 31)}, "temporal_emb.weight do not fit"),
        ({"layers.0.attention.gate2": torch.ones(1, 5, 1, 1)}, "gates do not fit"),
    ],
)
def test_what_is_not_the_authors_model_is_refused(save, make_trained, change, message):
    trained = {k: v for k, v in {**make_trained(), **change}.items() if v is not None}
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(save({"model": trained}), ADAPTER)


@pytest.mark.parametrize("tree", [{"epoch": 3}, torch.ones(3), [1, 2]])
def test_a_file_without_a_model_is_refused(save, tree):
    with pytest.raises(CheckpointError, match='no "model" in it'):
        read_checkpoint(save(tree))


def test_a_hostile_checkpoint_is_refused_with_its_reason(save, make_trained, tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    with pytest.raises(DataError, match=r"refused: the pickle asks for \w+\.mkdir"):
        read_checkpoint(save({"model": make_trained(), "args": Hostile()}))
    assert not (tmp_path / "made").exists()


def test_models_the_authors_code_cannot_hold_are_not_exported(save, make_trained):
    named = name_for_topa(read_checkpoint(save({"model": make_trained()})))
    with pytest.raises(ConfigError, match=r"words\.features has no place"):
        name_officially({**named, "words.features": torch.ones(1)})
    lower = {name: t for name, t in named.items() if ".layers.0." not in name}
    with pytest.raises(ConfigError, match="not every layer that is run has an adapter"):
        name_officially(lower)
