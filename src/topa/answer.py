"""Ask an LLM about a video: the Python interface of topa."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from topa.data.collate import collate_for_generation
from topa.data.templates import Prompt, PromptBuilder, clean_question, list_options
from topa.errors import ConfigError
from topa.features.encoder import Encoder, load_encoder
from topa.features.memory import Memory, build_memory
from topa.features.video import Clip, read_clip
from topa.model.checkpoint import check_fingerprint, checkpoint_folder
from topa.model.loading import load_model
from topa.model.methods import (
    Choice,
    combine,
    score_likelihood,
    score_selection,
    score_similarity,
)
from topa.model.topa import TopaForConditionalGeneration

_log = logging.getLogger(__name__)

Method = Literal["likelihood", "selection", "similarity", "combined"]
METHODS: tuple[Method, ...] = ("likelihood", "selection", "similarity", "combined")


# Of 1, 1.2 and 1.3 on validation Tideos the one whose descriptions were nearest to the captions.
DESCRIPTION_PENALTY = 1.2
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*(?=\s|$)")


@dataclass(frozen=True)
class Answer:
    """The answer to one question.

    Attributes:
        text: The chosen option, or the words of the model.
        option: Index of the chosen option; None for an open question.
        probabilities: Of the options: softmax of their scores; None for an open question.
    """

    text: str
    option: int | None = None
    probabilities: list[float] | None = None


@dataclass(frozen=True)
class ExplainedFrame:
    """A frame beside what the memory takes it for.

    Attributes:
        time: Seconds from the start of the video.
        image: The frame.
        captions: Captions of the nearest memory rows.
        weights: Their weights in the projection (Eq. 2), largest first.
    """

    time: float
    image: Image.Image
    captions: list[str]
    weights: list[float]


def drop_unfinished(text: str) -> str:
    """Return a text without its last sentence where that one is cut off and others are not."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else text


