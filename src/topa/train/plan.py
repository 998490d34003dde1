"""Whether a training fits its GPUs, which parallelism to take, and how long it lasts.

Weights are counted on the model itself, built without memory ("meta" device). What the
backward pass keeps is counted by running the forward pass there too, and adding up the
tensors that autograd saves: no formula of activations that a new LLM would break.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from topa.data.collate import Batch
from topa.errors import ConfigError
from topa.model.config import TopaConfig
from topa.model.topa import TopaForConditionalGeneration
from topa.train.meter import StepCost
from topa.train.step import StepModel

GB = 1e9
# Tokens of a prompt and of its label: means over TextVid-mini, tasks as in the paper.
MEAN_TOKENS, MEAN_LABELS = 86, 23
_CONTEXT = 1.2e9  # what CUDA and its libraries take before the first tensor
_SLACK = 1.1  # temporaries, fragmentation
_BYTES_PER_TRAINED = 16  # float32 weight, gradient, two moments of AdamW

# Shapes of the paper's LLMs, for machines that cannot reach their configurations.
_KNOWN: dict[str, dict[str, Any]] = {
    "llama2-7b": {"model_type": "llama", "vocab_size": 32000},
    "llama2-13b": {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "num_key_value_heads": 40,
    },
    "llama3-8b": {
        "model_type": "llama",
        "vocab_size": 128256,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
    },
    "qwen3-8b": {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
}


@dataclass(frozen=True)
class Footprint:
    """Bytes on one GPU.

    Attributes:
        frozen: Weights of the LLM.
        trained: Trainables with gradients and optimizer.
        activations: What the backward pass keeps.
        total: All, with context and slack.
    """

    frozen: float
    trained: float
    activations: float
    total: float


@dataclass(frozen=True)
class Plan:
    """What fits, and what it takes.

    Attributes:
        fits: Whether any way fits.
        parallel: `ddp` or `fsdp`, the fastest that fits (or needs least).
        recompute: Whether activations are computed again in the backward pass.
        memory: On one GPU, in that way.
        ways: Bytes of every way that was looked at, by name.
        frozen_weights: Of the LLM.
        trained_weights: Of the rest.
        hours: How long the training lasts.
        operations: Floating-point operations of all of it.
    """

    fits: bool
    parallel: str
    recompute: bool
    memory: Footprint
    ways: dict[str, float]
    frozen_weights: int
    trained_weights: int
    hours: float
    operations: float

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return asdict(self)


def read_shape(llm: str) -> PretrainedConfig:
    """Return the configuration of an LLM: a known name, a folder or a hub id; no weights.

    Raises:
        ConfigError: There is none.
    """
    if llm in _KNOWN:
        fields = dict(_KNOWN[llm])
        return AutoConfig.for_model(**fields)
    if llm == "embedded":
        return AutoConfig.for_model(
            "llama",
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            tie_word_embeddings=True,
        )
    try:
        return AutoConfig.from_pretrained(llm)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"its configuration cannot be read ({str(error).splitlines()[0]})",
            where=llm,
            mend=f"Use a folder, a hub id, or one of {', '.join(['embedded', *_KNOWN])}.",
        ) from None


def build_on_meta(
    shape: PretrainedConfig, variant: str, dtype: torch.dtype
) -> TopaForConditionalGeneration:
    """Return a model without memory: sizes of everything, values of nothing."""
    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(shape, dtype=dtype)
        model = TopaForConditionalGeneration(
            TopaConfig(text_config=shape, variant=variant, feature_dim=768), llm
        )
    return model.train()


def make_batch(size: int, length: int, labels: int, device: str, frames: int = 10) -> Batch:
    """Return a batch of plain prompts: video first, the label last."""
    slots = torch.full((size, length), -1)
    slots[:, 1 : 1 + frames] = torch.arange(frames)
    batch = Batch(
        input_ids=torch.zeros(size, length, dtype=torch.long),
        slot_index=slots,
        segment_ids=torch.zeros(size, length, dtype=torch.long),
        visible_segments=torch.ones(size, 1, 1, dtype=torch.bool),
        features=torch.ones(size, frames, 768),
        frame_mask=torch.ones(size, frames, dtype=torch.bool),
        target_rows=torch.arange(size).repeat_interleave(labels),
        target_sources=torch.arange(length - labels - 1, length - 1).repeat(size),
        target_ids=torch.zeros(size * labels, dtype=torch.long),
        target_spans=torch.arange(size).repeat_interleave(labels),
        span_groups=torch.full((size,), -1),
        group_answers=torch.zeros(0, dtype=torch.long),
    )
    return batch.to(device)


def count_saved(model: TopaForConditionalGeneration | StepModel, batch: Batch) -> float:
    """Return the bytes that autograd keeps for the backward pass of a batch, weights left out.

    What layers that are computed again get as input is held elsewhere, and not counted.
    """
    owned = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, tuple[Any, int]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in owned:
            # The storage is held, so that no later one gets its place.
            kept[storage._cdata] = (storage, storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model.target_log_probs(batch).sum()
    total = float(sum(size for _, size in kept.values()))
    del loss
    return total


def plan(
    llm: str,
    *,
    gpus: int,
    gpu_memory: float,
    batch_size: int = 18,
    length: int = 150,
    variant: str = "adapter",
    tideos: int = 721_000,
    epochs: float = 20,
    tflops: float = 312.0,
    mfu: float = 0.4,
    dtype: torch.dtype = torch.bfloat16,
) -> Plan:
    """Return the fastest way of training that fits, and how long it lasts.

    Args:
        llm: As `read_shape` takes it.
        gpus: How many.
        gpu_memory: Of each, in GB (1e9 bytes).
        batch_size: Samples of one GPU per forward pass.
        length: Most tokens of a prompt: memory is that of a batch of longest ones.
        variant: What is trained.
        tideos: How many.
        epochs: Passes over them.
        tflops: Peak of one GPU in 1e12 operations per second, of its data sheet.
        mfu: Share of the peak that is reached.
        dtype: Of the LLM's weights.

    Raises:
        ConfigError: Numbers that cannot be.
    """
    if min(gpus, gpu_memory, batch_size, tideos, epochs, tflops, mfu) <= 0:
        raise ConfigError("every number has to be above 0", where="plan")
    model = build_on_meta(read_shape(llm), variant, dtype)
    trained = sum(parameter.numel() for _, parameter in model.trainable_parameters())
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    batch = make_batch(batch_size, length, MEAN_LABELS, "meta")
    saved = count_saved(model, batch)
    outside = count_saved(StepModel(model, recompute=True).train(), batch)
    tokens = batch_size * length
    ways = _weigh(model.language_config, frozen, trained, saved, outside, tokens, gpus, dtype)
    # In the order of speed: sharding costs more than computing twice only between machines.
    fitting = [name for name, memory in ways.items() if memory.total <= gpu_memory * GB]
    chosen = fitting[0] if fitting else min(ways, key=lambda name: ways[name].total)
    cost = StepCost(model).of(1, MEAN_TOKENS, MEAN_TOKENS**2, MEAN_LABELS)
    operations = cost * tideos * epochs
    # Frozen weights: two products a weight, forward and backward; a third to compute again.
    done_twice = 3 / 2 if "recompute" in chosen else 1.0
    hours = operations * done_twice / (gpus * tflops * 1e12 * mfu) / 3600
    return Plan(
        bool(fitting),
        chosen.split(",")[0],
        "recompute" in chosen,
        ways[chosen],
        {name: memory.total for name, memory in ways.items()},
        frozen,
        trained,
        hours,
        operations,
    )


def _weigh(
    shape: PretrainedConfig,
    frozen: int,
    trained: int,
    saved: float,
    outside: float,
    tokens: int,
    gpus: int,
    dtype: torch.dtype,
) -> dict[str, Footprint]:
    """Return the memory of every way of training, by name, in the order of speed.

    Args:
        shape: Configuration of the LLM.
        frozen: Its weights.
        trained: Weights that are trained.
        saved: Bytes that the backward pass keeps.
        outside: Those of them that belong to no layer, such as logits.
        tokens: Of a batch, padding included.
        gpus: How many.
        dtype: Of the frozen weights.
    """
    size, layers = torch.finfo(dtype).bits // 8, cast(int, shape.num_hidden_layers)
    inputs = layers * tokens * cast(int, shape.hidden_size) * size
    ways: dict[str, Footprint] = {}
    for parallel in ("ddp", "fsdp") if gpus > 1 else ("ddp",):
        share = gpus if parallel == "fsdp" else 1
        # While one layer computes, the next is gathered: two are whole at any time.
        whole = 2 * frozen / layers if parallel == "fsdp" else 0
        weights = (frozen / share + whole) * size
        for recompute in (False, True):
            # The inputs of all layers, and while one is computed again what it keeps.
            kept = inputs + outside + (saved - outside) / layers if recompute else saved
            state = trained * _BYTES_PER_TRAINED / share
            total = (weights + state + kept) * _SLACK + _CONTEXT
            name = f"{parallel}, recompute" if recompute else parallel
            ways[name] = Footprint(weights, state, kept, total)
    return ways


def check_plan(sizes: Sequence[int] = (2, 4)) -> list[dict[str, float]]:
    """Compare what is counted without memory with real runs of a small model on the CPU.

    Returns:
        For each batch size the counted and the really saved bytes, and their ratio.
    """
    shape = AutoConfig.for_model(
        "llama",
        vocab_size=1024,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
    )
    counted = build_on_meta(shape, "adapter", torch.float32)
    llm = AutoModelForCausalLM.from_config(shape)
    real = TopaForConditionalGeneration(
        TopaConfig(text_config=shape, variant="adapter", feature_dim=768), llm
    ).train()
    rows = []
    for size in sizes:
        saved = [
            count_saved(model, make_batch(size, 128, 16, device))
            for model, device in ((counted, "meta"), (real, "cpu"))
        ]
        rows.append(
            {"batch": size, "counted": saved[0], "real": saved[1], "ratio": saved[0] / saved[1]}
        )
    return rows
