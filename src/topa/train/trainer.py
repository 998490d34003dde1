"""Hugging Face's Trainer with topa's batches, losses, checkpoints and validation."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from topa.data.batches import LengthBatches
from topa.data.collate import Batch, collate
from topa.data.dataset import Sample
from topa.errors import TopaError
from topa.model.checkpoint import read_trainables, write_tensors
from topa.model.topa import TopaForConditionalGeneration
from topa.runs import atomic_path, read_json, write_json
from topa.train.guard import LossGuard
from topa.train.loss import compute_losses
from topa.train.meter import Meter, StepCost, measure_peak
from topa.train.step import StepModel, fill_tensors, whole_tensors
from topa.train.validation import Share, Validation

_PROJECTOR = ("visual_proj.", "temporal_emb.")
_LITTLE_ROOM = 1 << 26
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class SampleCollator:
    """Makes the keyword arguments of one step from samples."""

    def __init__(self, num_frames: int):
        self.num_frames = num_frames

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Return the tensors of a `Batch`, and `blind` [B]; blind videos are masked."""
        batch = collate(
            [sample.prompt for sample in samples],
            [sample.features for sample in samples],
            self.num_frames,
        )
        blind = torch.tensor([sample.blind for sample in samples])
        batch.frame_mask = batch.frame_mask & ~blind[:, None]
        return {**batch.as_dict(), "blind": blind}


