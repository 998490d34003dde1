"""One training from its model and samples to a checkpoint, in one process or in many."""

from __future__ import annotations

import importlib.util
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import PrinterCallback, TrainingArguments

from topa.config import TrainConfig
from topa.data.batches import LengthBatches
from topa.data.collate import Batch
from topa.data.sampling import DrawnDataset
from topa.errors import ConfigError
from topa.model.checkpoint import load_trainables
from topa.model.topa import TopaForConditionalGeneration
from topa.runs import write_json
from topa.train.curve import draw_curve
from topa.train.loss import compute_losses
from topa.train.progress import Progress, ProgressLines, Say, make_reporters
from topa.train.run import RunLog, find_resume
from topa.train.trainer import SampleCollator, TopaTrainer
from topa.train.validation import Validation

logger = logging.getLogger(__name__)
_INSTALL = {
    "tensorboard": "pip install -e '.[track]'",
    "wandb": "pip install wandb",
    "deepspeed": "pip install deepspeed",
}


@dataclass
class TrainResult:
    """What a training gave.

    Attributes:
        checkpoint: Folder of the final trainables.
        steps: Optimizer steps done.
        seconds: Time they took.
        metrics: Last validation figures.
    """

    checkpoint: Path
    steps: int
    seconds: float
    metrics: dict[str, float]


def join_processes() -> PartialState:
    """Join the processes of this job (one, or those that torchrun started)."""
    return PartialState(cpu=not torch.cuda.is_available())


def speak_once(say: Say) -> Say:
    """Return `say` on the first process, and silence on the others."""
    return say if join_processes().is_main_process else _say_nothing


def _say_nothing(line: str) -> None:
    pass


def check_parallel(settings: TrainConfig) -> None:
    """Refuse ways of training that this machine or this call cannot take.

    Raises:
        ConfigError: FSDP in one process, or a library that is not installed.
    """
    if settings.parallel == "fsdp" and int(os.environ.get("WORLD_SIZE", "1")) < 2:
        raise ConfigError(
            "sharding needs several processes",
            where="train.parallel",
            mend="Start it with: torchrun --nproc-per-node N -m topa.cli ...",
        )
    needed: dict[str, str] = {f"train.report_to={name}": name for name in settings.report_to}
    if settings.deepspeed is not None:
        needed["train.deepspeed"] = "deepspeed"
        if not Path(settings.deepspeed).is_file():
            raise ConfigError(
                "file not found",
                where=f"train.deepspeed={settings.deepspeed}",
                mend="Name a JSON file of DeepSpeed settings.",
            )
    for setting, package in needed.items():
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"{package} is not installed", where=setting, mend=f"Run: {_INSTALL[package]}"
            )


def train(
    settings: TrainConfig,
    out: Path,
    model: TopaForConditionalGeneration,
    dataset: DrawnDataset,
    validation: Validation | None,
    say: Say,
    progress: Progress | None = None,
) -> TrainResult:
    """Train, or go on from the newest whole checkpoint of the run directory `out`.

    Raises:
        ConfigError: Every sample is too long.
    """
    if not any(dataset.length(i) for i in range(len(dataset))):
        raise ConfigError(
            f"all {len(dataset)} samples are longer than {dataset.drawing.max_length} tokens",
            where="data.max_length",
            mend="Raise it; the texts alone are longer.",
        )
    checkpoints = out / "checkpoints"
    resume = find_resume(checkpoints)
    half = model.language_model.dtype == torch.bfloat16
    steps = settings.max_steps or -1
    if resume is not None:
        steps = resume[1].max_steps  # the schedule it was started with
        say(f"Going on from step {resume[1].global_step} of {steps}.")
    elif settings.minutes is not None:
        fit = [_steps_in(settings.minutes, settings, model, dataset, half)]
        broadcast_object_list(fit)  # processes must not differ
        steps = min(fit[0], settings.max_steps or fit[0])
        say(f"Steps that fit into {settings.minutes:g} min: {fit[0]}; validation comes on top.")
    alone = join_processes().num_processes == 1
    deadline = settings.minutes * 60 if settings.minutes and alone else None
    log = RunLog(out / "metrics.jsonl", deadline)
    trainer = TopaTrainer(
        model,
        make_arguments(settings, checkpoints, steps, half, validation is not None, model),
        dataset,
        validation,
        best=out / "best",
        projector_learning_rate=settings.projector_learning_rate or settings.learning_rate,
        contrast_weight=settings.contrast_weight,
        sharpness=settings.sharpness,
        recompute=settings.recompute,
        callbacks=[
            log,
            ProgressLines(say, progress),
            *make_reporters(settings.report_to, out),
        ],
    )
    trainer.remove_callback(PrinterCallback)  # ProgressLines says the same, readably
    if resume is not None and resume[1].global_step >= steps:
        load_trainables(model, resume[0])  # only the end is missing
        trainer.state = resume[1]
        log.go_on(steps)
    else:
        trainer.train(resume_from_checkpoint=str(resume[0]) if resume else None)
    return _finish(trainer, log, out, say)


