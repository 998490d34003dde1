"""Reading pickles as data: an allow-list of stand-ins that rebuild tensors and arrays.

A pickle names functions to call and objects to change. Here every name stands for a function
of this module, and every object it can reach is a `Held`, which refuses to be changed.
"""

from __future__ import annotations

import argparse
import io
import math
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

__all__ = ["Held", "TensorUnpickler", "load_torch"]

_KINDS = "fiub"  # numbers and truth values; no objects, no strings


def load_torch(source: Path | io.BytesIO, mmap: bool = False) -> Any:
    """Return what torch.save wrote, data only, on the CPU.

    `argparse.Namespace`, which training scripts put beside the weights, is data as well.
    """
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of storages written by old versions
        return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap or None)


class Held:
    """A value that the instructions of a pickle can pass on, but neither look into nor change."""

    __slots__ = ("_value",)
    _value: Any

    def __init__(self, value: Any):
        object.__setattr__(self, "_value", value)

    def take(self) -> Any:
        """Return the value, once the pickle has ended."""
        return self._value

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise pickle.UnpicklingError(f"the pickle sets {name!r} of an object")

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("the pickle changes an object")


class _Rebuilder(Held):
    """A function of the allow-list."""

    __slots__ = ()

    def __call__(self, *arguments: Any) -> Any:
        return self._value(*arguments)


class _ArrayShell(Held):
    """What numpy's pickles fill in a second step: an array or a dtype, made of plain parts."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        made = self._value
        if isinstance(made, np.dtype):
            _, order, *rest = state
            if rest[:3] != [None, None, None] or order not in "<>|=":
                raise pickle.UnpicklingError("an array type with fields is not tensor data")
            made = made.newbyteorder(order)
        else:
            _, shape, kind, in_columns, raw = state
            made = _array(raw, kind.take(), shape, "F" if in_columns else "C")
        object.__setattr__(self, "_value", made)


def _array(raw: Any, kind: Any, shape: tuple[int, ...], order: str) -> np.ndarray:
    """Return an array of bytes in the machine's own byte order; a list of objects is refused."""
    if not isinstance(raw, bytes | bytearray):
        raise pickle.UnpicklingError("holds an array of objects, which is not tensor data")
    flat = np.frombuffer(raw, dtype=kind).astype(kind.newbyteorder("="))
    return np.ascontiguousarray(flat.reshape(shape, order="F" if order == "F" else "C"))


def _dtype(name: Any, *_: Any) -> _ArrayShell:
    kind = np.dtype(str(name))
    if kind.kind not in _KINDS:
        raise pickle.UnpicklingError(f"holds an array of {kind}, which is not tensor data")
    return _ArrayShell(kind)


def _storage(raw: bytes) -> Held:
    """Return the storage of a tensor, which is a file of torch.save within the pickle."""
    return Held(load_torch(io.BytesIO(raw)))


def _tensor(
    storage: Held, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Held:
    """Return a tensor over a storage, if it lies within."""
    held = storage.take()
    if not isinstance(held, torch.storage.TypedStorage):
        raise pickle.UnpicklingError("a tensor without its storage")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # typed storages are deprecated; pickles hold them
        flat = torch.empty(0, dtype=held.dtype).set_(held.untyped())  # type: ignore[call-overload]
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min(*size, *stride, offset, 0) < 0 or (0 not in size and last >= len(flat)):
        raise pickle.UnpicklingError("a tensor reaches beyond its storage")
    if math.prod(size) > len(flat):  # strides of 0 make a thousand bytes a terabyte
        raise pickle.UnpicklingError("a tensor is larger than its storage")
    return Held(flat.as_strided(size, stride, offset).clone())


def _encode(text: str, coding: str) -> bytes:
    if coding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes in {coding!r}")
    return text.encode("latin1")


_ALLOWED: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _encode,
    "collections.OrderedDict": OrderedDict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch.storage._load_from_bytes": _storage,
    "numpy.dtype": _dtype,
    "numpy.ndarray": lambda *_: None,  # named as an argument, and never called
}
for _package in ("numpy.core", "numpy._core"):  # before and since numpy 2
    _ALLOWED[f"{_package}.multiarray._reconstruct"] = lambda *_: _ArrayShell(None)
    _ALLOWED[f"{_package}.multiarray.scalar"] = lambda kind, raw: Held(
        _array(raw, kind.take(), (), "C")
    )
    _ALLOWED[f"{_package}.numeric._frombuffer"] = lambda raw, kind, shape, order: Held(
        _array(raw, kind.take(), shape, order)
    )


class TensorUnpickler(pickle.Unpickler):
    """Reads plain pickles; of all globals, only those that make tensors and arrays exist."""

    def find_class(self, module: str, name: str) -> _Rebuilder:
        """Return the stand-in of an allowed global.

        Raises:
            UnpicklingError: It is another one.
        """
        found = _ALLOWED.get(f"{module}.{name}")
        if found is None:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is not allowed")
        return _Rebuilder(found)
