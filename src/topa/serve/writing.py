"""One answer as it is written: choosing each token, the text so far, and when it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.generation.logits_process import (
    LogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from topa.answer import drop_unfinished

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Sampling:
    """How an answer is written.

    Attributes:
        max_tokens: Longest answer, in tokens.
        temperature: 0 takes the likeliest token each time, as `Topa.ask` does.
        top_p: Tokens are drawn from the likeliest ones that together have this probability.
        stop: Texts at which the answer ends; they are not part of it.
        seed: Of the draws.
        top_logprobs: Likeliest tokens told beside each token; None to tell no probabilities.
        no_repeat: No run of so many tokens occurs twice; 0 allows it.
        repetition_penalty: Divides the score of tokens that were there before; 1 changes nothing.
        whole_sentences: A sentence that is cut off at the end is left out.
    """

    max_tokens: int = 40
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    top_logprobs: int | None = None
    no_repeat: int = 4
    repetition_penalty: float = 1.0
    whole_sentences: bool = False


@dataclass(frozen=True)
class Token:
    """A token of an answer.

    Attributes:
        text: What it stands for.
        logprob: Its log-probability, before temperature.
        top: The likeliest tokens in its place and their log-probabilities.
    """

    text: str
    logprob: float
    top: list[tuple[str, float]]


@dataclass
class Piece:
    """What one step added to an answer.

    Attributes:
        text: New text, which may be empty.
        tokens: New tokens, where probabilities are asked for.
        count: Number of tokens written so far.
        finish: Why the answer ended, None while it goes on.
    """

    text: str
    tokens: list[Token] = field(default_factory=list)
    count: int = 0
    finish: Finish | None = None


class Flow:
    """What of a growing text can be shown.

    Args:
        sampling: Says where it stops.
    """

    def __init__(self, sampling: Sampling):
        self._sampling = sampling
        self._sent = ""

    def follow(self, text: str, finish: Finish | None) -> tuple[str, Finish | None]:
        """Return what is new in a text that was continued, and why it ended, if it did."""
        text = text.lstrip()
        ends = [place for stop in self._sampling.stop if (place := text.find(stop)) >= 0]
        if ends:
            text, finish = text[: min(ends)], "stop"
        shown = text.rstrip() if finish else self._settled(text)
        if self._sampling.whole_sentences:
            shown = drop_unfinished(shown) if finish else _finished(shown)
        # What was sent stays: only text that follows it can be added.
        added = shown[len(self._sent) :]
        self._sent += added
        return added, finish

    def _settled(self, text: str) -> str:
        """Return what cannot change any more: no half character, space, or start of a stop."""
        text = text.rstrip("\ufffd")
        held = 0
        for stop in self._sampling.stop:
            for length in range(min(len(stop) - 1, len(text)), 0, -1):
                if text.endswith(stop[:length]):
                    held = max(held, length)
                    break
        return text[: len(text) - held].rstrip()


class Writer:
    """Writes one answer, a token for each row of logits.

    The whole text is what `Topa.generate` returns where temperature is 0 and nothing stops it.

    Args:
        tokenizer: Of the LLM.
        eos_id: Token that ends an answer, if there is one.
        prompt_ids: Tokens before the answer.
        sampling: How to write.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        eos_id: int | None,
        prompt_ids: Sequence[int],
        sampling: Sampling,
    ):
        self._tokenizer, self._eos_id, self._sampling = tokenizer, eos_id, sampling
        self._ids = list(prompt_ids)
        self._start = len(self._ids)
        self._flow = Flow(sampling)
        self._generator: torch.Generator | None = None
        if sampling.temperature > 0:
            self._generator = torch.Generator()
            if sampling.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(sampling.seed)
        # In the order of transformers' own `generate`.
        self._processors: list[LogitsProcessor] = []
        if sampling.repetition_penalty != 1:
            self._processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        if sampling.no_repeat:
            self._processors.append(NoRepeatNGramLogitsProcessor(sampling.no_repeat))

    @property
    def last_id(self) -> int:
        """The token written last."""
        return self._ids[-1]

    def take(self, logits: Tensor) -> Piece:
        """Write the next token.

        Args:
            logits: [vocabulary] float32, on the CPU.
        """
        token = self._choose(logits)
        self._ids.append(token)
        count = len(self._ids) - self._start
        piece = Piece("", count=count)
        if self._sampling.top_logprobs is not None:
            piece.tokens.append(self._tell(token, logits, self._sampling.top_logprobs))
        if token == self._eos_id:
            piece.finish = "stop"
        elif count >= self._sampling.max_tokens:
            piece.finish = "length"
        text = self._decode(self._ids[self._start :])
        piece.text, piece.finish = self._flow.follow(text, piece.finish)
        return piece

    def _choose(self, logits: Tensor) -> int:
        scores = logits[None]
        ids = torch.tensor([self._ids])
        for process in self._processors:
            scores = process(ids, scores)  # type: ignore[arg-type]
        if self._generator is None:
            return int(scores[0].argmax())
        no_ids = torch.empty(1, 0, dtype=torch.long)
        scores = TemperatureLogitsWarper(self._sampling.temperature)(no_ids, scores)  # type: ignore[arg-type]
        if self._sampling.top_p < 1:
            scores = TopPLogitsWarper(self._sampling.top_p)(no_ids, scores)  # type: ignore[arg-type]
        return int(torch.multinomial(scores.softmax(-1)[0], 1, generator=self._generator))

    def _tell(self, token: int, logits: Tensor, most: int) -> Token:
        log_probs = logits.log_softmax(-1)
        values, ids = log_probs.topk(most) if most else (log_probs[:0], torch.zeros(0).long())
        top = [(self._spell(i), v) for i, v in zip(ids.tolist(), values.tolist(), strict=True)]
        return Token(self._spell(token), float(log_probs[token]), top)

    def _spell(self, token: int) -> str:
        return str(self._tokenizer.decode([token], skip_special_tokens=False))

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


def _finished(text: str) -> str:
    """Return the sentences of a text that have ended: while it goes on, "3." may become "3.5"."""
    before_last_word = text.rsplit(maxsplit=1)[:-1]
    # The full stop in front makes nothing of a text that has no ended sentence.
    return drop_unfinished(f". {''.join(before_last_word)}")[2:]