class Topa:
    """An LLM with the parts that let it understand video.

    Args:
        model: The pre-aligned model.
        builder: Prompt builder for its tokenizer.
        encoder: The encoder of the features it was trained on.
        memory: Text features of Tideos, for projecting image features; None to go without.
    """

    def __init__(
        self,
        model: TopaForConditionalGeneration,
        builder: PromptBuilder,
        encoder: Encoder,
        memory: Memory | None,
    ):
        check_fingerprint("encoder", model.config.encoder_fingerprint, encoder.fingerprint, "Topa")
        if memory is not None:
            check_fingerprint("encoder", encoder.fingerprint, memory.fingerprint, "memory")
        self.model, self.builder, self.encoder, self.memory = model, builder, encoder, memory

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path = "embedded",
        *,
        llm: str | None = None,
        memory: str | Path | None = None,
        device: str | None = None,
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> Topa:
        """Load a checkpoint with its LLM, encoder and memory.

        Args:
            checkpoint: "embedded" (ships with topa), a folder written by `topa align`, or a
                hub id.
            llm: Where to find the LLM, if not where the checkpoint says.
            memory: Folder of a memory; by default the one in the checkpoint, else that of
                the training Tideos.
            device: Where the LLM and the encoder run; a GPU if there is one.
            dtype: Type of the LLM's weights.
            **options: `device_map`, `quantization` and `num_frames`, as `load_model` takes them.

        Raises:
            TopaError: Something is missing or does not belong together; says what.
        """
        model, builder = load_model(checkpoint, llm=llm, device=device, dtype=dtype, **options)
        encoder = load_encoder(model.config.encoder, device=str(model.device))
        kept = checkpoint_folder(checkpoint) / "memory"
        found: Memory | None = None
        if memory is not None:
            found = Memory.load(memory, encoder.fingerprint)
        elif (kept / "memory.safetensors").is_file():
            found = Memory.load(kept)
        elif model.config.tideos:
            found = build_memory(model.config.tideos, encoder)
        else:
            _log.warning(
                "%s has no memory: image features go in as they are, without Eq. 2", checkpoint
            )
        return cls(model, builder, encoder, found)

    # Videos ---------------------------------------------------------------------------

    def watch(self, video: str | Path | Clip, *, num_frames: int | None = None) -> Clip:
        """Return the sampled frames of a video file (a `Clip` is returned as it is).

        Raises:
            VideoError: The video cannot be read.
            ConfigError: No frames are asked for, or more than the model has slots.
        """
        if isinstance(video, Clip):
            return video
        most = self.model.config.num_frames
        count = most if num_frames is None else num_frames
        if not 1 <= count <= most:
            raise ConfigError(
                f"{count} frames asked for, the model has slots for {most}",
                where="num_frames",
                mend=f"Ask for 1 to {most}.",
            )
        return read_clip(video, num_frames=count)

    def encode(self, clip: Clip, *, use_memory: bool = True) -> Tensor:
        """Return the frame features of a clip, [n, d], projected through the memory if asked."""
        features = self.encoder.encode_frames(clip.images)
        if use_memory and self.memory is not None:
            features = self.memory.project(features)
        return features

    def explain(
        self, video: str | Path | Clip, *, k: int = 3, num_frames: int | None = None
    ) -> list[ExplainedFrame]:
        """Return every sampled frame with the k memory captions nearest to it.

        Raises:
            VideoError: The video cannot be read.
            ConfigError: This model has no memory.
        """
        if self.memory is None:
            raise ConfigError("there is no memory to explain frames with", where="Topa.explain")
        clip = self.watch(video, num_frames=num_frames)
        weights, rows = self.memory.nearest(self.encoder.encode_frames(clip.images), k)
        captions = self.memory.captions
        return [
            ExplainedFrame(time, image, [captions[i] for i in near], w)
            for time, image, near, w in zip(
                clip.times, clip.images, rows.tolist(), weights.tolist(), strict=True
            )
        ]

    # Questions ------------------------------------------------------------------------

    def ask(
        self,
        video: str | Path | Clip,
        question: str,
        options: Sequence[str] | None = None,
        *,
        method: Method | None = None,
        use_memory: bool = True,
        blind: bool = False,
        num_frames: int | None = None,
        max_new_tokens: int = 40,
    ) -> Answer:
        """Answer a question about a video: one of the options, or in free words.

        Args:
            video: File, or frames read before.
            question: The question.
            options: 2 to 26 answers to choose from; free words without them.
            method: How options are scored; the checkpoint's own by default.
            use_memory: Project image features through the memory (Eq. 2).
            blind: Mask the video, to see what the LLM says without it.
            num_frames: Frames to sample; the model's T by default.
            max_new_tokens: Longest free answer.

        Raises:
            VideoError: The video cannot be read.
            ConfigError: Fewer than 2 or more than 26 options, or an empty question.
        """
        features = self.encode(self.watch(video, num_frames=num_frames), use_memory=use_memory)
        if options is None:
            shown = features[:0] if blind else features
            text = self.generate([self.builder.open(question)], [shown], max_new_tokens)[0]
            return Answer(text)
        choices = [[(question, options)]]
        scores = self.score(choices, [features], method=method, blind=blind)[0][0]
        best = int(scores.argmax())
        return Answer(options[best], best, scores.softmax(-1).tolist())

    def describe(
        self,
        video: str | Path | Clip,
        *,
        use_memory: bool = True,
        num_frames: int | None = None,
        max_new_tokens: int = 80,
    ) -> str:
        """Describe a video in a few whole sentences.

        Raises:
            VideoError: The video cannot be read.
        """
        features = self.encode(self.watch(video, num_frames=num_frames), use_memory=use_memory)
        prompt = self.builder.caption()
        text = self.generate(
            [prompt], [features], max_new_tokens, repetition_penalty=DESCRIPTION_PENALTY
        )[0]
        return drop_unfinished(text)

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Prompt],
        features: Sequence[Tensor],
        max_new_tokens: int,
        *,
        repetition_penalty: float = 1.0,
    ) -> list[str]:
        """Return the greedy continuation of each prompt; no four words come twice.

        Args:
            prompts: One for each video.
            features: [n, d] for each video.
            max_new_tokens: Longest continuation.
            repetition_penalty: Divides the score of tokens that were there before
                (Keskar et al., 2019); 1 changes nothing.
        """
        config = self.model.config
        inputs = collate_for_generation(
            prompts, features, config.num_frames, config.slots_per_frame
        )
        inputs = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
        tokens = self.model.generate(  # type: ignore[misc]
            **inputs,  # type: ignore[arg-type]
            max_new_tokens=max_new_tokens,
            do_sample=False,
            no_repeat_ngram_size=4,
            repetition_penalty=repetition_penalty,
            eos_token_id=self.builder.eos_id,
            pad_token_id=self.builder.eos_id,
        )
        new = tokens[:, inputs["input_ids"].shape[1] :]
        texts = self.builder.tokenizer.batch_decode(new, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def score(
        self,
        choices: Sequence[Sequence[Choice]],
        features: Sequence[Tensor],
        *,
        method: Method | None = None,
        blind: bool = False,
        batch_size: int = 8,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Tensor]]:
        """Score the options of questions about several videos.

        The methods are those of `topa.model.methods`; "combined" adds likelihood and
        similarity (blind: the likelihood alone).

        Args:
            choices: For each video its questions with options.
            features: [n, d] for each video.
            method: One of METHODS; the checkpoint's own by default.
            blind: Mask the video.
            batch_size: Videos per forward pass.
            progress: Called with the number of videos done.

        Returns:
            For each video, for each question, scores [number of options]; larger is better.

        Raises:
            ConfigError: An unknown method, or wrong numbers of options.
        """
        chosen = self.model.config.scoring if method is None else method
        if chosen not in METHODS:
            raise ConfigError(f"unknown method {chosen!r}", mend=f"Use one of {METHODS}.")
        if chosen == "similarity" and blind:
            raise ConfigError("similarity has no blind form", where="method")
        for questions in choices:
            for question, options in questions:
                clean_question(question)  # refuse the same whatever the method
                list_options(options)
        if chosen == "similarity":
            return score_similarity(self.encoder, choices, features)
        score = score_selection if chosen == "selection" else score_likelihood
        scores = score(
            self.model,
            self.builder,
            choices,
            features,
            blind=blind,
            batch_size=batch_size,
            progress=progress,
        )
        if chosen == "combined" and not blind:
            scores = combine(scores, score_similarity(self.encoder, choices, features))
        return scores
