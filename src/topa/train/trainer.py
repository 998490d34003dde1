"""Hugging Face's Trainer with topa's batches, losses, checkpoints and validation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

from topa.data.batches import LengthBatches
from topa.data.collate import Batch, collate
from topa.data.dataset import Sample, TideoDataset
from topa.errors import TopaError
from topa.model.checkpoint import load_trainables
from topa.model.topa import TopaForConditionalGeneration
from topa.runs import atomic_path, read_json, write_json
from topa.train.loss import compute_losses
from topa.train.validation import Validation

_PROJECTOR = ("visual_proj.", "temporal_emb.")


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
        dataset: Training samples.
        validation: Measures the model between steps.
        best: Folder of the trainables that measured best.
        projector_learning_rate: Peak for projector and temporal embeddings.
        contrast_weight: Weight of the choice loss beside the label loss.
        sharpness: Factor of option likelihoods in the choice loss.
    """

    # compute_loss divides by the counts of all micro-batches of a step.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: TopaForConditionalGeneration,
        args: TrainingArguments,
        dataset: TideoDataset,
        validation: Validation | None,
        *,
        best: Path,
        projector_learning_rate: float,
        contrast_weight: float = 1.0,
        sharpness: float = 1.0,
        callbacks: list[TrainerCallback] | None = None,
    ):
        self.projector_learning_rate = projector_learning_rate
        self.contrast_weight, self.sharpness = contrast_weight, sharpness
        self.topa, self.validation, self.best = model, validation, best
        self.measured: tuple[int, dict[str, float]] | None = None
        super().__init__(
            model=model,
            args=args,
            train_dataset=dataset,
            # Only asked whether there is one: `evaluate` measures with `validation`.
            eval_dataset=validation.prompts if validation is not None else None,  # type: ignore[arg-type]
            data_collator=SampleCollator(dataset.num_frames),
            callbacks=callbacks,
        )

    def get_train_dataloader(self) -> DataLoader:
        """Return batches of similar length whose order is fixed by (seed, epoch)."""
        dataset = self.train_dataset
        assert isinstance(dataset, TideoDataset)
        batches = LengthBatches(dataset, self._train_batch_size, self.args.seed)
        loader = DataLoader(dataset, batch_sampler=batches, collate_fn=self.data_collator)
        return self.accelerator.prepare(loader)

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

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Tensor | None]:
        """Return the micro-batches of one step and their [2] numbers of tokens and questions."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = torch.zeros(2, dtype=torch.long, device=device)
        for inputs in batches:
            plain = inputs["span_groups"][inputs["target_spans"]] < 0
            counts[0] += plain.sum()
            counts[1] += len(inputs["group_answers"])
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, "sum")
        return batches, counts

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Return the part of a micro-batch in the loss of its step.

        The loss of a step is the summed label NLL per label token, plus the weighted choice
        loss per question, of all its micro-batches together.

        Raises:
            TopaError: The loss is not finite; the batch is kept for inspection.
        """
        assert isinstance(num_items_in_batch, Tensor)
        tokens, questions = num_items_in_batch.clamp(min=1)
        inputs = dict(inputs)
        blind = inputs.pop("blind")
        batch = Batch(**inputs)
        losses = compute_losses(model.target_log_probs(batch), batch, blind, self.sharpness)
        loss = losses.nll / tokens + self.contrast_weight * losses.contrast / questions
        loss = loss * self.args.world_size  # gradients are averaged over processes
        if not math.isfinite(float(loss.detach())):
            path = self.best.parent / "bad_batch.pt"
            with atomic_path(path) as temporary:
                torch.save({**inputs, "blind": blind}, temporary)
            raise TopaError(
                f"the loss is {float(loss)} at step {self.state.global_step}",
                where=path,
                mend="The batch is saved there; lower the learning rate or check the features.",
            )
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure on the validation Tideos, log it, and keep the best trainables."""
        if self.validation is None:
            return {}
        step = self.state.global_step
        if self.measured is not None and self.measured[0] == step:
            return self.measured[1]
        with self.accelerator.autocast():
            metrics = self.validation.measure(self.topa)
        # On disk, so that a resumed run knows the best of what went before.
        record = self.best / "metrics.json"
        if not record.is_file() or metrics["accuracy"] > read_json(record)["accuracy"]:
            self.topa.save_pretrained(self.best)
            write_json(record, {"step": step, **metrics})
        named = {f"eval_{name}": value for name, value in metrics.items()}
        self.measured = (step, named)
        self.log(dict(named))
        return named

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_trainables(self.topa, resume_from_checkpoint)
