"""Questions about videos as training samples, for fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from topa.data.dataset import refers_to_others
from topa.data.questions import VideoQuestion
from topa.data.sampling import Drawing, DrawnDataset
from topa.data.templates import OPEN_INSTRUCTION, Prompt, PromptBuilder
from topa.errors import ConfigError
from topa.features.store import frame_rows

QUESTION_TASKS = ("choice", "contrast", "open")


def question_text(question: VideoQuestion) -> str:
    """Return what a prompt asks: the question, subtitles in a line of their own above it."""
    if question.subtitles is None:
        return question.question
    return f"Dialogue: {question.subtitles}\nQuestion: {question.question}"


class QuestionDataset(DrawnDataset):
    """Draws one task per question and epoch.

    Tasks:
        choice: the letter of the right option (paper), options in random order.
        contrast: the options' texts compete by likelihood.
        open: the right option as a free answer.

    Args:
        questions: Questions with known answers.
        features: For each question the features [n, d] of its video.
        builder: Prompt builder of the LLM.
        drawing: How samples are drawn.

    Raises:
        ConfigError: No questions, one without an answer, or tasks that are not known.
    """

    def __init__(
        self,
        questions: Sequence[VideoQuestion],
        features: Sequence[Tensor],
        builder: PromptBuilder,
        drawing: Drawing,
    ):
        super().__init__(builder, drawing, QUESTION_TASKS)
        if not questions:
            raise ConfigError("no questions left to train on", where="data.questions")
        unknown = [question.qid for question in questions if question.answer is None]
        if unknown:
            raise ConfigError(
                f"{len(unknown)} questions have no answer, the first is {unknown[0]}",
                where="data.questions",
                mend="Train on a split whose answers are public.",
            )
        self.questions, self.features = list(questions), list(features)

    def __len__(self) -> int:
        return len(self.questions)

    def _name(self, index: int) -> str:
        return f"question {self.questions[index].qid}"

    def _frame_features(self, index: int, frames: int, rng: np.random.Generator) -> Tensor:
        return frame_rows(self.features[index], frames)

    def _shuffled(self, index: int, rng: np.random.Generator) -> tuple[list[str], int]:
        """Return options in random order, unless they refer to each other, and the right one."""
        question = self.questions[index]
        assert question.answer is not None
        if any(refers_to_others(option) for option in question.options):
            return list(question.options), question.answer
        order = rng.permutation(len(question.options)).tolist()
        return [question.options[i] for i in order], order.index(question.answer)

    def _choice(self, index: int, rng: np.random.Generator) -> Prompt:
        options, answer = self._shuffled(index, rng)
        return self.builder.choice(question_text(self.questions[index]), options, answer)

    def _contrast(self, index: int, rng: np.random.Generator) -> Prompt:
        question = self.questions[index]
        assert question.answer is not None
        prompt = self.builder.root(OPEN_INSTRUCTION)
        parent = self.builder.add_question(prompt, question_text(question))
        self.builder.add_options(prompt, parent, question.options, question.answer)
        return prompt

    def _open(self, index: int, rng: np.random.Generator) -> Prompt:
        question = self.questions[index]
        assert question.answer is not None
        return self.builder.open(question_text(question), question.options[question.answer])
