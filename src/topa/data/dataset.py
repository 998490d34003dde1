"""Tideos as training samples; every sample is a pure function of (seed, epoch, index)."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from topa.data.lengths import OnOverlong
from topa.data.sampling import Drawing, DrawnDataset, Sample
from topa.data.templates import OPEN_INSTRUCTION, Prompt, PromptBuilder
from topa.errors import ConfigError, DataError
from topa.features.store import TideoFeatures, sample_rows
from topa.tideo.schema import Question, Tideo

__all__ = ["TASKS", "Sample", "TideoDataset", "refers_to_others", "shuffle_options"]

TASKS = ("choice", "caption", "open", "contrast", "recognise")
_REFERS_TO_OTHERS = re.compile(
    r"(?i:\b(both|all|none|neither|either)\b)|\([A-Z]\)|\b[A-E] (and|or) [A-E]\b"
)
_SHARE_OF_OPEN_ANSWERS = 0.5  # of the contrast task's questions; the rest saves tokens
_NUM_RECOGNISED = 3  # questions of the recognise task per Tideo
_NUM_DISTRACTORS = 4
_MAX_DRAWS = 50  # of distractors; Tideos that show the same things give fewer


def refers_to_others(option: str) -> bool:
    """Return whether an option speaks of other options, so that their order must stay.

    Whole words only: "hand" and "ball" do not refer to anything.
    """
    return _REFERS_TO_OTHERS.search(option) is not None


def shuffle_options(question: Question, rng: np.random.Generator) -> Question:
    """Return a copy of the question with its options in random order and the answer moved along."""
    if any(refers_to_others(option) for option in question.options):
        return question
    order = rng.permutation(len(question.options)).tolist()
    return question.model_copy(
        update={
            "options": [question.options[i] for i in order],
            "answer": order.index(question.answer),
        }
    )


def _texts_of(tideo: Tideo, kind: str) -> list[str]:
    if kind == "frame":
        return [frame.caption for frame in tideo.frames]
    return [text for frame in tideo.frames for text in frame.objects]


class TideoDataset(DrawnDataset):
    """Draws one task per Tideo and epoch (DESIGN section 2, "Tasks").

    Tasks:
        choice: letter selection for one question (paper).
        caption: the global caption (paper).
        open: the open-ended answer of one question (paper).
        contrast: all questions of the Tideo; the options' texts compete by likelihood, and
            the open-ended answers of half of them are learned beside.
        recognise: what is seen in the video, against objects and frames of other Tideos.

    Args:
        tideos: The Tideos, in memory or in files.
        features: Their text features; those of single texts only for `object_dropout`.
        builder: Prompt builder of the LLM.
        num_frames: T.
        tasks: Weight of each task.
        seed: Seed of every draw.
        object_dropout: Probability of leaving a text of a frame out of its feature.
        noise: Variance of Gaussian noise on features before renormalising.
        blind: Probability of masking the video of a contrast sample.
        max_length: Most tokens of a prompt; no limit if None.
        overlong: What becomes of longer ones (see `fit_prompt`).
    """

    def __init__(
        self,
        tideos: Sequence[Tideo],
        features: TideoFeatures,
        builder: PromptBuilder,
        *,
        num_frames: int,
        tasks: dict[str, float],
        seed: int = 0,
        object_dropout: float = 0.0,
        noise: float = 0.0,
        blind: float = 0.0,
        max_length: int | None = None,
        overlong: OnOverlong = "cut",
    ):
        drawing = Drawing(num_frames, tasks, seed, noise, blind, max_length, overlong)
        super().__init__(builder, drawing, TASKS)
        if not tideos:
            raise ConfigError("no Tideos left to train on", where="data.tideos")
        if tasks.get("recognise", 0) > 0 and len(tideos) < 2:
            raise ConfigError(
                "one Tideo has no others to tell it from",
                where="data.tasks.recognise",
                mend="Use more Tideos, or leave this task out.",
            )
        self.tideos, self.features = tideos, features
        self.object_dropout = object_dropout

    def __len__(self) -> int:
        return len(self.tideos)

    def _name(self, index: int) -> str:
        return f"Tideo {self.tideos[index].id}"

    # Tasks ----------------------------------------------------------------------------

    def _question(self, tideo: Tideo, rng: np.random.Generator) -> Question:
        return shuffle_options(tideo.qas[rng.integers(len(tideo.qas))], rng)

    def _choice(self, index: int, rng: np.random.Generator) -> Prompt:
        question = self._question(self.tideos[index], rng)
        return self.builder.choice(question.question, question.options, question.answer)

    def _caption(self, index: int, rng: np.random.Generator) -> Prompt:
        return self.builder.caption(self.tideos[index].caption)

    def _open(self, index: int, rng: np.random.Generator) -> Prompt:
        question = self._question(self.tideos[index], rng)
        answer = question.open_answer or question.options[question.answer]
        return self.builder.open(question.question, answer)

    def _contrast(self, index: int, rng: np.random.Generator) -> Prompt:
        builder = self.builder
        prompt = builder.root(OPEN_INSTRUCTION)
        for question in self.tideos[index].qas:
            parent = builder.add_question(prompt, question.question)
            builder.add_options(prompt, parent, question.options, question.answer)
            if question.open_answer and rng.random() < _SHARE_OF_OPEN_ANSWERS:
                text = f" {question.open_answer}"
                builder.add(prompt, text, parent, is_label=True, end=True)
        return prompt

    def _recognise(self, index: int, rng: np.random.Generator) -> Prompt:
        builder = self.builder
        prompt = builder.root(OPEN_INSTRUCTION)
        for _ in range(_NUM_RECOGNISED):
            question, right, kind = self._recognise_question(self.tideos[index], rng)
            options = self._distractors(index, kind, rng)
            answer = int(rng.integers(len(options) + 1))
            options.insert(answer, right)
            parent = builder.add_question(prompt, question)
            builder.add_options(prompt, parent, options, answer)
        return prompt

    def _recognise_question(self, tideo: Tideo, rng: np.random.Generator) -> tuple[str, str, str]:
        """Return a question that any Tideo can be asked, its right answer, and the kind of text."""
        draw = rng.random()
        if draw < 0.4:
            return "What can be seen in the video?", self._seen(tideo, "object", rng), "object"
        if draw < 0.7:
            return "What happens in the video?", self._seen(tideo, "frame", rng), "frame"
        if draw < 0.85:
            return "What happens first?", tideo.frames[0].caption, "frame"
        return "What happens at the end?", tideo.frames[-1].caption, "frame"

    def _other(self, index: int, rng: np.random.Generator) -> Tideo:
        """Return a Tideo that is not the one at `index`."""
        step = 1 + int(rng.integers(len(self.tideos) - 1))
        return self.tideos[(index + step) % len(self.tideos)]

    def _distractors(self, index: int, kind: str, rng: np.random.Generator) -> list[str]:
        """Return texts of other Tideos that the one at `index` does not have.

        Raises:
            DataError: The other Tideos show nothing else.
        """
        own = {text.casefold() for text in _texts_of(self.tideos[index], kind)}
        found: dict[str, str] = {}
        for _ in range(_MAX_DRAWS):
            text = self._seen(self._other(index, rng), kind, rng)
            if text.casefold() not in own:
                found.setdefault(text.casefold(), text)
            if len(found) == _NUM_DISTRACTORS:
                break
        if not found:
            raise DataError(
                f"no {kind} of another Tideo differs from those of {self.tideos[index].id!r}",
                where="data.tasks.recognise",
                mend="Use more Tideos, or leave this task out.",
            )
        return list(found.values())

    @staticmethod
    def _seen(tideo: Tideo, kind: str, rng: np.random.Generator) -> str:
        frame = tideo.frames[rng.integers(len(tideo.frames))]
        if kind == "frame":
            return frame.caption
        return frame.objects[rng.integers(len(frame.objects))]

    # Features -------------------------------------------------------------------------

    def _frame_features(self, index: int, frames: int, rng: np.random.Generator) -> Tensor:
        first, last = self.features.frame_offsets[index : index + 2].tolist()
        rows = [first + row for row in sample_rows(last - first, frames)]
        if self.object_dropout > 0:
            return torch.stack([self._partial_frame(row, rng) for row in rows])
        return self.features.frames[rows]

    def _partial_frame(self, row: int, rng: np.random.Generator) -> Tensor:
        """Return one frame's feature [d] from a random non-empty part of its texts."""
        first, last = self.features.text_offsets[row : row + 2].tolist()
        keep = rng.random(last - first) >= self.object_dropout
        if not keep.any():
            keep[rng.integers(len(keep))] = True
        texts = self.features.texts[first:last][torch.from_numpy(keep)]
        return F.normalize(texts.mean(0), dim=0)
