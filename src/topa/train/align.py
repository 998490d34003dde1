"""Pre-alignment: from Tideos to a checkpoint, in a run directory that can be resumed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import TrainingArguments

from topa.config import AlignConfig, TrainConfig
from topa.data.batches import LengthBatches
from topa.data.collate import Batch
from topa.data.dataset import TideoDataset
from topa.data.templates import TEMPLATE_VERSION, PromptBuilder
from topa.errors import ConfigError
from topa.features.encoder import Encoder, load_encoder
from topa.features.store import TideoFeatures, encode_tideos
from topa.model.checkpoint import (
    check_fingerprint,
    checkpoint_folder,
    load_trainables,
    read_config,
)
from topa.model.config import TopaConfig
from topa.model.language import Language, load_language
from topa.model.topa import TopaForConditionalGeneration
from topa.model.words import collect_words
from topa.runs import read_json, write_json
from topa.tideo.schema import Tideo
from topa.tideo.textvid import load_tideos
from topa.train.loss import compute_losses
from topa.train.run import RunLog, find_resume, open_run
from topa.train.start import start_projector, start_words
from topa.train.trainer import SampleCollator, TopaTrainer
from topa.train.validation import Validation

logger = logging.getLogger(__name__)
Say = Callable[[str], None]


@dataclass
class AlignResult:
    """What a pre-alignment gave.

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


def split_validation(
    tideos: Sequence[Tideo], count: int, seed: int
) -> tuple[list[Tideo], list[Tideo]]:
    """Return (training, validation) Tideos: the last `count` of a seeded shuffle are validation.

    Raises:
        ConfigError: Nothing would be left to train on.
    """
    if count >= len(tideos):
        raise ConfigError(
            f"{count} validation Tideos asked for, there are {len(tideos)} in all",
            where="data.validation",
            mend="Lower it.",
        )
    order = np.random.default_rng(seed).permutation(len(tideos))
    chosen = [tideos[i] for i in order]
    return chosen[: len(chosen) - count], chosen[len(chosen) - count :]


def choose_dtype(name: str) -> torch.dtype:
    """Return the type of the frozen weights: bfloat16 where there are instructions for it."""
    if name == "float32":
        return torch.float32
    if name == "bfloat16":
        return torch.bfloat16
    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported()
    else:
        fast = bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
    return torch.bfloat16 if fast else torch.float32


def align(
    config: AlignConfig, *, say: Say = logger.info, language: Language | None = None
) -> AlignResult:
    """Pre-align an LLM with Tideos as `config` says; goes on where an earlier run stopped.

    Args:
        config: Settings; the resolved copy is written to the run directory.
        say: Called with a plain line before each stage.
        language: The LLM, where it is already loaded.

    Raises:
        ConfigError: Settings that cannot be used, or a run directory of other settings.
    """
    out = Path(config.out)
    open_run(out, config)
    done = out / "result.json"
    if done.is_file():
        result = read_json(done)
        say(f"This run is finished: {result['steps']} steps, checkpoint in {out / 'final'}.")
        return AlignResult(out / "final", result["steps"], result["seconds"], result["metrics"])
    encoder = load_encoder(config.model.encoder)
    tideos, kept = split_validation(
        load_tideos(config.data.tideos), config.data.validation, config.train.seed
    )
    for source in config.data.extra:
        # A file may hold the same Tideos again: those of validation are never trained on.
        tideos += [tideo for tideo in load_tideos(source) if tideo not in kept]
    say(f"Encoding {len(tideos)} Tideos to train on and {len(kept)} to validate with.")
    features = encode_tideos(tideos, encoder)
    language = language or load_language(config.model.llm, choose_dtype(config.model.dtype))
    words = collect_words(tideos, language.tokenizer) if config.model.dictionary else []
    model, builder = build_model(config, encoder, language, len(words))
    if words:
        start_words(model, builder, words, encoder)
        say(f"Frames are said in words of a dictionary of {len(words)}.")
    if config.model.start is not None:
        _go_on_from(config.model.start, model)
        say(f"Training goes on from the weights of {config.model.start}.")
    elif config.train.ridge_start and not words:
        explained = start_projector(model, builder, tideos, features)
        say(f"The projector starts from a ridge regression (R² {explained:.2f}).")
    validation = _validation(kept, encoder, builder, config.model.num_frames)
    dataset = _dataset(config, tideos, features, builder)
    return _train(config, model, dataset, validation, say)


