"""Checking topa against recorded outputs of the authors' code."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from topa.data.collate import collate
from topa.data.templates import Prompt, Segment
from topa.errors import DataError
from topa.features.memory import Memory
from topa.model.checkpoint import load_trainables, read_config
from topa.model.official.conversion import build_model, export_checkpoint, make_config
from topa.model.official.meta import convert_language, is_meta_folder
from topa.model.official.trainables import name_officially, read_checkpoint
from topa.model.topa import TopaForConditionalGeneration

__all__ = ["BUNDLED", "TOLERANCE", "Difference", "check_golden"]

TOLERANCE = 1e-5
BUNDLED = Path(__file__).parent / "golden"
"""Two folders of random weights in the authors' format, with what their code makes of them."""


@dataclass(frozen=True)
class Difference:
    """How far one recorded tensor is from what topa computes.

    Attributes:
        name: logits, nll, loss, grad.NAME, or export.NAME (which must be equal to the bit).
        largest: The largest absolute difference.
        values: How many numbers were compared.
        scale: The largest absolute value recorded.
    """

    name: str
    largest: float
    values: int
    scale: float

    @property
    def fits(self) -> bool:
        """Whether it is at most TOLERANCE, relative where the values are small; NaN is not."""
        most = 0.0 if self.name.startswith("export.") else TOLERANCE * min(1.0, self.scale)
        return self.largest <= most


@dataclass(frozen=True)
class _Golden:
    """Recorded tensors and settings of a folder."""

    tensors: dict[str, Tensor]
    settings: dict[str, str]
    folder: Path

    def slot_index(self) -> Tensor:
        """Return [S] slot number at each position, -1 at text."""
        start, count = int(self.settings["video_start"]), int(self.settings["max_feats"])
        slots = torch.full((self.tensors["input_ids"].shape[-1],), -1)
        slots[start : start + count] = torch.arange(count)
        return slots


def check_golden(folder: str | Path) -> list[Difference]:
    """Build the model of a folder and compare what it computes with what was recorded.

    The folder holds an LLM (Meta's layout or Hugging Face's), checkpoint_N.pth, and
    golden.safetensors. The model is imported, saved and loaded on the way; the log-likelihoods
    and the loss come from the pass that training and scoring use, the logits from the one
    that `generate()` uses.

    Raises:
        DataError: A file is missing or damaged.
        CheckpointError: The checkpoint does not fit the LLM.
    """
    golden = _read_golden(Path(folder))
    with tempfile.TemporaryDirectory(prefix="topa-check-") as scratch:
        model, exported = _import_and_reload(golden, Path(scratch))
    video, memory = golden.tensors["video"], golden.tensors["memory"]
    temperature = float(golden.settings["temperature"])
    rows = Memory(memory, [str(row) for row in range(len(memory))], "", temperature)
    projected = rows.project(video)
    found = {
        "logits": _logits(model, golden, projected),
        "nll": _log_likelihoods(model, golden, projected),
    }
    loss = _loss(model, golden, video)
    loss.backward()
    found["loss"] = loss.detach()
    gradients = {
        name: torch.zeros_like(weight) if weight.grad is None else weight.grad
        for name, weight in model.trainable_parameters()
    }
    config = model.config
    named = name_officially(gradients, config.skipped_layers, 0.0)
    found |= {f"grad.{name}": tensor for name, tensor in named.items()}
    found |= {f"export.{name}": tensor for name, tensor in exported.items()}
    return list(_compare(golden, found))


def _read_golden(folder: Path) -> _Golden:
    """Return the recorded tensors of a folder.

    Raises:
        DataError: golden.safetensors is missing, damaged, or holds too little.
    """
    path = folder / "golden.safetensors"
    if not path.is_file():
        raise DataError(
            "file not found", where=path, mend="Give a folder with outputs of the authors' code."
        )
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            settings = file.metadata() or {}
    except SafetensorError as error:
        raise DataError(f"not a whole safetensors file ({error})", where=path) from None
    names = {"input_ids", "labels", "logits", "memory", "nll", "train_loss", "video"}
    keys = {"adapter_len", "effective_rope_theta", "max_feats", "temperature", "video_start"}
    if missing := sorted((names - set(tensors)) | (keys - set(settings))):
        raise DataError(f"no {', '.join(missing)} in it", where=path)
    return _Golden(tensors, settings, folder)


