"""From the authors' files to a checkpoint of topa, and back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from topa.data.templates import AUTHORS_VERSION
from topa.errors import CheckpointError, ConfigError
from topa.features.encoder import Encoder, load_encoder
from topa.model.checkpoint import WEIGHTS_NAME, read_config
from topa.model.config import TopaConfig
from topa.model.language import load_language
from topa.model.official.memory import read_memory, write_memory
from topa.model.official.meta import MetaLanguage, convert_language, is_meta_folder
from topa.model.official.tokenizer import convert_tokenizer, find_tokenizer
from topa.model.official.trainables import (
    OfficialCheckpoint,
    name_for_topa,
    name_officially,
    read_checkpoint,
)
from topa.model.topa import TopaForConditionalGeneration
from topa.runs import atomic_path, read_json, sha256_of, write_json

__all__ = [
    "ENCODER",
    "ROPE_THETA",
    "Import",
    "build_model",
    "export_checkpoint",
    "import_checkpoint",
    "make_config",
]

ENCODER = "openai/clip-vit-large-patch14"
ROPE_THETA = 10000.0
PROVENANCE = "official.json"

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclass
class Import:
    """What was read, and what was made of it.

    Attributes:
        out: The checkpoint folder.
        llm: Where the checkpoint finds its LLM.
        config: Its configuration.
        memory_rows: Rows of the memory; 0 without one.
        notes: What the user should know.
    """

    out: Path
    llm: str
    config: TopaConfig
    memory_rows: int = 0
    notes: list[str] = field(default_factory=list)


def import_checkpoint(
    checkpoint: str | Path,
    llm: str,
    out: str | Path,
    *,
    memory: str | Path | None = None,
    tokenizer: str | Path | None = None,
    encoder: str | None = None,
    adapter_length: int | None = None,
    rope_theta: float = ROPE_THETA,
    progress: Progress | None = None,
) -> Import:
    """Make a checkpoint folder of topa from one of the authors'.

    Args:
        checkpoint: checkpoint_N.pth of the authors' training.
        llm: The LLM it was trained on: a folder in Meta's layout, which is converted into
            the checkpoint folder, or a folder or hub id of Hugging Face, which is used as it is.
        out: Folder to write.
        memory: memory.pkl, [n, 768]; the first million rows are used, as in the authors' code.
        tokenizer: tokenizer.model, where it is not beside the LLM of Meta's layout.
        encoder: Encoder of the features, by hub id or folder; it is loaded, and its fingerprint
            recorded. OpenAI's CLIP ViT-L/14 by default, by name alone.
        adapter_length: Prompts per layer, if not every layer carries an adapter.
        rope_theta: Base of the rotary positions of the training.
        progress: Told how far it is.

    Raises:
        CheckpointError: Files are missing, or the checkpoint is of another LLM or encoder.
        DataError: A file is damaged, or a pickle that asks for code.
        WeightsError: The encoder cannot be loaded.
        ConfigError: `out` holds something else, or the LLM cannot be loaded.
    """
    out = Path(out)
    # An import that was stopped has left these, and may be started again.
    if out.exists() and (not out.is_dir() or {part.name for part in out.iterdir()} - {"llm"}):
        raise ConfigError("the folder is not empty", where=out, mend="Name a new folder.")
    official = read_checkpoint(checkpoint, adapter_length)
    rows = (
        None
        if memory is None
        else read_memory(memory, official.tensors["visual_proj.weight"].shape[1])
    )
    network = None if encoder is None else _load_encoder(encoder, official)
    source, folder = llm, llm
    if is_meta_folder(llm):
        source, folder = "./llm", str(out / "llm")
        _convert_llm(official, llm, folder, tokenizer, progress)
    elif tokenizer is not None:
        raise ConfigError("--tokenizer is for LLMs in Meta's layout", where=llm)
    language = load_language(folder, torch.bfloat16)
    config = make_config(official, language.model.config, rope_theta)
    config.llm, config.llm_fingerprint = source, language.fingerprint
    config.encoder, config.encoder_fingerprint = encoder or ENCODER, ""
    if network is not None:
        config.encoder_fingerprint = network.fingerprint
    done = Import(out, folder, config)
    build_model(official, language.model, config).save_pretrained(out)
    done.notes += _list_notes(official, encoder, memory)
    if rows is not None:
        fingerprint = config.encoder_fingerprint
        done.memory_rows = write_memory(rows, out / "memory", fingerprint, done.notes)
    write_json(out / PROVENANCE, _provenance(official, done, memory, llm))
    return done


def _list_notes(
    official: OfficialCheckpoint, encoder: str | None, memory: str | Path | None
) -> list[str]:
    """Return what the user should know of an import."""
    notes = []
    if memory is None:
        notes.append("no memory: image features will go in as they are (give --memory)")
    if encoder is None:
        notes.append(
            f"the encoder is taken to be {ENCODER}, its weights unseen (--encoder records them)"
        )
    if official.skipped_layers:
        notes.append(
            f"the lower {official.skipped_layers} of {official.num_layers} layers are left out, "
            "as in the authors' code"
        )
    return notes


def _convert_llm(
    official: OfficialCheckpoint,
    llm: str,
    folder: str,
    tokenizer: str | Path | None,
    progress: Progress | None,
) -> None:
    """Write an LLM of Meta's layout and its tokenizer for transformers.

    Raises:
        CheckpointError: It is another LLM than that of the training, or files are missing.
        DataError: A shard is damaged, or more than tensors.
    """
    found = MetaLanguage.open(llm).config()
    make_config(official, found, ROPE_THETA)  # refuses another LLM before the long work
    source = tokenizer or find_tokenizer(llm)
    count = len(convert_tokenizer(source, folder))
    if count > found.vocab_size:
        raise CheckpointError(
            f"{count} tokens, the LLM knows {found.vocab_size}",
            where=source,
            mend="Give the tokenizer.model that Meta distributes with this LLM.",
        )
    convert_language(llm, folder, progress and (lambda *n: progress("layers", *n)))


def _load_encoder(name: str, official: OfficialCheckpoint) -> Encoder:
    """Return the encoder, if its features fit the projector.

    Raises:
        CheckpointError: They have another width.
        WeightsError: It cannot be loaded.
    """
    encoder, width = load_encoder(name), official.tensors["visual_proj.weight"].shape[1]
    if encoder.dim != width:
        raise CheckpointError(
            f"trained on features of width {width}, {name} has {encoder.dim}",
            where=official.path,
            mend="Give the encoder of the training with --encoder.",
        )
    return encoder


def make_config(
    official: OfficialCheckpoint, llm: PretrainedConfig, rope_theta: float
) -> TopaConfig:
    """Return the configuration of a model with these trained tensors.

    Raises:
        CheckpointError: They belong to another LLM.
    """
    found = (llm.hidden_size, llm.num_hidden_layers, llm.num_attention_heads)
    needed = (official.hidden_size, official.num_layers, official.num_heads)
    for what, here, wanted in zip(("width", "layers", "heads"), found, needed, strict=True):
        if here != wanted:
            raise CheckpointError(
                f"trained on an LLM of {wanted} {what}, this one has {here}",
                where=official.path,
                mend="Give the LLM of the training with --llm.",
            )
    rope = getattr(llm, "rope_parameters", None) or {}
    is_own = rope.get("rope_type", "default") == "default" and rope.get("rope_theta") == rope_theta
    return TopaConfig(
        text_config=copy.deepcopy(llm),
        template_version=AUTHORS_VERSION,
        feature_dim=official.tensors["visual_proj.weight"].shape[1],
        num_frames=len(official.tensors["temporal_emb.weight"]),
        adapter_length=official.adapter_length,
        bias=3.5 if official.bias is None else official.bias,
        scoring="selection",
        subtract_blind=False,
        skipped_layers=official.skipped_layers,
        rope_theta=None if is_own else rope_theta,
        keep_slot_positions=True,
    )


def build_model(
    official: OfficialCheckpoint, llm: PreTrainedModel, config: TopaConfig
) -> TopaForConditionalGeneration:
    """Return a model on an LLM with the authors' trained tensors in it.

    Raises:
        CheckpointError: A tensor has another shape than the model needs.
    """
    model = TopaForConditionalGeneration(config, llm)
    named = name_for_topa(official)
    wanted = dict(model.saved_tensors())
    if odd := sorted(set(named) ^ set(wanted)):
        raise CheckpointError(f"the LLM has no place for {odd[0]}", where=official.path)
    with torch.no_grad():
        for name, tensor in wanted.items():
            if tensor.shape != named[name].shape:
                raise CheckpointError(
                    f"{name} is {tuple(named[name].shape)}, needed is {tuple(tensor.shape)}",
                    where=official.path,
                    mend="Give the LLM of the training with --llm.",
                )
            tensor.copy_(named[name])
    return model


def export_checkpoint(checkpoint: str | Path, out: str | Path) -> dict[str, Tensor]:
    """Write the trained tensors of a checkpoint folder as the authors' code loads them.

    Args:
        checkpoint: Folder of a model of variant "adapter" on a Llama model.
        out: checkpoint_N.pth to write.

    Returns:
        The tensors, by the authors' names.

    Raises:
        ConfigError: The model has parts that the authors' code does not know.
        CheckpointError: There is no checkpoint.
    """
    folder = Path(checkpoint)
    config = read_config(folder)
    unlike = {
        "variant": config.variant != "adapter",
        "slots_per_frame": config.slots_per_frame != 1,
        "dictionary_size": config.dictionary_size != 0,
    }
    if wrong := [name for name, differs in unlike.items() if differs]:
        raise ConfigError(
            f"{wrong[0]} is {getattr(config, wrong[0])!r}, which the authors' code does not know",
            where=folder,
            mend='Only models of variant "adapter" with one slot a frame can be exported.',
        )
    weights = folder / WEIGHTS_NAME
    if not weights.is_file():
        raise CheckpointError("file not found", where=weights, mend="Give a checkpoint folder.")
    tensors = name_officially(load_file(weights), config.skipped_layers, config.bias)
    layers = sum(name.endswith(".gate1") for name in tensors)
    if config.text_config is not None and layers != config.text_config.num_hidden_layers:
        raise ConfigError(
            f"{layers} of the LLM's {config.text_config.num_hidden_layers} layers are known here",
            where=folder,
            mend="The authors' code would leave out the others; export cannot say otherwise.",
        )
    origin = folder / PROVENANCE
    epoch = read_json(origin).get("epoch") if origin.is_file() else None
    with atomic_path(out) as temporary:
        torch.save({"model": tensors, "epoch": epoch or 0}, temporary)
    return tensors


def _provenance(
    official: OfficialCheckpoint, done: Import, memory: str | Path | None, llm: str
) -> dict[str, object]:
    """Return what a reader needs to know where the checkpoint comes from."""
    files = {"checkpoint": official.path}
    if memory is not None:
        files["memory"] = Path(memory)
    return {
        "sources": {
            what: {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}
            for what, path in files.items()
        },
        "llm": {"given": Path(llm).name if Path(llm).is_dir() else llm, "used": done.config.llm},
        "epoch": official.epoch,
        "adapter_length": official.adapter_length,
        "adapted_layers": official.adapted_layers,
        "skipped_layers": official.skipped_layers,
        "memory_rows": done.memory_rows,
        "notes": done.notes,
    }
