"""Text and videos in, the inputs of the model out, as processors of transformers do it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, PreTrainedTokenizerBase
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

from topa.data.collate import pad_frames
from topa.data.templates import Prompt, PromptBuilder
from topa.errors import ConfigError
from topa.features.encoder import Encoder, load_encoder
from topa.features.memory import Memory, build_memory
from topa.features.video import Clip, read_clip
from topa.model.checkpoint import check_fingerprint, checkpoint_folder, read_config
from topa.model.config import TopaConfig
from topa.model.hub import take_hub_options
from topa.model.language import load_tokenizer

VIDEO = "<video>"
Video = str | Path | Clip | Sequence[Image.Image]
"""A file, a clip read before, or frames in time order."""


class TopaProcessor(ProcessorMixin):
    """Turns text with `<video>` in it, and videos, into what the model's `generate()` takes.

    Args:
        tokenizer: Of the LLM.
        config: Of the model: how many frames and slots there are, which encoder and Tideos.
        encoder: Of the frames; loaded when the first video comes, if None.
        memory: That frame features are projected through (paper, Eq. 2); built from the Tideos
            of the checkpoint when the first video comes, if None.

    Raises:
        FingerprintError: Encoder or memory are not those of the checkpoint.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: TopaConfig,
        encoder: Encoder | None = None,
        memory: Memory | None = None,
    ):
        super().__init__(tokenizer)
        self.config = config
        self.builder = PromptBuilder(tokenizer, config.num_slots, config.template_version)
        self._encoder, self._memory = encoder, memory
        self._folder: Path | None = None
        known = encoder.fingerprint if encoder is not None else config.encoder_fingerprint
        check_fingerprint("encoder", config.encoder_fingerprint, known, "TopaProcessor")
        if memory is not None:
            check_fingerprint("encoder", known, memory.fingerprint, "memory")

    @classmethod
    def get_attributes(cls) -> list[str]:
        """Return the parts that transformers saves and loads by itself."""
        return ["tokenizer"]

    @property
    def encoder(self) -> Encoder:
        """The encoder of the checkpoint, loaded on first use."""
        if self._encoder is None:
            found = load_encoder(self.config.encoder)
            expected = self.config.encoder_fingerprint
            check_fingerprint("encoder", expected, found.fingerprint, "TopaProcessor")
            self._encoder = found
        return self._encoder

    @property
    def memory(self) -> Memory | None:
        """The memory in the checkpoint, else that of its Tideos, on first use; None without."""
        kept = self._folder / "memory" if self._folder is not None else None
        if self._memory is None and kept is not None and kept.is_dir():
            self._memory = Memory.load(kept, self.encoder.fingerprint)
        elif self._memory is None and self.config.tideos:
            self._memory = build_memory(self.config.tideos, self.encoder)
        return self._memory

    # Loading and saving ---------------------------------------------------------------

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | Path, *, llm: str | None = None, **kwargs: Any
    ) -> TopaProcessor:
        """Load the processor of a checkpoint.

        Args:
            pretrained_model_name_or_path: "embedded", a folder or a hub id.
            llm: Where the LLM's tokenizer is, if not where the checkpoint says.
            **kwargs: Of the hub, as `TopaForConditionalGeneration.from_pretrained` takes them.

        Raises:
            CheckpointError: There is no checkpoint.
            ConfigError: The tokenizer cannot be loaded.
        """
        folder = checkpoint_folder(pretrained_model_name_or_path, **take_hub_options(kwargs))
        config = read_config(folder)
        own = (folder / "tokenizer_config.json").is_file() and llm is None
        processor = cls(load_tokenizer(str(folder) if own else llm or config.llm), config)
        processor._folder = folder
        return processor

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | Path, **kwargs: Any
    ) -> None:
        """Write the tokenizer and the configuration, from which the rest is loaded again.

        Raises:
            ConfigError: There are arguments that nobody knows.
        """
        if kwargs:
            raise ConfigError(f"unknown arguments {sorted(kwargs)}", where="save_pretrained")
        self.tokenizer.save_pretrained(save_directory)
        self.config.save_pretrained(save_directory)

    # Prompts --------------------------------------------------------------------------

    def ask(self, question: str, options: Sequence[str] | None = None) -> Prompt:
        """Return the prompt of a question: open, or with options to choose from by letter."""
        if options is None:
            return self.builder.open(question)
        return Prompt(self.builder.choice(question, options).segments[:2])

    def describe(self) -> Prompt:
        """Return the prompt of a description."""
        return self.builder.caption()

    # Inputs ---------------------------------------------------------------------------

    def __call__(  # type: ignore[override]
        self,
        text: str | Prompt | Sequence[str | Prompt],
        videos: Video | Sequence[Any] | None = None,
        *,
        features: Tensor | Sequence[Tensor] | None = None,
        use_memory: bool = True,
        padding_side: str = "left",
    ) -> BatchFeature:
        """Return the model's inputs for prompts with any number of videos each.

        Args:
            text: B prompts, as text in which each `<video>` takes the next of the videos, or as
                `ask`, `describe` and `PromptBuilder` make them.
            videos: Files, clips or lists of frames, in the order of the `<video>`s; may be nested
                by prompt.
            features: [n, d] frame features of each video, instead of `videos`; they are taken as
                they are.
            use_memory: Project image features through the memory.
            padding_side: "left" to generate, "right" to train.

        Returns:
            `input_ids`, `slot_index`, `attention_mask` [B, S] and `features` [B, T, d], or
            [B, V, T, d] where a prompt has several videos. Slots without a frame are masked.

        Raises:
            ConfigError: Videos and `<video>`s do not match, more frames than the model has
                slots for, or both videos and features.
            VideoError: A video cannot be read.
        """
        if videos is not None and features is not None:
            raise ConfigError("both videos and features are given", mend="Give one of them.")
        if padding_side not in ("left", "right"):
            raise ConfigError(f"padding_side is {padding_side!r}", mend='Use "left" or "right".')
        texts = [text] if isinstance(text, str | Prompt) else list(text)
        if features is not None:
            rows = [features] if isinstance(features, Tensor) else list(features)
        else:
            rows = [self.encode(video, use_memory=use_memory) for video in _list_videos(videos)]
        counts = [prompt.count(VIDEO) if isinstance(prompt, str) else 1 for prompt in texts]
        if sum(counts) != len(rows):
            raise ConfigError(
                f"the text has {sum(counts)} {VIDEO}, {len(rows)} videos are given",
                where="TopaProcessor",
                mend=f"Write {VIDEO} where a video belongs, once for each.",
            )
        return self._join(texts, counts, rows, padding_side)

    def encode(self, video: Video, *, use_memory: bool = True) -> Tensor:
        """Return the frame features of a video, [n, d]; files are sampled to the model's T.

        Raises:
            VideoError: The video cannot be read.
        """
        if isinstance(video, str | Path):
            video = read_clip(video, num_frames=self.config.num_frames)
        images = video.images if isinstance(video, Clip) else list(video)
        features = self.encoder.encode_frames(images)
        if use_memory and self.memory is not None:
            features = self.memory.project(features)
        return features

    def _join(
        self, texts: list[str | Prompt], counts: list[int], rows: list[Tensor], side: str
    ) -> BatchFeature:
        """Tokenise the prompts, put slots into them, and pad all to one length."""
        frames = self.config.num_frames
        most = max([1, *counts])
        width = self.config.feature_dim
        features = torch.zeros(len(texts), most, frames, width, dtype=_dtype(rows))
        mask = torch.zeros(len(texts), most, frames, dtype=torch.bool)
        pairs, start = [], 0
        for row, (prompt, count) in enumerate(zip(texts, counts, strict=True)):
            if count:
                padded, real = pad_frames(rows[start : start + count], frames)
                features[row, :count], mask[row, :count] = padded, real
                start += count
            pairs.append(self._tokenize(prompt))
        length = max(len(ids) for ids, _ in pairs)
        input_ids = torch.zeros(len(texts), length, dtype=torch.long)
        slot_index = torch.full((len(texts), length), -1, dtype=torch.long)
        visible = torch.zeros(len(texts), length, dtype=torch.long)
        for row, (ids, slots) in enumerate(pairs):
            first = length - len(ids) if side == "left" else 0
            place = slice(first, first + len(ids))
            input_ids[row, place] = torch.tensor(ids, dtype=torch.long)
            slot_index[row, place] = torch.tensor(slots, dtype=torch.long)
            frame = slot_index[row, place].clamp(min=0) // self.config.slots_per_frame
            shown = mask[row].flatten()[frame]
            visible[row, place] = ((slot_index[row, place] < 0) | shown).long()
        return BatchFeature(
            {
                "input_ids": input_ids,
                "slot_index": slot_index,
                "attention_mask": visible,
                "features": features if most > 1 else features[:, 0],
            }
        )

    def _tokenize(self, text: str | Prompt) -> tuple[list[int], list[int]]:
        """Return token ids and slot numbers of a prompt, piece by piece as `PromptBuilder`.

        Raises:
            ConfigError: It has branches, so that there is no one way to go on from it.
        """
        if isinstance(text, Prompt):
            parts = text.segments
            if any(segment.parent != i - 1 for i, segment in enumerate(parts)):
                raise ConfigError("a prompt with branches cannot be continued", where="text")
            return [t for x in parts for t in x.ids], [t for x in parts for t in x.slots]
        ids, slots = list(self.builder.start_ids), [-1] * len(self.builder.start_ids)
        size = self.config.num_slots
        for number, piece in enumerate(text.split(VIDEO)):
            if number:
                slots += range((number - 1) * size, number * size)
                ids += [0] * size
            tokens = self.builder.tokenize(piece)
            ids += tokens
            slots += [-1] * len(tokens)
        return ids, slots

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors that a call returns."""
        return ["input_ids", "slot_index", "attention_mask", "features"]


def _list_videos(videos: Any) -> Iterator[Video]:
    """Yield the videos of any nesting; a list of images is one video."""
    if videos is None:
        return
    frames = isinstance(videos, Sequence) and videos and isinstance(videos[0], Image.Image)
    if frames or isinstance(videos, str | Path | Clip):
        yield videos
    elif isinstance(videos, Sequence):
        for item in videos:
            yield from _list_videos(item)
    else:
        raise ConfigError(
            f"a video is given as {type(videos).__name__}",
            where="TopaProcessor",
            mend="Give a file, a Clip, or a list of PIL images.",
        )


def _dtype(rows: Sequence[Tensor]) -> torch.dtype:
    return rows[0].dtype if rows else torch.float32


AutoProcessor.register(TopaConfig, TopaProcessor, exist_ok=True)
