"""Figures on what is kept out of training: accuracy, seen and blind, and the NLL of each task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

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
Model = TopaForConditionalGeneration | StepModel


def _keep(counts: Tensor) -> Tensor:
    return counts


@dataclass(frozen=True)
class Share:
    """Which part of a work one of several processes does.

    Attributes:
        rank: Number of the process.
        processes: How many there are.
        add_up: Sums a tensor over all of them.
    """

    rank: int = 0
    processes: int = 1
    add_up: Callable[[Tensor], Tensor] = _keep


ALONE = Share()


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
        self.firsts = [0, *accumulate(len(prompt.options) for prompt in self.prompts)]

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

    def measure(self, model: Model, share: Share = ALONE) -> dict[str, float]:
        """Return accuracy, raw accuracy, blind accuracy, and `nll_TASK` per label token.

        `accuracy` has the blind likelihood subtracted; by letter it is the raw accuracy.
        Processes take batches in turns, the same ones as a single process would make, and each
        as many as the others: shards of a model are gathered by all of them together.

        Args:
            model: Alone or wrapped.
            share: Of the work that is this process's.
        """
        was_training = model.training
        model.eval()
        right = self._count_right(model, share)
        nlls = [self._sum_nll(model, rows, share) for rows in self.samples.values()]
        model.train(was_training)
        sums = [*right, *(value for pair in nlls for value in pair)]
        counts = torch.tensor(sums, dtype=torch.float64, device=model.device)
        whole = share.add_up(counts).tolist()
        names = ("accuracy", "raw_accuracy", "blind_accuracy")
        figures = {name: whole[i] / len(self.answers) for i, name in enumerate(names)}
        for i, task in enumerate(self.samples):
            total, tokens = whole[3 + 2 * i : 5 + 2 * i]
            figures[f"nll_{task}"] = total / max(tokens, 1)
        return figures

    def _count_right(self, model: Model, share: Share) -> list[int]:
        """Return how many questions are answered right: as it is scored, raw, and blind."""
        counts = [0, 0, 0]
        for rows, counted in _deal(
            [len(prompt) for prompt in self.prompts], self.batch_size, share
        ):
            prompts = [self.prompts[i] for i in rows]
            features = [self.features[i] for i in rows]
            seen, blind = (
                score_options(
                    model,  # type: ignore[arg-type]
                    prompts,
                    features,
                    blind=hidden,
                    batch_size=self.batch_size,
                )
                for hidden in (False, True)
            )
            if not counted:
                continue
            for i, raw, guessed in zip(rows, seen, blind, strict=True):
                answers = self.answers[self.firsts[i] : self.firsts[i] + len(raw)]
                for a, b, answer in zip(raw, guessed, answers, strict=True):
                    scored = a if self.letters else a - b
                    for place, scores in enumerate((scored, a, b)):
                        counts[place] += int(scores.argmax()) == answer
        return counts

    @torch.inference_mode()
    def _sum_nll(self, model: Model, samples: Sequence[Sample], share: Share) -> tuple[float, int]:
        """Return the summed negative log-likelihood and the number of label tokens."""
        total, tokens = 0.0, 0
        for rows, counted in _deal([len(item.prompt) for item in samples], self.batch_size, share):
            batch = collate(
                [samples[i].prompt for i in rows],
                [samples[i].features for i in rows],
                model.config.num_frames,
            ).to(model.device)
            log_probs = model.target_log_probs(batch)
            if counted:
                total -= float(log_probs.double().sum())
                tokens += len(batch.target_ids)
        return total, tokens


def _deal(
    lengths: Sequence[int], batch_size: int, share: Share
) -> Iterator[tuple[list[int], bool]]:
    """Yield the batches of one process, neighbours in length, and whether they count.

    A process that has none left where others still have one repeats the first.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    for first in range(0, len(batches), share.processes):
        own = first + share.rank
        yield (batches[own], True) if own < len(batches) else (batches[0], False)


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
