"""What a training tells while it runs: a bar of steps, lines of figures, and outside logs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import TensorBoardCallback, WandbCallback

Say = Callable[[str], None]
Progress = Callable[[str, int, int], None]


def make_reporters(names: Sequence[str], out: Path) -> list[TrainerCallback]:
    """Return what else gets the figures of the log.

    TensorBoard's files are written to `out`/tensorboard. Weights & Biases keeps its own below
    `out`, in the project `topa`, unless its environment variables say otherwise.

    Args:
        names: Of `tensorboard` and `wandb`.
        out: Run directory.
    """
    reporters: list[TrainerCallback] = []
    if "tensorboard" in names:
        board = TensorBoardCallback()
        board.logging_dir = str(out / "tensorboard")
        reporters.append(board)
    if "wandb" in names:
        os.environ.setdefault("WANDB_PROJECT", "topa")
        os.environ.setdefault("WANDB_DIR", str(out))
        reporters.append(WandbCallback())
    return reporters


class ProgressLines(TrainerCallback):
    """Reports steps, and says the figures of each log in a line.

    Args:
        say: Called with a line.
        progress: Called with "steps", those done, and all.
    """

    def __init__(self, say: Say, progress: Progress | None = None):
        self.say, self.progress = say, progress

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Show how far the run is."""
        if self.progress is not None and state.is_world_process_zero:
            self.progress("steps", state.global_step, state.max_steps)

    on_train_begin = on_step_end  # where it begins, or goes on

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Say a line."""
        line = describe(logs or {})
        if line and state.is_world_process_zero:
            self.say(f"step {state.global_step} of {state.max_steps}: {line}")


def describe(logs: Mapping[str, Any]) -> str:
    """Return the figures of a row of the log in words; nothing of the row that ends a run."""
    measured = {
        name.removeprefix("eval_").replace("_", " "): value
        for name, value in logs.items()
        if name.startswith("eval_")
    }
    if measured:
        figures = (
            f"{name} {value:.1%}" if name.endswith("accuracy") else f"{name} {value:.3f}"
            for name, value in measured.items()
        )
        return f"validation {', '.join(figures)}"
    if "loss" not in logs:
        return ""
    line = f"loss {float(logs['loss']):.4f}"
    if "samples_per_second" in logs:
        real, padded = logs["tokens_per_second"], logs["padded_tokens_per_second"]
        line += (
            f"; {logs['samples_per_second']:.3g} samples/s,"
            f" {real:.4g} tokens/s ({padded:.4g} with padding),"
            f" MFU {logs['mfu']:.1%}, data wait {logs['data_wait']:.1%}"
        )
    return line