def _finish(trainer: TopaTrainer, log: RunLog, out: Path, say: Say) -> TrainResult:
    metrics = trainer.evaluate()
    trainer.write_checkpoint(out / "final")
    result = TrainResult(out / "final", trainer.state.global_step, log.elapsed, metrics)
    left_out = trainer.batches.left_out if trainer.batches is not None else 0
    if left_out:
        say(f"{left_out} samples of the last epoch were longer than data.max_length and left out.")
    if trainer.args.should_save:
        if not draw_curve(out / "metrics.jsonl", out / "loss.png"):
            say("No loss curve: matplotlib is missing. Run: pip install -e '.[eval]'")
        record = {"steps": result.steps, "seconds": result.seconds, "metrics": metrics}
        write_json(out / "result.json", record)
    return result


def make_arguments(
    settings: TrainConfig,
    checkpoints: Path,
    steps: int,
    half: bool,
    measured: bool,
    model: TopaForConditionalGeneration,
) -> TrainingArguments:
    """Return what Hugging Face's Trainer has to know."""
    total = steps if steps > 0 else 0
    parallel: dict[str, Any] = {}
    if settings.parallel == "fsdp":
        layers = model.language_model.get_decoder().layers
        parallel["fsdp"] = True
        parallel["fsdp_config"] = {
            "version": 2,
            "transformer_layer_cls_to_wrap": [type(layers[0]).__name__],
        }
    if settings.deepspeed is not None:
        parallel["deepspeed"] = settings.deepspeed
    return TrainingArguments(
        output_dir=str(checkpoints),
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        num_train_epochs=settings.epochs,
        max_steps=steps,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        adam_beta1=0.9,
        adam_beta2=0.95,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, round(settings.warmup * total)) if total else settings.warmup,
        max_grad_norm=1.0,
        bf16=half,
        torch_compile=settings.compile,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=settings.log_every,
        logging_nan_inf_filter=False,  # waits for every loss; LossGuard looks without
        eval_strategy="steps" if measured else "no",
        eval_steps=settings.evaluate_every,
        save_strategy="steps",
        save_steps=settings.save_every,
        save_total_limit=1,
        report_to="none",  # `make_reporters` makes those of train.report_to
        run_name=checkpoints.parent.name,
        disable_tqdm=True,
        seed=settings.seed,
        remove_unused_columns=False,
        dataloader_num_workers=settings.workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        **parallel,
    )


def _steps_in(
    minutes: float,
    settings: TrainConfig,
    model: TopaForConditionalGeneration,
    dataset: DrawnDataset,
    half: bool,
) -> int:
    """Measure a few steps without updates and return how many fit into `minutes`."""
    model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))  # type: ignore[arg-type]
    model.train()
    collator = SampleCollator(dataset.num_frames)
    batches = LengthBatches(dataset, settings.batch_size, settings.seed)
    seconds = []
    for indices, _ in zip(batches, range(4), strict=False):
        inputs = collator([dataset[i] for i in indices])
        start = time.monotonic()
        blind = inputs.pop("blind").to(model.device)
        batch = Batch(**inputs).to(model.device)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=half):
            losses = compute_losses(model.target_log_probs(batch), batch, blind)
        (losses.nll + losses.contrast).backward()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.monotonic() - start)
    model.zero_grad(set_to_none=True)
    # The first step warms caches up; a tenth of the time is left for validation and saving.
    warm = seconds[1:] or seconds
    step = sum(warm) / len(warm) * settings.accumulation
    return max(1, int(0.9 * minutes * 60 / step))
