"""Pre-alignment: from Tideos to a checkpoint, in a run directory that can be resumed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from topa.config import AlignConfig, DataConfig
from topa.data.dataset import TideoDataset
from topa.data.mapped import map_tideos
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
from topa.tideo.schema import Tideo
from topa.tideo.shelf import TideoShelf, open_shelf
from topa.train.progress import Progress, Say
from topa.train.run import find_result, open_run
from topa.train.session import (
    TrainResult,
    check_parallel,
    join_processes,
    speak_once,
    train,
)
from topa.train.start import start_projector, start_words
from topa.train.validation import Validation

logger = logging.getLogger(__name__)


def split_validation(number: int, count: int, seed: int) -> tuple[list[int], list[int]]:
    """Return positions of (training, validation) Tideos: the latter end a seeded shuffle.

    Args:
        number: Tideos in all.
        count: Of them for validation.
        seed: Of the shuffle.

    Raises:
        ConfigError: Nothing would be left to train on.
    """
    if count >= number:
        raise ConfigError(
            f"{count} validation Tideos asked for, there are {number} in all",
            where="data.validation",
            mend="Lower it.",
        )
    order = np.random.default_rng(seed).permutation(number).tolist()
    return order[: number - count], order[number - count :]


def read_training_set(data: DataConfig, seed: int) -> tuple[TideoShelf, list[Tideo]]:
    """Return the Tideos to train on, left in their files, and those to validate with.

    Raises:
        ConfigError: Nothing would be left to train on.
        DataError: A source is missing or holds something that is not a Tideo.
    """
    shelf = open_shelf(data.tideos)
    chosen, held = split_validation(len(shelf), data.validation, seed)
    tideos, kept = shelf.take(chosen), list(shelf.take(held))
    held_out = {tideo.model_dump_json() for tideo in kept}
    for source in data.extra:
        more = open_shelf(source)
        # A file may hold the same Tideos again: those of validation are never trained on.
        rows = [i for i, tideo in enumerate(more) if tideo.model_dump_json() not in held_out]
        tideos = tideos + more.take(rows)
    return tideos, kept


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
    config: AlignConfig,
    *,
    say: Say = logger.info,
    progress: Progress | None = None,
    language: Language | None = None,
) -> TrainResult:
    """Pre-align an LLM with Tideos as `config` says; goes on where an earlier run stopped.

    Args:
        config: Settings; the resolved copy is written to the run directory.
        say: Called with a plain line before each stage, and for each row of the log.
        progress: Called with a stage ("encoding", "steps"), what is done of it, and all.
        language: The LLM, where it is already loaded.

    Raises:
        ConfigError: Settings that cannot be used, or a run directory of other settings.
    """
    out = Path(config.out)
    check_parallel(config.train)
    processes, say = join_processes(), speak_once(say)
    with processes.main_process_first():  # the others find the settings of the first
        open_run(out, config)
    if (done := find_result(out)) is not None:
        say(f"This run is finished: {done['steps']} steps, checkpoint in {out / 'final'}.")
        return TrainResult(out / "final", done["steps"], done["seconds"], done["metrics"])
    with processes.main_process_first():  # the others find what the first writes to the cache
        tideos, kept = read_training_set(config.data, config.train.seed)
    encoder = load_encoder(config.model.encoder, device=str(processes.device))
    say(f"Encoding {len(tideos)} Tideos to train on and {len(kept)} to validate with.")
    with processes.main_process_first():
        features = map_tideos(
            tideos,
            encoder,
            keep_texts=config.data.object_dropout > 0,
            progress=partial(progress, "encoding") if progress is not None else None,
        )
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
    validation = _validation(config, kept, encoder, builder)
    dataset = _dataset(config, tideos, features, builder)
    return train(config.train, out, model, dataset, validation, say, progress)


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
    config: AlignConfig, kept: Sequence[Tideo], encoder: Encoder, builder: PromptBuilder
) -> Validation | None:
    if not kept:
        return None
    features = encode_tideos(kept, encoder)
    return Validation.of_tideos(kept, features, builder, config.model.num_frames, config.data.tasks)


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
        max_length=config.data.max_length,
        overlong=config.data.overlong,
    )
