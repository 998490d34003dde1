"""Tensors out of files of strangers: everything real is read, everything hostile is refused."""

from __future__ import annotations

import argparse
import collections
import os
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from topa.errors import DataError
from topa.features.pickles import load_tensors, load_tree

TENSOR = torch.arange(12.0).reshape(3, 4) / 7


class Hostile:
    """Unpickled plainly, it makes a file."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


def dump(path, value, protocol=4):
    path.write_bytes(pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "value",
    [
        TENSOR,
        TENSOR.half(),
        TENSOR.bfloat16(),
        TENSOR.T,
        TENSOR[1:, 2],
        torch.nn.Parameter(TENSOR),
        torch.zeros(0, 768),
        torch.tensor(3),
        torch.tensor([True, False]),
    ],
    ids=["float", "half", "bfloat16", "strided", "slice", "parameter", "empty", "scalar", "bool"],
)
def test_a_plainly_pickled_tensor_comes_back(tmp_path, value, protocol):
    found = load_tensors(dump(tmp_path / "f.pkl", value, protocol))
    assert torch.equal(found, value.detach())
    assert found.dtype == value.dtype


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", ["f4", ">f4", "f8", "f2", "i8", "u1", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_plainly_pickled_array_comes_back(tmp_path, kind, order, protocol):
    array = np.asarray(np.arange(12).reshape(3, 4) % 5, dtype=kind, order=order)
    found = load_tensors(dump(tmp_path / "f.pkl", array, protocol))
    assert np.array_equal(found.numpy(), array)


def test_containers_of_tensors_and_arrays_come_back(tmp_path):
    value = {
        "a": TENSOR,
        "b": TENSOR.numpy(),
        "c": [TENSOR[0], TENSOR[1]],
        7: np.float32(2.5),
    }
    found = load_tensors(dump(tmp_path / "f.pkl", value))
    assert list(found) == ["a", "b", "c", "7"]
    assert torch.equal(found["a"], TENSOR)
    assert torch.equal(found["b"], TENSOR)
    assert torch.equal(found["c"], TENSOR[:2])
    assert found["7"] == 2.5
    rows = load_tensors(dump(tmp_path / "g.pkl", list(TENSOR.numpy())))
    assert torch.equal(rows, TENSOR)
    state = collections.OrderedDict(x=TENSOR)
    assert torch.equal(load_tensors(dump(tmp_path / "h.pkl", state))["x"], TENSOR)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["f.pth", "f.pkl"])
def test_a_file_of_torch_save_comes_back_whatever_its_name(tmp_path, name, zipped):
    value = {"model": {"w": TENSOR}, "epoch": 3, "args": argparse.Namespace(lr=0.1, layers=[1, 2])}
    torch.save(value, tmp_path / name, _use_new_zipfile_serialization=zipped)
    found = load_tree(tmp_path / name)
    assert torch.equal(found["model"]["w"], TENSOR)
    assert (found["epoch"], found["args"]) == (3, {"lr": 0.1, "layers": [1, 2]})


def test_npy_and_safetensors_come_back(tmp_path):
    np.save(tmp_path / "f.npy", TENSOR.numpy())
    assert torch.equal(load_tensors(tmp_path / "f.npy"), TENSOR)
    save_file({"x": TENSOR}, tmp_path / "f.safetensors")
    assert torch.equal(load_tensors(tmp_path / "f.safetensors")["x"], TENSOR)


@pytest.mark.parametrize("protocol", range(0, pickle.HIGHEST_PROTOCOL + 1))
def test_a_hostile_pickle_is_refused_with_the_name_of_what_it_asks_for(tmp_path, protocol):
    bait = {"x": TENSOR, "y": [Hostile(tmp_path / "made")]} if protocol > 1 else Hostile("made")
    path = dump(tmp_path / "f.pkl", bait, protocol)
    with pytest.raises(DataError, match=r"refused: the pickle asks for (posix|nt)\.mkdir"):
        load_tensors(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_file_of_torch_save_is_refused_with_the_name(tmp_path, zipped):
    bait = {"x": TENSOR, "y": Hostile(tmp_path / "made")}
    torch.save(bait, tmp_path / "f.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(DataError, match=r"refused: the pickle asks for (posix|nt)\.mkdir"):
        load_tensors(tmp_path / "f.pth")
    assert not (tmp_path / "made").exists()


def test_code_hidden_in_the_storage_of_a_tensor_is_refused(tmp_path):
    """`torch.storage._load_from_bytes` itself opens its bytes with nothing forbidden."""

    class Smuggler:
        def __reduce__(self):
            inner = tmp_path / "inner"
            torch.save(Hostile(tmp_path / "made"), inner, _use_new_zipfile_serialization=False)
            return torch.storage._load_from_bytes, (inner.read_bytes(),)

    with pytest.raises(DataError, match=r"refused: the pickle asks for (posix|nt)\.mkdir"):
        load_tensors(dump(tmp_path / "f.pkl", {"x": Smuggler()}))
    assert not (tmp_path / "made").exists()


def test_an_array_of_objects_is_refused(tmp_path):
    array = np.array([{"a": 1}, None], dtype=object)
    with pytest.raises(DataError, match="object"):
        load_tensors(dump(tmp_path / "f.pkl", array))
    np.save(tmp_path / "f.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match="allow_pickle"):
        load_tensors(tmp_path / "f.npy")


@pytest.mark.parametrize(("size", "stride"), [((3,), (2,)), ((5,), (1,)), ((-1,), (1,))])
def test_a_tensor_that_reaches_beyond_its_storage_is_refused(tmp_path, size, stride):
    class Long:
        def __reduce__(self):
            storage = TENSOR[0].clone().storage()
            hooks = collections.OrderedDict()
            return torch._utils._rebuild_tensor_v2, (storage, 0, size, stride, False, hooks)

    with pytest.raises(DataError, match="beyond its storage"):
        load_tensors(dump(tmp_path / "f.pkl", Long()))


def test_a_tensor_of_a_terabyte_in_a_few_bytes_is_refused(tmp_path):
    class Huge:
        def __reduce__(self):
            storage = TENSOR[0].clone().storage()
            hooks = collections.OrderedDict()
            return torch._utils._rebuild_tensor_v2, (storage, 0, (1 << 38,), (0,), False, hooks)

    with pytest.raises(DataError, match="larger than its storage"):
        load_tensors(dump(tmp_path / "f.pkl", Huge()))


def test_a_pickle_cannot_change_the_reader(tmp_path):
    """BUILD on a stand-in would otherwise set its attributes for every later file."""
    attack = b"\x80\x04ctorch._utils\n_rebuild_tensor_v2\nN}\x8c\x06_value\x8c\x01xs\x86b."
    (tmp_path / "f.pkl").write_bytes(attack)
    with pytest.raises(DataError, match="changes an object"):
        load_tensors(tmp_path / "f.pkl")
    assert torch.equal(load_tensors(dump(tmp_path / "g.pkl", TENSOR)), TENSOR)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("text", "tensors are needed, got str"),
        ({"x": "text"}, "'x' is no tensor but str"),
        ([TENSOR, TENSOR[0]], "not tensors of one shape"),
        ([], "not tensors of one shape"),
        ({1: TENSOR, "1": TENSOR}, "two keys are the same"),
    ],
)
def test_what_is_not_tensors_is_refused(tmp_path, value, message):
    with pytest.raises(DataError, match=message):
        load_tensors(dump(tmp_path / "f.pkl", value))


def test_a_list_that_holds_itself_is_refused(tmp_path):
    endless: list = []
    endless.append(endless)
    with pytest.raises(DataError, match="nested"):
        load_tree(dump(tmp_path / "f.pkl", endless))


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(DataError, match="file not found"):
        load_tensors(tmp_path / "none.pkl")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_files_raise_only_errors_of_ours(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damaged") / "f.pkl"
    whole = pickle.dumps({"x": TENSOR, "y": TENSOR.numpy()}, data.draw(st.sampled_from([2, 4, 5])))
    torn = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 3)) if torn else 0):
        torn[data.draw(st.integers(0, len(torn) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(torn))
    try:
        found = load_tensors(path)
    except DataError:
        return
    assert isinstance(found, dict | torch.Tensor)
