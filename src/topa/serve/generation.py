"""Many answers written at once: rows join and leave between any two tokens.

The answers are those that `Topa.generate` gives each prompt alone. What a prompt has up to its
video slots is kept for the next question about the same video.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from topa.data.collate import collate_for_generation
from topa.data.templates import Prompt
from topa.model.topa import TopaForConditionalGeneration
from topa.serve.writing import Piece, Writer


@dataclass
class Request:
    """Answers to write after one prompt.

    Attributes:
        prompt: The prompt, without branches.
        features: [n, d] of the video; none of them to mask it.
        key: Names the features, for reuse of what the LLM made of them; None not to reuse.
        writers: One for each answer.
    """

    prompt: Prompt
    features: Tensor
    key: Hashable
    writers: list[Writer]


@dataclass
class _State:
    """What the LLM keeps of B rows of K tokens, padded on the left.

    Attributes:
        layers: Keys and values of each layer, [B, heads, K, d].
        mask: [B, K] 1 where a token may be seen.
        slots: [B, K] video slot at each token, -1 elsewhere.
    """

    layers: list[tuple[Tensor, Tensor]]
    mask: Tensor
    slots: Tensor

    def select(self, rows: Tensor) -> _State:
        """Return the rows, without columns that are padding in all of them."""
        mask = self.mask[rows]
        seen = mask.any(0)
        start = int(seen.int().argmax()) if bool(seen.any()) else 0
        layers = [(k[rows, :, start:], v[rows, :, start:]) for k, v in self.layers]
        return _State(layers, mask[:, start:], self.slots[rows, start:])

    def columns(self, row: int, start: int, end: int) -> _State:
        """Return a copy of some tokens of one row, which does not hold on to the rest."""
        rows = slice(row, row + 1)
        layers = [
            (k[rows, :, start:end].clone(), v[rows, :, start:end].clone()) for k, v in self.layers
        ]
        return _State(
            layers, self.mask[rows, start:end].clone(), self.slots[rows, start:end].clone()
        )

    def cache(self) -> DynamicCache:
        """Return the keys and values as the LLM takes them."""
        cache = DynamicCache()
        for index, (keys, values) in enumerate(self.layers):
            cache.update(keys, values, index)
        return cache


def _layers_of(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    """Return keys and values of each layer; LLMs here have attention layers only."""
    layers = []
    for layer in cache.layers:
        assert isinstance(layer, DynamicLayer)
        assert layer.keys is not None
        assert layer.values is not None
        layers.append((layer.keys, layer.values))
    return layers


def _stack(states: Sequence[_State]) -> _State:
    """Return all rows of several states, padded on the left to the longest."""
    if len(states) == 1:
        return states[0]
    longest = max(state.mask.shape[1] for state in states)
    gaps = [longest - state.mask.shape[1] for state in states]
    layers = []
    for parts in zip(*(state.layers for state in states), strict=True):
        padded = [
            (F.pad(keys, (0, 0, gap, 0)), F.pad(values, (0, 0, gap, 0)))
            for (keys, values), gap in zip(parts, gaps, strict=True)
        ]
        keys, values = zip(*padded, strict=True)
        layers.append((torch.cat(keys), torch.cat(values)))
    masks = [F.pad(state.mask, (gap, 0)) for state, gap in zip(states, gaps, strict=True)]
    slots = [
        F.pad(state.slots, (gap, 0), value=-1) for state, gap in zip(states, gaps, strict=True)
    ]
    return _State(layers, torch.cat(masks), torch.cat(slots))


class Generation:
    """The answers that are being written.

    Attributes:
        writers: Their writers, one for each row.
        reused: Prompts whose video the LLM had read before.

    Args:
        model: The model, in evaluation mode.
        prefixes: Videos whose part of the LLM's cache is kept.
    """

    def __init__(self, model: TopaForConditionalGeneration, prefixes: int = 32):
        self._model, self._most = model, prefixes
        self._known: OrderedDict[Hashable, _State] = OrderedDict()
        self._state: _State | None = None
        self._cache: DynamicCache | None = None
        self.writers: list[Writer] = []
        self.reused = 0

    @torch.inference_mode()
    def join(self, requests: Sequence[Request]) -> list[tuple[Writer, Piece]]:
        """Read prompts, and write the first token of each of their answers."""
        known = [request for request in requests if self._name(request) in self._known]
        fresh = [request for request in requests if self._name(request) not in self._known]
        states, logits = [], []
        for read, group in ((self._read, fresh), (self._read_on, known)):
            if group:
                state, last = read(group)
                states.append(state)
                logits.append(last)
        self.reused += len(known)
        counts = torch.tensor([len(request.writers) for request in (*fresh, *known)])
        rows = torch.arange(len(counts)).repeat_interleave(counts)
        joined = _stack(states).select(rows.to(logits[0].device))
        writers = [writer for request in (*fresh, *known) for writer in request.writers]
        self._update_state()
        self._state = joined if self._state is None else _stack([self._state, joined])
        self._cache = None
        start, self.writers = len(self.writers), self.writers + writers
        return self._take(torch.cat(logits)[rows.to(logits[0].device)], start)

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
            self._state.layers = _layers_of(self._cache)
        self._cache = None

    @staticmethod
    def _name(request: Request) -> Hashable:
        """Return the name of a prompt up to its video slots, None if it has none."""
        if request.key is None:
            return None
        return request.key, len(request.features), request.prompt.segments[0].ids

    def _read(self, requests: Sequence[Request]) -> tuple[_State, Tensor]:
        """Read whole prompts; return their state and the logits [B, vocabulary] after them."""
        config = self._model.config
        inputs = collate_for_generation(
            [request.prompt for request in requests],
            [request.features for request in requests],
            config.num_frames,
            config.slots_per_frame,
        )
        inputs = {name: tensor.to(self._model.device) for name, tensor in inputs.items()}
        cache = DynamicCache()
        out = self._model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        layers = _layers_of(cache)
        state = _State(layers, inputs["attention_mask"], inputs["slot_index"])
        for row, request in enumerate(requests):
            name = self._name(request)
            if name is not None:
                start = state.mask.shape[1] - len(request.prompt)
                end = start + len(request.prompt.segments[0].ids)
                self._known[name] = state.columns(row, start, end)
        while len(self._known) > self._most:
            self._known.popitem(last=False)
        return state, out.logits[:, -1]

    def _read_on(self, requests: Sequence[Request]) -> tuple[_State, Tensor]:
        """Read prompts whose beginning was read before, from there on."""
        for request in requests:
            self._known.move_to_end(self._name(request))
        before = _stack([self._known[self._name(request)] for request in requests])
        tails = [
            [token for segment in request.prompt.segments[1:] for token in segment.ids]
            for request in requests
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
        layers = _layers_of(cache)
        return _State(layers, mask, F.pad(before.slots, (0, longest), value=-1)), out.logits[:, -1]
