"""Fine-tuning on questions about real videos, and the paper's baseline without pre-alignment."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from topa.config import FinetuneConfig
from topa.data.asked import QuestionDataset
from topa.data.questions import VideoQuestion
from topa.data.sampling import Drawing
from topa.data.templates import PromptBuilder
from topa.errors import ConfigError, DataError, VideoError
from topa.features.store import read_features, write_features
from topa.model.checkpoint import checkpoint_folder, load_trainables, read_config
from topa.model.language import load_language
from topa.model.topa import TopaForConditionalGeneration
from topa.train.align import choose_dtype
from topa.train.progress import Progress, Say
from topa.train.run import find_result, open_run
from topa.train.session import (
    TrainResult,
    check_parallel,
    join_processes,
    speak_once,
    train,
)
from topa.train.validation import Validation

logger = logging.getLogger(__name__)
Load = Callable[[VideoQuestion], Tensor]
"""Gives the features [n, d] of what a question is about."""


def finetune(
    config: FinetuneConfig,
    questions: Sequence[VideoQuestion],
    load: Load,
    *,
    say: Say = logger.info,
    progress: Progress | None = None,
) -> TrainResult:
    """Fine-tune a checkpoint on questions about videos; goes on where an earlier run stopped.

    Videos are encoded once into the run directory. Those that cannot be read are named, and
    their questions are not trained on.

    Args:
        config: Settings; the resolved copy is written to the run directory.
        questions: Questions with their answers.
        load: Gives the features of a question's video.
        say: Called with a plain line before each stage, and for each row of the log.
        progress: Called with a stage ("videos", "steps"), what is done of it, and all.

    Raises:
        ConfigError: Settings that cannot be used, or no questions are left.
    """
    out = Path(config.out)
    check_parallel(config.train)
    processes, say = join_processes(), speak_once(say)
    with processes.main_process_first():
        open_run(out, config)
    if (done := find_result(out)) is not None:
        say(f"This run is finished: {done['steps']} steps, checkpoint in {out / 'final'}.")
        return TrainResult(out / "final", done["steps"], done["seconds"], done["metrics"])
    model, builder = start_model(config)
    with processes.main_process_first():  # the others take the features from its file
        features = encode_questions(questions, load, out, say, progress)
    kept = [question for question in questions if key_of(question) in features]
    if len(kept) < len(questions):
        say(f"{len(questions) - len(kept)} of {len(questions)} questions have no video.")
    chosen, held = split_videos(kept, config.data.validation, config.train.seed)
    say(f"{len(chosen)} questions to train on, {len(held)} to validate with.")
    data, frames = config.data, model.config.num_frames
    dataset = QuestionDataset(
        chosen,
        [features[key_of(question)] for question in chosen],
        builder,
        Drawing(
            frames,
            data.tasks,
            config.train.seed,
            data.noise,
            data.blind,
            data.max_length,
            data.overlong,
        ),
    )
    validation = None
    if held:
        shown = [features[key_of(question)] for question in held]
        validation = Validation.of_questions(held, shown, builder, frames, data.tasks)
    return train(config.train, out, model, dataset, validation, say, progress)


def start_model(config: FinetuneConfig) -> tuple[TopaForConditionalGeneration, PromptBuilder]:
    """Return the model of the checkpoint that is started from, and its prompt builder.

    From scratch it has the checkpoint's shape and words, and fresh trainables.
    """
    shape = read_config(config.start)
    language = load_language(config.llm or shape.llm, choose_dtype("auto"))
    tasks = config.data.tasks
    if tasks.get("choice", 0) > 0 and not tasks.get("contrast", 0):
        shape.scoring = "selection"  # it is asked as it was taught
    torch.manual_seed(config.train.seed)
    model = TopaForConditionalGeneration(shape, language.model)
    fresh = {name: tensor.detach().clone() for name, tensor in model.trainable_parameters()}
    load_trainables(model, checkpoint_folder(config.start))
    if config.from_scratch:
        with torch.no_grad():
            for name, parameter in model.trainable_parameters():
                parameter.copy_(fresh[name])
    for _, parameter in model.trainable_parameters():
        parameter.data = parameter.data.float()
    return model, PromptBuilder(language.tokenizer, shape.num_slots, shape.template_version)


def key_of(question: VideoQuestion) -> str:
    """Return the name that the features of a question's (part of a) video are kept by."""
    if question.start is None and question.end is None:
        return question.video
    return f"{question.video}@{question.start}-{question.end}"


def encode_questions(
    questions: Sequence[VideoQuestion],
    load: Load,
    out: Path,
    say: Say,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Return features by `key_of`, from the run directory if they are there.

    Raises:
        ConfigError: Not one video could be read.
    """
    path = out / "features.safetensors"
    if path.is_file():
        return read_features(path)
    first = {key_of(question): question for question in reversed(questions)}
    found: dict[str, Tensor] = {}
    for done, (key, question) in enumerate(reversed(first.items()), start=1):
        try:
            found[key] = load(question)
        except (VideoError, DataError) as error:
            say(f"Left out: {error}")
        if progress is not None:
            progress("videos", done, len(first))
    if not found:
        raise ConfigError(
            "not one video could be read", where="data.videos", mend="Check the folder."
        )
    write_features(path, found, "finetune")
    return found


def split_videos(
    questions: Sequence[VideoQuestion], share: float, seed: int
) -> tuple[list[VideoQuestion], list[VideoQuestion]]:
    """Return (training, validation) questions; no video has questions in both.

    Raises:
        ConfigError: No questions are left to train on.
    """
    videos = sorted({question.video for question in questions})
    order = np.random.default_rng(seed).permutation(len(videos))
    held = {videos[i] for i in order[: round(share * len(videos))]}
    chosen = [question for question in questions if question.video not in held]
    if not chosen:
        raise ConfigError(
            "no questions are left to train on",
            where="data.validation",
            mend="Lower it, or give questions about more videos.",
        )
    return chosen, [question for question in questions if question.video in held]
