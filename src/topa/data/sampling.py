"""What every training set shares: a task, a prompt and features drawn from (seed, epoch, index)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from topa.data.lengths import OnOverlong, fit_prompt
from topa.data.templates import Prompt, PromptBuilder
from topa.errors import ConfigError, DataError


@dataclass
class Sample:
    """One prompt with the features of its video.

    Attributes:
        prompt: The prompt.
        features: [n, d] unit frame features, n <= num_frames.
        blind: Whether the video is masked, and no option is to be preferred.
    """

    prompt: Prompt
    features: Tensor
    blind: bool = False


@dataclass(frozen=True)
class Drawing:
    """How samples are drawn.

    Attributes:
        num_frames: T.
        tasks: Weight of each task.
        seed: Seed of every draw.
        noise: Variance of Gaussian noise on features before renormalising.
        blind: Probability of masking the video of a contrast sample.
        max_length: Most tokens of a prompt; no limit if None.
        overlong: What becomes of longer ones (see `fit_prompt`).
    """

    num_frames: int
    tasks: Mapping[str, float]
    seed: int = 0
    noise: float = 0.0
    blind: float = 0.0
    max_length: int | None = None
    overlong: OnOverlong = "cut"


class DrawnDataset(Dataset[Sample]):
    """Samples that are pure functions of (seed, epoch, index).

    A subclass has a method `_NAME(index, rng)` that builds the prompt of each task NAME.

    Args:
        builder: Prompt builder of the LLM.
        drawing: How samples are drawn.
        known: Names of the tasks there are.

    Raises:
        ConfigError: A task that is not known, or none with a weight.
    """

    def __init__(self, builder: PromptBuilder, drawing: Drawing, known: Sequence[str]):
        tasks = drawing.tasks
        if set(tasks) - set(known) or sum(tasks.values()) <= 0:
            raise ConfigError(
                f"tasks {sorted(tasks)} are not usable",
                where="data.tasks",
                mend=f"Use {tuple(known)}.",
            )
        self.builder, self.drawing = builder, drawing
        self.task_names = list(tasks)
        weights = np.array([tasks[name] for name in self.task_names], dtype=np.float64)
        self.task_weights = weights / weights.sum()
        self.epoch = 0

    @property
    def num_frames(self) -> int:
        """T."""
        return self.drawing.num_frames

    @property
    def seed(self) -> int:
        """Seed of every draw."""
        return self.drawing.seed

    def set_epoch(self, epoch: int) -> None:
        """Choose which epoch's draws `__getitem__` gives."""
        self.epoch = epoch

    def length(self, index: int) -> int:
        """Return the tokens of the sample at `index` in this epoch, 0 if it is left out."""
        prompt, _ = self._fit(self._draw(index)[0])
        return len(prompt) if prompt is not None else 0

    def __getitem__(self, index: int) -> Sample:
        if index < 0:  # a filler (see `topa.data.batches`): a frame, and nothing to learn
            rng = np.random.default_rng(0)
            return Sample(self.builder.caption(), self._frame_features(-1 - index, 1, rng))
        prompt, blind, rng = self._draw(index)
        fitted, frames = self._fit(prompt)
        if fitted is None:
            raise DataError(
                f"a prompt of {len(prompt)} tokens, at most {self.drawing.max_length} are allowed",
                where=self._name(index),
                mend="Raise data.max_length.",
            )
        shown = self._frame_features(index, frames, rng)
        if self.drawing.noise > 0:
            noise = rng.normal(0.0, self.drawing.noise**0.5, shown.shape)
            shown = F.normalize(shown + torch.from_numpy(noise).to(shown.dtype), dim=-1)
        return Sample(fitted, shown, blind)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def _name(self, index: int) -> str:
        """Return what to call a sample in an error."""

    @abstractmethod
    def _frame_features(self, index: int, frames: int, rng: np.random.Generator) -> Tensor:
        """Return [n, d] features of at most `frames` frames, with augmentations of their own."""

    def _fit(self, prompt: Prompt) -> tuple[Prompt | None, int]:
        drawing = self.drawing
        per_frame = self.builder.num_slots // drawing.num_frames
        return fit_prompt(
            prompt, drawing.max_length, drawing.num_frames, per_frame, drawing.overlong
        )

    def _draw(self, index: int) -> tuple[Prompt, bool, np.random.Generator]:
        """Draw the task and build its prompt; the generator goes on to the features."""
        rng = np.random.default_rng((self.seed, self.epoch, index))
        task = self.task_names[rng.choice(len(self.task_names), p=self.task_weights)]
        prompt = getattr(self, f"_{task}")(index, rng)
        return prompt, bool(task == "contrast" and rng.random() < self.drawing.blind), rng
