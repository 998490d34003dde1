"""Figures on what is kept out of training: accuracy, seen and blind, and the NLL of each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from topa.data.asked import QuestionDataset, question_text
from topa.data.collate import collate
from topa.data.dataset import TideoDataset
from topa.data.questions import VideoQuestion
from topa.data.sampling import Drawing, Sample
from topa.data.templates import Prompt, PromptBuilder
from topa.features.store import TideoFeatures, frame_rows
from topa.model.scoring import score_options
from topa.model.topa import TopaForConditionalGeneration
from topa.tideo.schema import Tideo
from topa.train.step import StepModel

_PLAIN = ("choice", "caption", "open")


class Validation:
    """Questions with options, and samples of the plain tasks.

    Questions are scored by letter where letters are learned and options' texts are not, else by
    likelihood.

    Args:
        prompts: Prompts with the options of one or several questions.
        features: [n, d] of the video of each prompt.
        answers: Right option of every question, in order.
        samples: Samples by task.
        batch_size: Prompts per forward pass.
        letters: Whether the prompts are scored by letter: then nothing is subtracted.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        features: Sequence[Tensor],
        answers: Sequence[int],
        samples: Mapping[str, Sequence[Sample]] | None = None,
        *,
        batch_size: int = 8,
        letters: bool = False,
    ):
        self.prompts, self.features, self.answers = list(prompts), list(features), list(answers)
        self.samples, self.batch_size, self.letters = dict(samples or {}), batch_size, letters

    @classmethod
    def of_tideos(
        cls,
        tideos: Sequence[Tideo],
        features: TideoFeatures,
        builder: PromptBuilder,
        num_frames: int,
        tasks: Mapping[str, float],
        batch_size: int = 8,
    ) -> Validation:
        """Return the validation by Tideos: all their questions, one sample a plain task each."""
        rows = [frame_rows(features.of(i), num_frames) for i in range(len(tideos))]
        samples = {}
        for task in _drawn(tasks):
            one = TideoDataset(tideos, features, builder, num_frames=num_frames, tasks={task: 1.0})
            samples[task] = [one[i] for i in range(len(one))]
        letters = _by_letter(tasks)
        groups = [[(item.question, item.options) for item in tideo.qas] for tideo in tideos]
        prompts, shown = _ask(groups, rows, builder, letters)
        answers = [item.answer for tideo in tideos for item in tideo.qas]
        return cls(prompts, shown, answers, samples, batch_size=batch_size, letters=letters)

    @classmethod
    def of_questions(
        cls,
        questions: Sequence[VideoQuestion],
        features: Sequence[Tensor],
        builder: PromptBuilder,
        num_frames: int,
        tasks: Mapping[str, float],
    ) -> Validation:
        """Return the validation by questions about videos."""
        rows = [frame_rows(item, num_frames) for item in features]
        samples = {}
        for task in _drawn(tasks):
            one = QuestionDataset(questions, rows, builder, Drawing(num_frames, {task: 1.0}))
            samples[task] = [one[i] for i in range(len(one))]
        letters = _by_letter(tasks)
        groups = [[(question_text(item), item.options)] for item in questions]
        prompts, shown = _ask(groups, rows, builder, letters)
        answers = [item.answer for item in questions if item.answer is not None]
        return cls(prompts, shown, answers, samples, letters=letters)

    def measure(self, model: TopaForConditionalGeneration | StepModel) -> dict[str, float]:
        """Return accuracy, raw accuracy, blind accuracy, and `nll_TASK` per label token.

        `accuracy` has the blind likelihood subtracted; by letter it is the raw accuracy.
        """
        seen, blind = self._scores(model, blind=False), self._scores(model, blind=True)
        subtracted = [a - b for a, b in zip(seen, blind, strict=True)]
        return {
            "accuracy": self._accuracy(seen if self.letters else subtracted),
            "raw_accuracy": self._accuracy(seen),
            "blind_accuracy": self._accuracy(blind),
            **{f"nll_{task}": self._nll(model, rows) for task, rows in self.samples.items()},
        }

    def _scores(
        self, model: TopaForConditionalGeneration | StepModel, *, blind: bool
    ) -> list[Tensor]:
        scores = score_options(
            model,  # type: ignore[arg-type]
            self.prompts,
            self.features,
            blind=blind,
            batch_size=self.batch_size,
        )
        return [question for prompt in scores for question in prompt]

    @torch.inference_mode()
    def _nll(
        self, model: TopaForConditionalGeneration | StepModel, samples: Sequence[Sample]
    ) -> float:
        """Return the negative log-likelihood per label token."""
        was_training = model.training
        model.eval()
        ordered = sorted(samples, key=lambda sample: len(sample.prompt))
        total = torch.zeros((), device=model.device)
        count = 0
        for start in range(0, len(ordered), self.batch_size):
            part = ordered[start : start + self.batch_size]
            batch = collate(
                [sample.prompt for sample in part],
                [sample.features for sample in part],
                model.config.num_frames,
            ).to(model.device)
            total -= model.target_log_probs(batch).sum()
            count += len(batch.target_ids)
        model.train(was_training)
        return float(total) / max(count, 1)

    def _accuracy(self, scores: Sequence[Tensor]) -> float:
        pairs = zip(scores, self.answers, strict=True)
        return sum(int(torch.argmax(found)) == right for found, right in pairs) / len(scores)


def _drawn(tasks: Mapping[str, float]) -> list[str]:
    return [task for task in _PLAIN if tasks.get(task, 0) > 0]


def _by_letter(tasks: Mapping[str, float]) -> bool:
    return tasks.get("choice", 0) > 0 and not tasks.get("contrast", 0)


def _ask(
    groups: Sequence[Sequence[tuple[str, Sequence[str]]]],
    rows: Sequence[Tensor],
    builder: PromptBuilder,
    letters: bool,
) -> tuple[list[Prompt], list[Tensor]]:
    """Return prompts and their features: one of each video, by letter one of each question."""
    if not letters:
        return [builder.likelihood(group) for group in groups], list(rows)
    pairs = [
        (builder.choice(*question), shown)
        for group, shown in zip(groups, rows, strict=True)
        for question in group
    ]
    return [prompt for prompt, _ in pairs], [shown for _, shown in pairs]
