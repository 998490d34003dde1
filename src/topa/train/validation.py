"""Accuracy on Tideos kept out of training: seen, blind, and with the blind part subtracted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from topa.data.templates import PromptBuilder
from topa.features.store import TideoFeatures, sample_rows
from topa.model.scoring import score_options
from topa.model.topa import TopaForConditionalGeneration
from topa.tideo.schema import Tideo


class Validation:
    """Questions of validation Tideos, scored by likelihood.

    Args:
        tideos: Tideos that are not trained on.
        features: Their features.
        builder: Prompt builder of the model.
        num_frames: T.
        batch_size: Tideos per forward pass.
    """

    def __init__(
        self,
        tideos: Sequence[Tideo],
        features: TideoFeatures,
        builder: PromptBuilder,
        num_frames: int,
        batch_size: int = 8,
    ):
        self.tideos, self.batch_size = tideos, batch_size
        self.prompts = [
            builder.likelihood([(item.question, item.options) for item in tideo.qas])
            for tideo in tideos
        ]
        self.features = [
            features.of(i)[sample_rows(len(features.of(i)), num_frames)] for i in range(len(tideos))
        ]

    def measure(self, model: TopaForConditionalGeneration) -> dict[str, float]:
        """Return accuracy (blind likelihood subtracted), raw accuracy and blind accuracy."""
        seen = self._scores(model, blind=False)
        blind = self._scores(model, blind=True)
        answers = [item.answer for tideo in self.tideos for item in tideo.qas]
        return {
            "accuracy": _accuracy([a - b for a, b in zip(seen, blind, strict=True)], answers),
            "raw_accuracy": _accuracy(seen, answers),
            "blind_accuracy": _accuracy(blind, answers),
        }

    def _scores(self, model: TopaForConditionalGeneration, *, blind: bool) -> list[Tensor]:
        scores = score_options(
            model, self.prompts, self.features, blind=blind, batch_size=self.batch_size
        )
        return [question for prompt in scores for question in prompt]


def _accuracy(scores: Sequence[Tensor], answers: Sequence[int]) -> float:
    right = [int(torch.argmax(s)) == a for s, a in zip(scores, answers, strict=True)]
    return sum(right) / len(right)