class TopaTrainer(Trainer):
    """Trains the trainables of a TOPA model.

    Args:
        model: The model.
        args: Hugging Face's arguments.
        dataset: Training samples: `LengthBatches` asks for their lengths and epochs.
        validation: Measures the model between steps.
        best: Folder of the trainables that measured best.
        projector_learning_rate: Peak for projector and temporal embeddings.
        contrast_weight: Weight of the choice loss beside the label loss.
        sharpness: Factor of option likelihoods in the choice loss.
        recompute: Compute activations again in the backward pass instead of keeping them.
    """

    # compute_loss divides by the counts of all micro-batches of a step.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: TopaForConditionalGeneration,
        args: TrainingArguments,
        dataset: Dataset[Sample],
        validation: Validation | None,
        *,
        best: Path,
        projector_learning_rate: float,
        contrast_weight: float = 1.0,
        sharpness: float = 1.0,
        recompute: bool = False,
        callbacks: list[TrainerCallback] | None = None,
    ):
        self.projector_learning_rate = projector_learning_rate
        self.contrast_weight, self.sharpness = contrast_weight, sharpness
        self.topa, self.validation, self.best = model, validation, best
        self.guard = LossGuard(best.parent / "bad_batch.pt")
        self.measured: tuple[int, dict[str, float]] | None = None
        self.meter: Meter | None = None
        self.batches: LengthBatches | None = None
        self.step_model = StepModel(model, recompute=recompute)
        super().__init__(
            model=self.step_model,
            args=args,
            train_dataset=dataset,
            # Only asked whether there is one: `evaluate` measures with `validation`.
            eval_dataset=validation.prompts if validation is not None else None,  # type: ignore[arg-type]
            data_collator=SampleCollator(model.config.num_frames),
            callbacks=callbacks,
        )
        # The Trainer sets it on the configuration, and a checkpoint would be refused for it.
        vars(model.config).pop("use_cache", None)

    # Batches --------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        """Return this process's batches, of similar length, in an order fixed by (seed, epoch)."""
        self.batches = LengthBatches(
            self.train_dataset,  # type: ignore[arg-type]
            self._train_batch_size,
            self.args.seed,
            processes=self.args.world_size,
            rank=self.args.process_index,
        )
        loader = DataLoader(
            self.train_dataset,  # type: ignore[arg-type]
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )
        # Accelerate's own division repeats samples to make the last batches whole.
        return prepare_data_loader(
            loader,
            self.args.device,
            num_processes=1,
            process_index=0,
            put_on_device=True,
            non_blocking=True,
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Tensor | None]:
        """Return the micro-batches of one step and their [2] numbers of tokens and questions."""
        if self.meter is None:
            dtype = torch.bfloat16 if self.args.bf16 else torch.float32
            self.meter = Meter(StepCost(self.topa), measure_peak(device, dtype), device)
        with self.meter.wait():
            batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = torch.zeros(2, dtype=torch.long, device=device)
        for inputs in batches:
            self.meter.count(inputs)
            plain = inputs["span_groups"][inputs["target_spans"]] < 0
            counts[0] += plain.sum()
            counts[1] += len(inputs["group_answers"])
        return batches, self._add_up(counts)

    # Steps ----------------------------------------------------------------------------

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Return AdamW with the projector's own learning rate and no decay of its weights."""
        if self.optimizer is None:
            named = list(self.topa.trainable_parameters())
            projector = [p for n, p in named if n.startswith(_PROJECTOR)]
            others = [p for n, p in named if not n.startswith(_PROJECTOR)]
            groups = [
                {"params": projector, "lr": self.projector_learning_rate, "weight_decay": 0.0},
                {
                    "params": others,
                    "lr": self.args.learning_rate,
                    "weight_decay": self.args.weight_decay,
                },
            ]
            self.optimizer = torch.optim.AdamW(
                [group for group in groups if group["params"]],
                betas=(self.args.adam_beta1, self.args.adam_beta2),
            )
        return self.optimizer

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Return the part of a micro-batch in the loss of its step.

        The loss of a step is the summed label NLL per label token, plus the weighted choice
        loss per question, of all its micro-batches and processes together.

        Raises:
            TopaError: The loss is not finite; the batch is kept for inspection.
        """
        assert isinstance(num_items_in_batch, Tensor)
        tokens, questions = num_items_in_batch.clamp(min=1)
        tensors = {name: tensor for name, tensor in inputs.items() if name != "blind"}
        losses = compute_losses(model(**tensors), Batch(**tensors), inputs["blind"], self.sharpness)
        loss = losses.nll / tokens + self.contrast_weight * losses.contrast / questions
        loss = loss * self.args.world_size  # gradients are averaged over processes
        self.guard.watch(loss, inputs, self.state.global_step)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log figures, the speed of the steps beside their loss."""
        if "loss" in logs and self.meter is not None and self.batches is not None:
            speed = self.meter.read(self._add_up, self.args.world_size)
            logs = {**logs, **speed, "left_out": float(self.batches.left_out)}
        super().log(logs, start_time)

    def _add_up(self, counts: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        return self.accelerator.reduce(counts, "sum") if self.args.world_size > 1 else counts

    # Validation and checkpoints -------------------------------------------------------

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure on the validation Tideos, log it, and keep the best trainables."""
        if self.validation is None:
            return {}
        step = self.state.global_step
        if self.measured is not None and self.measured[0] == step:
            return self.measured[1]
        with self._paused():
            metrics = self._measure(step)
        named = {f"eval_{name}": value for name, value in metrics.items()}
        self.measured = (step, named)
        self.log(dict(named))
        return named

    def _paused(self) -> AbstractContextManager[None]:
        """Leave the time of a block out of the speed."""
        return self.meter.pause() if self.meter is not None else nullcontext()

    def _measure(self, step: int) -> dict[str, float]:
        assert self.validation is not None
        share = Share(self.args.process_index, self.args.world_size, self._add_up)
        with self.accelerator.autocast():
            metrics = self.validation.measure(self.step_model, share)
        # On disk, so that a resumed run knows the best of what went before.
        record = self.best / "metrics.json"
        better = not record.is_file() or metrics["accuracy"] > read_json(record)["accuracy"]
        self.accelerator.wait_for_everyone()  # all have read it before it is written
        if better:
            self.write_checkpoint(self.best)
            if self.args.should_save:
                write_json(record, {"step": step, **metrics})
        return metrics

    def write_checkpoint(self, folder: Path) -> None:
        """Write configuration and trainables; every process has to take part."""
        tensors = dict(whole_tensors(self.topa))
        if self.args.should_save:
            self.topa.config.save_pretrained(folder)
            write_tensors(tensors, folder)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the trainables of a checkpoint to go on from."""
        self.guard.flush()
        self.write_checkpoint(Path(output_dir or self.args.output_dir or "."))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        try:
            with self._paused():
                super()._save_checkpoint(model, trial)
        except (OSError, SafetensorError, RuntimeError) as error:
            # torch and safetensors have errors of their own for a disk that is full.
            room = shutil.disk_usage(str(self.args.output_dir)).free
            if isinstance(error, RuntimeError) and room > _LITTLE_ROOM:
                raise
            raise TopaError(
                f"the checkpoint of step {self.state.global_step} cannot be written"
                f" ({str(error).splitlines()[0]}; {room / 1e6:.1f} MB are free)",
                where=self.args.output_dir,
                mend="Make room and run the same command again: it goes on from the last whole"
                " checkpoint.",
            ) from error

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        # By name and whole, so that any number of processes can go on from it.
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        state = get_optimizer_state_dict(self.step_model, self.optimizer, options=_WHOLE)
        if self.args.should_save:
            for name, value in (
                (OPTIMIZER_NAME, state),
                (SCHEDULER_NAME, self.lr_scheduler.state_dict()),
            ):
                with atomic_path(Path(output_dir, name)) as path, path.open("wb") as file:
                    torch.save(value, file)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        fill_tensors(self.topa, read_trainables(self.topa, resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        state = torch.load(Path(checkpoint, OPTIMIZER_NAME), "cpu", weights_only=True)
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        set_optimizer_state_dict(self.step_model, self.optimizer, state, options=_WHOLE)
        schedule = torch.load(Path(checkpoint, SCHEDULER_NAME), "cpu", weights_only=True)
        self.lr_scheduler.load_state_dict(schedule)
