"""topa computes what the authors' code computed, and the check says so only when it does."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from topa.errors import DataError
from topa.model.official.golden import BUNDLED, TOLERANCE, Difference, check_golden

SHARED = Path(__file__).parents[3].parent / "shared" / "golden"
NAMES = {"logits", "nll", "loss", "grad.adapter_query.weight", "grad.layers.1.attention.gate2"}


def change(folder: Path, target: Path, tensor: str = "", **settings: str) -> Path:
    """Copy a bundled folder with one recorded tensor or setting changed."""
    shutil.copytree(folder, target)
    path = target / "golden.safetensors"
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    if tensor:
        tensors[tensor].flatten()[-1] += 1e-3 * tensors[tensor].abs().max()
    save_file(tensors, path, metadata=metadata | settings)
    return target


@pytest.mark.parametrize("name", ["mini_llama2", "mini_llama3"])
def test_outputs_and_gradients_are_those_of_the_authors_code(name):
    found = check_golden(BUNDLED / name)
    assert {d.name for d in found} >= NAMES
    assert [d for d in found if not d.fits] == []
    assert sum(d.name.startswith("export.") for d in found) == 7


@pytest.mark.parametrize("name", ["llama2", "llama3"])
def test_the_larger_recorded_models_agree_as_well(name):
    if not (SHARED / name).is_dir():
        pytest.skip("the larger recordings are not part of the project")
    found = check_golden(SHARED / name)
    assert {d.name for d in found} >= NAMES
    assert [d for d in found if not d.fits] == []


@pytest.mark.parametrize("tensor", ["logits", "nll", "grad.visual_proj.weight", "train_loss"])
def test_a_wrong_value_is_found(tmp_path, tensor):
    changed = change(BUNDLED / "mini_llama2", tmp_path / "changed", tensor)
    wrong = [d.name for d in check_golden(changed) if not d.fits]
    assert wrong == ["loss" if tensor == "train_loss" else tensor]


def test_llama_3_was_trained_with_rotary_base_10000(tmp_path):
    """The authors' code drops rope_theta; with the LLM's own base its outputs are others."""
    changed = change(BUNDLED / "mini_llama3", tmp_path / "changed", effective_rope_theta="500000.0")
    differences = {d.name: d for d in check_golden(changed)}
    assert not differences["logits"].fits
    assert not differences["nll"].fits


@pytest.mark.parametrize(
    ("largest", "scale", "name", "fits"),
    [
        (1e-5, 3.0, "logits", True),
        (2e-5, 30.0, "logits", False),
        (1e-6, 1e-3, "grad.x", False),
        (9e-9, 1e-3, "grad.x", True),
        (float("nan"), 1.0, "logits", False),
        (1e-12, 1.0, "export.x", False),
        (0.0, 0.0, "grad.x", True),
    ],
)
def test_small_values_are_held_to_a_relative_difference(largest, scale, name, fits):
    assert TOLERANCE == 1e-5
    assert Difference(name, largest, 1, scale).fits == fits


def test_a_folder_without_recordings_is_refused(tmp_path):
    with pytest.raises(DataError, match="file not found"):
        check_golden(tmp_path)
    save_file({"logits": torch.zeros(1)}, tmp_path / "golden.safetensors")
    with pytest.raises(DataError, match=r"no adapter_len, .*video_start in it"):
        check_golden(tmp_path)


def test_a_tensor_that_was_not_recorded_is_told(tmp_path):
    shutil.copytree(BUNDLED / "mini_llama2", tmp_path / "f")
    path = tmp_path / "f" / "golden.safetensors"
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    del tensors["grad.temporal_emb.weight"]
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(DataError, match=r"grad\.temporal_emb\.weight was not recorded"):
        check_golden(tmp_path / "f")
