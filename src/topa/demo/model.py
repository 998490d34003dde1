"""The parts that answer: encoder, memory, and a model that is loaded or trained on the spot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from topa.answer import Topa
from topa.config import AlignConfig, load_config
from topa.demo.narration import Narrator
from topa.features.encoder import Encoder, Progress, load_encoder
from topa.features.memory import Memory
from topa.features.store import encode_tideos
from topa.model.checkpoint import read_config
from topa.model.loading import load_model
from topa.model.topa import TopaForConditionalGeneration
from topa.runs import read_jsonl
from topa.tideo.textvid import load_tideos
from topa.train.align import align
from topa.train.session import TrainResult

RECIPE = Path(__file__).parents[1] / "recipes" / "embedded.yaml"
"""Settings of the embedded pre-alignment; in a checkout configs/embedded.yaml is this file."""


class CountingEncoder:
    """An encoder that counts the texts it really encodes, to tell what came from the cache.

    Attributes:
        encoded: Number of texts encoded so far.
    """

    def __init__(self, encoder: Encoder):
        self.encoder, self.encoded = encoder, 0

    @property
    def dim(self) -> int:
        """Size of a feature."""
        return self.encoder.dim

    @property
    def fingerprint(self) -> str:
        """Identity of the encoder within."""
        return self.encoder.fingerprint

    def encode_text(
        self, texts: Sequence[str], *, progress: Progress | None = None
    ) -> torch.Tensor:
        """Return unit-norm float32 [n, dim]."""
        self.encoded += len(texts)
        return self.encoder.encode_text(texts, progress=progress)

    def encode_frames(
        self, images: Sequence[Image.Image], *, progress: Progress | None = None
    ) -> torch.Tensor:
        """Return unit-norm float32 [n, dim]."""
        return self.encoder.encode_frames(images, progress=progress)


def prepare(
    narrator: Narrator, checkpoint: str | Path, train_minutes: float | None, out: Path
) -> tuple[Topa, dict[str, Any] | None]:
    """Return the model with encoder and memory, and what training did if it was trained.

    Args:
        narrator: Told about both stages.
        checkpoint: What to load, "embedded" or a folder, if nothing is trained.
        train_minutes: Train for so long instead.
        out: The run directory of the training is `align` in it.

    Raises:
        TopaError: A part is missing or does not fit the others.
    """
    line = "Encoding the texts of its frames: they are the memory that images are compared with."
    with narrator.stage("memory", line):
        if train_minutes is None:
            settings = read_config(checkpoint)
            name, sources = settings.encoder, settings.tideos
        else:
            config = read_recipe(train_minutes, out / "align")
            name, sources = config.model.encoder, [config.data.tideos, *config.data.extra]
        encoder = load_encoder(name)
        memory = encode_memory(narrator, sources, encoder)
    if train_minutes is None:
        with narrator.stage("model", "Loading the LLM and the checkpoint trained with Tideos."):
            model, builder = load_model(checkpoint)
            _tell_sizes(narrator, model)
        return Topa(model, builder, encoder, memory), None
    line = f"Pre-aligning the LLM with Tideos from scratch, for {train_minutes:g} minutes."
    with narrator.stage("model", line):
        training = train(narrator, config)
        model, builder = load_model(training["checkpoint"])
        _tell_sizes(narrator, model)
    return Topa(model, builder, encoder, memory), training


def read_recipe(minutes: float, run: Path) -> AlignConfig:
    """Return the settings of the embedded pre-alignment, cut to so many minutes.

    Raises:
        ConfigError: The minutes are not a number above 0.
    """
    config = load_config(AlignConfig, RECIPE, [f"train.minutes={minutes!r}"])
    return config.model_copy(update={"out": str(run)})


def encode_memory(narrator: Narrator, sources: Sequence[str], encoder: Encoder) -> Memory:
    """Return the memory of Tideos, and say whether their features came from the cache."""
    tideos = [tideo for source in sources for tideo in load_tideos(source)]
    texts = len({text for tideo in tideos for frame in tideo.frames for text in frame.texts})
    counting = CountingEncoder(encoder)
    with narrator.bar("  texts", texts) as progress:
        memory = Memory.build(tideos, encode_tideos(tideos, counting, progress=progress))
    origin = "encoded now, and kept in the cache" if counting.encoded else "taken from the cache"
    narrator.say(f"  {texts:,} different texts of {' + '.join(sources)}, {origin}.")
    narrator.say(f"  The memory has {len(memory):,} rows of {memory.dim} numbers, one per frame.")
    return memory


def train(narrator: Narrator, config: AlignConfig) -> dict[str, Any]:
    """Pre-align as `config` says, and return what came of it.

    Raises:
        ConfigError: The run directory holds a run of other settings.
    """
    result = align(config, say=lambda line: narrator.say(f"  {line}"))
    history = [
        row for _, row in read_jsonl(Path(config.out) / "metrics.jsonl") if "eval_accuracy" in row
    ]
    summary = summarise(result, history)
    narrator.say(f"  {summary['steps']} steps in {summary['seconds'] / 60:.1f} minutes.")
    for row in summary["validation"]:
        narrator.say(
            f"  After {row['step']} steps: {row['accuracy']:.1%} of the validation questions"
            f" right (without the video {row['blind_accuracy']:.1%})."
        )
    return summary


def summarise(result: TrainResult, history: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the outcome of a training, with its first and its last validation."""
    steps = {row["step"]: row for row in history}  # in the order of the log
    ends = dict.fromkeys([*list(steps)[:1], *list(steps)[-1:]])
    return {
        "checkpoint": str(result.checkpoint),
        "steps": result.steps,
        "seconds": result.seconds,
        "validation": [
            {
                "step": row["step"],
                "accuracy": row["eval_accuracy"],
                "blind_accuracy": row["eval_blind_accuracy"],
            }
            for row in (steps[step] for step in ends)
        ],
    }


def _tell_sizes(narrator: Narrator, model: TopaForConditionalGeneration) -> None:
    trained = sum(parameter.numel() for _, parameter in model.trainable_parameters())
    total = sum(parameter.numel() for parameter in model.parameters())
    narrator.say(
        f"  LLM {model.config.llm}: {total - trained:,} frozen weights;"
        f" {model.config.variant}: {trained:,} trained ones ({trained / total:.1%})."
    )