def _import_and_reload(
    golden: _Golden, scratch: Path
) -> tuple[TopaForConditionalGeneration, dict[str, Tensor]]:
    """Return the model as it is after import, saving and loading, and its exported tensors.

    Raises:
        DataError: There is not exactly one checkpoint_N.pth.
        CheckpointError: It does not fit the LLM.
    """
    paths = sorted(golden.folder.glob("checkpoint*.pth"))
    if len(paths) != 1:
        raise DataError(f"{len(paths)} checkpoint_N.pth, one is needed", where=golden.folder)
    official = read_checkpoint(paths[0], int(golden.settings["adapter_len"]))
    source = golden.folder
    if is_meta_folder(source):
        convert_language(source, scratch / "llm")
        source = scratch / "llm"
    theta = float(golden.settings["effective_rope_theta"])
    llm = _load(source)
    config = make_config(official, llm.config, theta)
    build_model(official, llm, config).save_pretrained(scratch / "topa")
    model = TopaForConditionalGeneration(read_config(scratch / "topa"), _load(source))
    load_trainables(model, scratch / "topa")
    export_checkpoint(scratch / "topa", scratch / "export.pth")
    back = read_checkpoint(scratch / "export.pth", official.adapter_length)
    return model.eval(), back.tensors


def _load(folder: Path) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    return model.requires_grad_(False).eval()


def _logits(model: TopaForConditionalGeneration, golden: _Golden, video: Tensor) -> Tensor:
    """Return [B, options, S, vocabulary] of plain forward passes."""
    ids = golden.tensors["input_ids"]
    batch, options, length = ids.shape
    with torch.inference_mode():
        output = model(
            input_ids=ids.flatten(0, 1),
            slot_index=golden.slot_index().expand(batch * options, length),
            features=video.repeat_interleave(options, 0),
        )
    return output.logits.view(batch, options, length, -1)


def _prompt(golden: _Golden, row: int, option: int) -> tuple[Prompt, int]:
    """Return a recorded sequence as a prompt, and where its labels start.

    Raises:
        DataError: Its labels are not one run of tokens.
    """
    ids = golden.tensors["input_ids"][row, option].tolist()
    labels = golden.tensors["labels"][row, option]
    places = labels.nonzero().flatten()
    start, end = int(places[0]), int(places[-1]) + 1
    if end - start != len(places) or labels[start:end].tolist() != ids[start:end]:
        raise DataError(f"labels of row {row} are not a run of its tokens", where=golden.folder)
    slots = golden.slot_index().tolist()
    root = Segment(tuple(ids[:start]), -1, tuple(slots[:start]))
    label = Segment(tuple(ids[start:end]), 0, (-1,) * (end - start), is_label=True)
    return Prompt([root, label]), start


def _target_nll(
    model: TopaForConditionalGeneration, prompts: list[Prompt], video: Tensor
) -> Tensor:
    """Return [N] negative log-likelihoods of the label tokens, in the order of the prompts."""
    return -model.target_log_probs(collate(prompts, list(video), model.config.num_frames))


def _log_likelihoods(model: TopaForConditionalGeneration, golden: _Golden, video: Tensor) -> Tensor:
    """Return [B, options, S - 1]: that of token i + 1 at i, 0 where there is no label."""
    labels = golden.tensors["labels"]
    batch, options, _ = labels.shape
    pairs = [(row, option) for row in range(batch) for option in range(options)]
    prompts = [_prompt(golden, *pair)[0] for pair in pairs]
    with torch.inference_mode():
        values = _target_nll(model, prompts, video.repeat_interleave(options, 0))
    found = torch.zeros(labels.shape)
    found[labels != 0] = values  # both run through rows, options and positions in this order
    return found[..., 1:]


def _loss(model: TopaForConditionalGeneration, golden: _Golden, video: Tensor) -> Tensor:
    """Return the training loss of the first option: the mean over all label tokens."""
    prompts = [_prompt(golden, row, 0)[0] for row in range(len(video))]
    return _target_nll(model, prompts, video).mean()


def _compare(golden: _Golden, found: Mapping[str, Tensor]) -> Iterator[Difference]:
    """Yield one difference for each recorded tensor and each exported one.

    Raises:
        DataError: One side has a tensor that the other has not.
    """
    recorded = {name: t for name, t in golden.tensors.items() if name in ("logits", "nll")}
    recorded["loss"] = golden.tensors["train_loss"].squeeze()
    recorded |= {name: t for name, t in golden.tensors.items() if name.startswith("grad.")}
    paths = sorted(golden.folder.glob("checkpoint*.pth"))
    tensors = read_checkpoint(paths[0], int(golden.settings["adapter_len"])).tensors
    recorded |= {f"export.{name}": tensor for name, tensor in tensors.items()}
    for name in sorted(set(recorded) ^ set(found)):
        # Gates of layers that are left out have no gradient.
        if not (name.startswith("grad.layers.") and name in found and not found[name].any()):
            side = "was not recorded" if name in found else "is not computed"
            raise DataError(f"{name} {side}", where=golden.folder)
    for name, tensor in recorded.items():
        ours = found[name]
        if ours.shape != tensor.shape or ours.dtype != tensor.dtype:
            raise DataError(
                f"{name} is {ours.dtype} {tuple(ours.shape)}, recorded is {tensor.dtype} "
                f"{tuple(tensor.shape)}",
                where=golden.folder,
            )
        largest = float((ours - tensor).abs().max())
        yield Difference(name, largest, tensor.numel(), float(tensor.abs().max()))
