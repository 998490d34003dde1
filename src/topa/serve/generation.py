"""Many answers written at once: rows join and leave between any two tokens.

The answers are those that `Topa.generate` gives each prompt alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import DynamicCache

from topa.model.topa import TopaForConditionalGeneration
from topa.serve.states import Beginning, Prefixes, State, layers_of, stack
from topa.serve.writing import Piece, Writer


@dataclass
class Request:
    """Answers to write after one prompt.

    Attributes:
        beginning: The prompt, without branches, and its video.
        writers: One for each answer.
    """

    beginning: Beginning
    writers: list[Writer]


class Generation:
    """The answers that are being written.

    Attributes:
        writers: Their writers, one for each row.

    Args:
        model: The model, in evaluation mode.
        prefixes: Reads the beginnings of prompts.
    """

    def __init__(self, model: TopaForConditionalGeneration, prefixes: Prefixes):
        self._model, self._prefixes = model, prefixes
        self._state: State | None = None
        self._cache: DynamicCache | None = None
        self.writers: list[Writer] = []

    @torch.inference_mode()
    def join(self, requests: Sequence[Request]) -> list[tuple[Writer, Piece]]:
        """Read prompts, and write the first token of each of their answers."""
        read, logits = self._read([request.beginning for request in requests])
        counts = torch.tensor([len(request.writers) for request in requests])
        rows = torch.arange(len(counts)).repeat_interleave(counts).to(logits.device)
        joined = read.select(rows)
        self._update_state()
        self._state = joined if self._state is None else stack([self._state, joined])
        start = len(self.writers)
        self.writers += [writer for request in requests for writer in request.writers]
        return self._take(logits[rows], start)

    @torch.inference_mode()
    def step(self) -> list[tuple[Writer, Piece]]:
        """Write the next token of every answer."""
        assert self._state is not None
        state = self._state
        if self._cache is None:
            self._cache = state.cache()
            state.layers = []  # the cache has its own copy
        ids = torch.tensor([[writer.last_id] for writer in self.writers], device=state.mask.device)
        state.mask = F.pad(state.mask, (0, 1), value=1)
        out = self._model(
            input_ids=ids,
            slot_index=state.slots,
            attention_mask=state.mask,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        state.slots = F.pad(state.slots, (0, 1), value=-1)
        return self._take(out.logits[:, -1], 0)

    def leave(self, writers: Sequence[Writer]) -> None:
        """Take answers out, ended or given up."""
        gone = set(map(id, writers))
        rows = [row for row, writer in enumerate(self.writers) if id(writer) not in gone]
        if len(rows) == len(self.writers):
            return
        self._update_state()
        self.writers = [self.writers[row] for row in rows]
        if not rows or self._state is None:
            self._state = None
        else:
            self._state = self._state.select(torch.tensor(rows, device=self._state.mask.device))

    def _take(self, logits: Tensor, start: int) -> list[tuple[Writer, Piece]]:
        rows = logits.float().cpu()
        return [
            (writer, writer.take(row))
            for writer, row in zip(self.writers[start:], rows, strict=True)
        ]

    def _update_state(self) -> None:
        """Bring what the LLM's cache has grown to back into the state."""
        if self._cache is not None and self._state is not None:
            self._state.layers = layers_of(self._cache)
        self._cache = None

    def _read(self, beginnings: Sequence[Beginning]) -> tuple[State, Tensor]:
        """Read whole prompts; return their state and the logits [B, vocabulary] after them."""
        before = self._prefixes.read(beginnings)
        tails = [
            [token for segment in each.prompt.segments[1:] for token in segment.ids]
            for each in beginnings
        ]
        longest = max(map(len, tails))
        ids = torch.zeros(len(tails), longest, dtype=torch.long)
        shown = torch.zeros(len(tails), longest, dtype=torch.long)
        for row, tail in enumerate(tails):
            ids[row, longest - len(tail) :] = torch.tensor(tail)
            shown[row, longest - len(tail) :] = 1
        mask = torch.cat([before.mask, shown.to(before.mask)], 1)
        cache = before.cache()
        out = self._model(
            input_ids=ids.to(self._model.device),
            slot_index=before.slots,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        state = State(layers_of(cache), mask, F.pad(before.slots, (0, longest), value=-1))
        return state, out.logits[:, -1]
