"""Files of tensors from strangers, read as data: .pth, .pt, .pkl, .npy, .safetensors.

A pickle is a program. `load_tensors` runs none of it: PyTorch's files go through
`torch.load(weights_only=True)`, plain pickles through `TensorUnpickler`, which knows only
what rebuilds tensors, arrays and containers, and builds them itself. Everything else a
pickle asks for is refused by name.
"""

from __future__ import annotations

import argparse
import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from topa.errors import DataError
from topa.features._unpickling import Held, TensorUnpickler, load_torch

__all__ = ["load_tensors", "load_tree"]

_NPY_MAGIC = b"\x93NUMPY"
_ZIP_MAGIC = b"PK\x03\x04"
# How a file of torch.save before PyTorch 1.6 begins, and a storage within a plain pickle.
_TORCH_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_DEPTH = 16
_BROKEN = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What readers raise on bytes that are not what they seem; a reader of hostile bytes sees all."""


def load_tensors(path: str | Path) -> Tensor | dict[str, Tensor]:
    """Read the tensor, or the tensors by name, of a file that need not be trusted.

    The format is told by the content, not by the name: what `torch.save`, `pickle.dump`,
    `numpy.save` and safetensors write. numpy arrays become tensors; a list of tensors of one
    shape is stacked; types (float16, ...) stay as they are; everything comes to the CPU.

    Args:
        path: The file.

    Returns:
        One tensor, or a dict of tensors whose keys are strings (numbers are spelt out).

    Raises:
        DataError: The file is missing, damaged, asks for code (named), or holds something
            other than tensors.
    """
    tree = load_tree(path)
    if isinstance(tree, list | tuple):
        return _stack(list(tree), path)
    if isinstance(tree, dict):
        named = {str(key): _as_tensor(value) for key, value in tree.items()}
        tensors = {key: value for key, value in named.items() if value is not None}
        if other := sorted(set(named) - set(tensors)):
            raise DataError(
                f"{other[0]!r} is no tensor but {type(tree.get(other[0])).__name__}", where=path
            )
        if len(tensors) != len(tree):
            raise DataError("two keys are the same when written out", where=path)
        return tensors
    tensor = _as_tensor(tree)
    if tensor is None:
        raise DataError(f"tensors are needed, got {type(tree).__name__}", where=path)
    return tensor


def load_tree(path: str | Path) -> Any:
    """Read tensors in dicts, lists and tuples, with the numbers and strings beside them.

    For files such as checkpoints, {"model": {name: tensor}, "epoch": 3}. Reads what
    `load_tensors` reads, with the same refusals.

    Raises:
        DataError: The file is missing, damaged, or asks for code (named).
    """
    path = Path(path)
    if not path.is_file():
        raise DataError("file not found", where=path, mend="Check the path.")
    with open(path, "rb") as file:
        start = file.read(len(_TORCH_MAGIC))
    try:
        if start.startswith(_NPY_MAGIC):
            return torch.from_numpy(np.load(path, allow_pickle=False))
        if path.suffix == ".safetensors":
            return load_file(path)
        if start.startswith(_ZIP_MAGIC):
            return _plain(load_torch(path, mmap=True))
        if start == _TORCH_MAGIC:
            return _plain(load_torch(path))
        with open(path, "rb") as file:
            return _plain(TensorUnpickler(file).load())
    except SafetensorError as error:
        raise DataError(f"not a whole safetensors file ({error})", where=path) from None
    except _BROKEN as error:
        raise _refusal(error, path) from None


def _refusal(error: BaseException, path: Path) -> DataError:
    """Return the error that tells a pickle that asks for code from a damaged file."""
    text = str(error)
    named = re.search(r"GLOBAL '?([\w.<>]+)", text) or re.search(r"\bclass ([\w.]+)", text)
    if isinstance(error, pickle.UnpicklingError) and named:
        return DataError(
            f"refused: the pickle asks for {named[1]}, which is not tensor data",
            where=path,
            mend="Save plain tensors, arrays, dicts or lists; never open such a file otherwise "
            "unless you trust who made it.",
        )
    reason = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    return DataError(
        f"not a readable file of tensors ({reason[:200]})",
        where=path,
        mend="Readable are files of torch.save, pickle.dump of tensors or arrays, numpy.save, "
        "and safetensors.",
    )


def _as_tensor(value: Any) -> Tensor | None:
    """Return a tensor, a stack of equal ones, or a number as a tensor; None of anything else."""
    if isinstance(value, list | tuple) and value:
        parts = [_as_tensor(part) for part in value]
        found = [part for part in parts if part is not None]
        same = len(found) == len(parts) and len({(part.shape, part.dtype) for part in found}) == 1
        return torch.stack(found) if same else None
    if isinstance(value, bool | int | float):
        return torch.tensor(value)
    return value if isinstance(value, Tensor) else None


def _stack(values: list[Any], path: str | Path) -> Tensor:
    """Return a list of tensors of one shape as one tensor.

    Raises:
        DataError: It is empty, or they differ.
    """
    stacked = _as_tensor(values)
    if stacked is None:
        raise DataError(
            f"a list of {len(values)} that are not tensors of one shape and type",
            where=path,
            mend="Save one tensor, or a dict of tensors by name.",
        )
    return stacked


def _plain(value: Any, depth: int = 0) -> Any:
    """Return containers of tensors and plain values, with arrays as tensors.

    Raises:
        UnpicklingError: Something else is in there, or containers are nested without end.
    """
    if depth > _DEPTH:
        raise pickle.UnpicklingError(f"containers are nested more than {_DEPTH} deep")
    if isinstance(value, Held):
        return _plain(value.take(), depth)
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, dict):
        if not all(isinstance(key, str | int | float | bytes | tuple) for key in value):
            raise pickle.UnpicklingError("a key of a dict is neither a string nor a number")
        return {key: _plain(part, depth + 1) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(part, depth + 1) for part in value)
    if value is None or isinstance(value, Tensor | str | bytes | bool | int | float):
        return value
    raise pickle.UnpicklingError(f"holds a {type(value).__name__}, which is not tensor data")
