"""Checkpoints: the trainables alone, as safetensors, beside the configuration of the rest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from topa.errors import CheckpointError, ConfigError, DataError, FingerprintError
from topa.model.config import TopaConfig
from topa.model.hub import fetch_checkpoint, is_hub_id
from topa.runs import atomic_path, read_json

if TYPE_CHECKING:
    from topa.model.pretrained import TopaPreTrainedModel

WEIGHTS_NAME = "model.safetensors"
EMBEDDED_CHECKPOINT = Path(__file__).parent.parent / "checkpoints" / "embedded"

__all__ = [
    "EMBEDDED_CHECKPOINT",
    "WEIGHTS_NAME",
    "check_fingerprint",
    "checkpoint_folder",
    "load_trainables",
    "read_config",
    "read_trainables",
    "save_trainables",
    "write_tensors",
]


def save_trainables(
    model: TopaPreTrainedModel, folder: str | Path, dtype: torch.dtype | None = None
) -> Path:
    """Write the trained tensors of a model to `folder`, whole or not at all.

    Args:
        model: The model.
        folder: Made if it is not there.
        dtype: Type on disk; that of each tensor if None.
    """
    return write_tensors(dict(model.saved_tensors()), folder, dtype)


def write_tensors(
    tensors: Mapping[str, Tensor], folder: str | Path, dtype: torch.dtype | None = None
) -> Path:
    """Write tensors as the weights of a checkpoint folder, whole or not at all."""
    stored = {name: _stored(tensor, dtype) for name, tensor in tensors.items()}
    path = Path(folder) / WEIGHTS_NAME
    with atomic_path(path) as temporary:
        save_file(stored, temporary, metadata={"format": "pt", "kind": "topa-trainables"})
    return path


def _stored(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return a copy on the CPU; only floating-point tensors change their type."""
    kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", kind).contiguous()


def load_trainables(model: TopaPreTrainedModel, folder: str | Path) -> None:
    """Fill the trained tensors of a model from `folder`; every one must be there and fit.

    Raises:
        CheckpointError: The file is missing or broken, or tensors are missing, unknown or of
            another shape; names them.
    """
    tensors = read_trainables(model, folder)
    with torch.no_grad():
        for name, parameter in model.saved_tensors():
            parameter.copy_(tensors[name])


def read_trainables(model: TopaPreTrainedModel, folder: str | Path) -> dict[str, Tensor]:
    """Return the tensors in `folder` that fill those of a model.

    Raises:
        CheckpointError: As for `load_trainables`.
    """
    path = Path(folder) / WEIGHTS_NAME
    if not path.is_file():
        raise CheckpointError("file not found", where=path, mend="Give a checkpoint folder.")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"not a whole safetensors file ({error})", where=path) from None
    wanted = dict(model.saved_tensors())
    problems = _mismatches(wanted, tensors)
    if problems:
        raise CheckpointError(
            "; ".join(problems),
            where=path,
            mend="The checkpoint was trained with other model settings or another LLM.",
        )
    return tensors


def read_config(checkpoint: str | Path) -> TopaConfig:
    """Return the configuration of a checkpoint folder, or of "embedded".

    Raises:
        CheckpointError: There is no checkpoint, or one of something else.
    """
    folder = checkpoint_folder(checkpoint)
    path, mend = folder / "config.json", 'Give a checkpoint folder or "embedded".'
    if not path.is_file():
        raise CheckpointError("no config.json there", where=folder, mend=mend)
    try:
        fields = read_json(path)
        kind = fields.get("model_type") if isinstance(fields, dict) else None
        if kind != TopaConfig.model_type:
            raise CheckpointError(f"model_type is {kind!r}, not 'topa'", where=path, mend=mend)
        config = TopaConfig.from_dict(fields)
        if config.llm.startswith("./"):  # the LLM lies within the checkpoint
            config.llm = str(folder / config.llm)
        return config
    except (ConfigError, DataError) as error:
        raise CheckpointError(error.what, where=path, mend=error.mend) from None


def checkpoint_folder(checkpoint: str | Path, **options: Any) -> Path:
    """Return the folder of a checkpoint given as "embedded", as a folder or as a hub id.

    Args:
        checkpoint: A folder that is there goes before a hub id of the same name.
        **options: Of the hub, as `fetch_checkpoint` takes them.

    Raises:
        CheckpointError: A hub id that is not there, or cannot be reached.
    """
    if str(checkpoint) == "embedded":
        return EMBEDDED_CHECKPOINT
    if not Path(checkpoint).exists() and is_hub_id(str(checkpoint)):
        return fetch_checkpoint(str(checkpoint), **options)
    return Path(checkpoint)


def _mismatches(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Return what keeps `found` from filling `wanted`, a few names of each kind."""
    missing = sorted(set(wanted) - set(found))
    unknown = sorted(set(found) - set(wanted))
    shapes = [
        f"{name} is {tuple(found[name].shape)}, needed is {tuple(wanted[name].shape)}"
        for name in sorted(set(wanted) & set(found))
        if found[name].shape != wanted[name].shape
    ]
    kinds = (("missing", missing), ("unknown", unknown), ("shape", shapes))
    return [
        f"{len(names)} {kind}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for kind, names in kinds
        if names
    ]


def check_fingerprint(what: str, expected: str, found: str, where: str | Path) -> None:
    """Refuse parts that the checkpoint was not trained with.

    Raises:
        FingerprintError: Both are known and differ.
    """
    if expected and found and expected != found:
        raise FingerprintError(
            f"the checkpoint was trained with {what} {expected}, this is {found}",
            where=where,
            mend=f"Use the {what} of the checkpoint, or train again with this one.",
        )
