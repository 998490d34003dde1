"""The run directory of a pre-alignment: its settings, its log, and where to go on from."""

from __future__ import annotations

import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint

from topa.config import AlignConfig, FinetuneConfig, dump_config, load_config
from topa.errors import ConfigError
from topa.runs import append_jsonl, environment, read_json, write_json, write_text

logger = logging.getLogger(__name__)
# What a run leaves behind that depends on its settings.
_BEGUN = ("features.safetensors", "metrics.jsonl", "checkpoints", "result.json")


def open_run(out: Path, config: AlignConfig | FinetuneConfig) -> None:
    """Write the resolved settings and the environment to a run directory.

    Raises:
        ConfigError: The directory holds a run of other settings, and what came of it.
    """
    path = out / "config.yaml"
    begun = any((out / name).exists() for name in _BEGUN)
    # Settings, not text: an older version may not have had some that are at their default.
    if begun and path.is_file() and load_config(type(config), path) != config:
        raise ConfigError(
            "this run directory was made with other settings",
            where=path,
            mend="Choose another out=..., or delete the directory to start again.",
        )
    write_text(path, dump_config(config))
    write_json(out / "environment.json", environment())


def find_result(out: Path) -> dict[str, Any] | None:
    """Return the result of a finished run, None of one that is not."""
    path = out / "result.json"
    return read_json(path) if path.is_file() else None


def find_unfinished(runs: Path, kind: type[AlignConfig] | type[FinetuneConfig]) -> Path:
    """Return the run below `runs` that was worked on last and is not finished.

    Raises:
        ConfigError: There is none of this kind.
    """
    key = "start" if kind is FinetuneConfig else "model"
    found = [
        path
        for path in runs.glob("**/config.yaml")
        if find_result(path.parent) is None
        and any(line.startswith(f"{key}:") for line in path.read_text("utf-8").splitlines())
    ]
    if not found:
        raise ConfigError(
            "no run that is not finished", where=runs, mend="Start one, or name its out=..."
        )
    return max(found, key=lambda path: path.parent.stat().st_mtime).parent


def find_resume(checkpoints: Path) -> tuple[Path, TrainerState] | None:
    """Return the newest whole checkpoint and its state; delete those cut off while written.

    The Trainer writes the state last: a checkpoint without a readable one is not whole.
    """
    while checkpoints.is_dir() and (found := get_last_checkpoint(str(checkpoints))):
        try:
            return Path(found), TrainerState.load_from_json(str(Path(found, TRAINER_STATE_NAME)))
        except (FileNotFoundError, json.JSONDecodeError):
            logger.warning("%s was not written to its end and is deleted", found)
            shutil.rmtree(found)
    return None


class RunLog(TrainerCallback):
    """Writes what the Trainer logs to metrics.jsonl, and stops at a deadline.

    Args:
        path: The log.
        seconds: Stop after so long, over all parts of a resumed run; never if None.
    """

    def __init__(self, path: Path, seconds: float | None = None):
        self.path, self.seconds = path, seconds
        self.start = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds of training, those before a stop included."""
        return round(time.monotonic() - self.start, 1)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Go on from the step that the Trainer starts with."""
        self.go_on(state.global_step)

    def go_on(self, step: int) -> None:
        """Take back the rows of steps that are done again, and count time from where it was."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_text(encoding="utf-8").split("\n") if self.path.is_file() else []
        # What follows the last line break was cut off while written.
        rows = [json.loads(line) for line in lines[:-1]]
        kept = [row for row in rows if row["step"] <= step > 0]
        if PartialState().is_main_process:
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self.start = time.monotonic() - (kept[-1]["seconds"] if kept else 0.0)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Append one row."""
        if not state.is_world_process_zero:
            return
        plain = {  # numpy numbers and tensors have item(), Python's do not
            name: value.item() if hasattr(value, "item") else value
            for name, value in (logs or {}).items()
        }
        append_jsonl(self.path, {"step": state.global_step, "seconds": self.elapsed, **plain})

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> TrainerControl:
        """Stop when the time is up."""
        if self.seconds is not None and self.elapsed > self.seconds:
            control.should_training_stop = True
        return control