def build_model(
    config: AlignConfig, encoder: Encoder, language: Language, dictionary_size: int = 0
) -> tuple[TopaForConditionalGeneration, PromptBuilder]:
    """Return an untrained model around an LLM (its dictionary empty), and its prompt builder."""
    settings = config.model
    topa_config = TopaConfig(
        text_config=language.model.config,
        llm=settings.llm,
        llm_fingerprint=language.fingerprint,
        encoder=settings.encoder,
        encoder_fingerprint=encoder.fingerprint,
        tideos=[config.data.tideos, *config.data.extra],
        template_version=TEMPLATE_VERSION,
        feature_dim=encoder.dim,
        num_frames=settings.num_frames,
        slots_per_frame=settings.slots_per_frame,
        dictionary_size=dictionary_size,
        variant=settings.variant,
        adapter_length=settings.adapter_length,
        adapter_layers=settings.adapter_layers,
        bias=settings.bias,
        lora_rank=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
    )
    torch.manual_seed(config.train.seed)
    model = TopaForConditionalGeneration(topa_config, language.model)
    for _, parameter in model.trainable_parameters():
        parameter.data = parameter.data.float()
    return model, PromptBuilder(language.tokenizer, topa_config.num_slots)


def _go_on_from(checkpoint: str, model: TopaForConditionalGeneration) -> None:
    """Fill a model with the trained weights of a checkpoint.

    Raises:
        FingerprintError: It was trained on another LLM or encoder.
        CheckpointError: It has other shapes.
    """
    folder, trained = checkpoint_folder(checkpoint), read_config(checkpoint)
    here = model.config
    check_fingerprint("LLM", trained.llm_fingerprint, here.llm_fingerprint, folder)
    check_fingerprint("encoder", trained.encoder_fingerprint, here.encoder_fingerprint, folder)
    load_trainables(model, folder)


def _validation(
    kept: Sequence[Tideo], encoder: Encoder, builder: PromptBuilder, num_frames: int
) -> Validation | None:
    if not kept:
        return None
    return Validation(kept, encode_tideos(kept, encoder), builder, num_frames)


def _dataset(
    config: AlignConfig, tideos: Sequence[Tideo], features: TideoFeatures, builder: PromptBuilder
) -> TideoDataset:
    return TideoDataset(
        tideos,
        features,
        builder,
        num_frames=config.model.num_frames,
        tasks=config.data.tasks,
        seed=config.train.seed,
        object_dropout=config.data.object_dropout,
        noise=config.data.noise,
        blind=config.data.blind,
    )


def _train(
    config: AlignConfig,
    model: TopaForConditionalGeneration,
    dataset: TideoDataset,
    validation: Validation | None,
    say: Say,
) -> AlignResult:
    settings, out = config.train, Path(config.out)
    checkpoints = out / "checkpoints"
    resume = find_resume(checkpoints)
    half = model.language_model.dtype == torch.bfloat16
    steps = settings.max_steps or -1
    if resume is not None:
        steps = resume[1].max_steps  # the schedule it was started with
        say(f"Going on from step {resume[1].global_step} of {steps}.")
    elif settings.minutes is not None:
        fit = _steps_in(settings.minutes, settings, model, dataset, half)
        steps = min(fit, settings.max_steps or fit)
        say(f"{fit} steps fit into {settings.minutes:g} minutes.")
    log = RunLog(out / "metrics.jsonl", settings.minutes and settings.minutes * 60)
    trainer = TopaTrainer(
        model,
        _arguments(settings, checkpoints, steps, half, validation is not None),
        dataset,
        validation,
        best=out / "best",
        projector_learning_rate=settings.projector_learning_rate or settings.learning_rate,
        contrast_weight=settings.contrast_weight,
        sharpness=settings.sharpness,
        callbacks=[log],
    )
    if resume is not None and resume[1].global_step >= steps:
        load_trainables(model, resume[0])  # only the end is missing
        trainer.state = resume[1]
        log.go_on(steps)
    else:
        trainer.train(resume_from_checkpoint=str(resume[0]) if resume else None)
    metrics = trainer.evaluate()
    trainer.write_checkpoint(out / "final")
    result = AlignResult(out / "final", trainer.state.global_step, log.elapsed, metrics)
    write_json(
        out / "result.json",
        {"steps": result.steps, "seconds": result.seconds, "metrics": metrics},
    )
    return result


def _arguments(
    settings: TrainConfig, checkpoints: Path, steps: int, half: bool, measured: bool
) -> TrainingArguments:
    total = steps if steps > 0 else 0
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
        use_cpu=not torch.cuda.is_available(),
        logging_steps=10,
        logging_nan_inf_filter=False,  # waits for every loss; LossGuard looks without
        eval_strategy="steps" if measured else "no",
        eval_steps=settings.evaluate_every,
        save_strategy="steps",
        save_steps=settings.save_every,
        save_total_limit=1,
        report_to="none",
        seed=settings.seed,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
    )


def _steps_in(
    minutes: float,
    settings: TrainConfig,
    model: TopaForConditionalGeneration,
    dataset: TideoDataset,
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
