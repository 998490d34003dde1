"""What the LLM keeps of what it has read, row by row; and of videos, for the next question."""

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


@dataclass
class State:
    """What the LLM keeps of B rows of K tokens, padded on the left.

    Attributes:
        layers: Keys and values of each layer, [B, heads, K, d].
        mask: [B, K] 1 where a token may be seen.
        slots: [B, K] video slot at each token, -1 elsewhere.
    """

    layers: list[tuple[Tensor, Tensor]]
    mask: Tensor
    slots: Tensor

    def select(self, rows: Tensor) -> State:
        """Return the rows, without columns that are padding in all of them."""
        mask = self.mask[rows]
        seen = mask.any(0)
        start = int(seen.int().argmax()) if bool(seen.any()) else 0
        layers = [(k[rows, :, start:], v[rows, :, start:]) for k, v in self.layers]
        return State(layers, mask[:, start:], self.slots[rows, start:])

    def copy_row(self, row: int, start: int) -> State:
        """Return one row from column `start` on, which does not hold on to the others."""
        rows = slice(row, row + 1)
        layers = [(k[rows, :, start:].clone(), v[rows, :, start:].clone()) for k, v in self.layers]
        return State(layers, self.mask[rows, start:].clone(), self.slots[rows, start:].clone())

    def cache(self) -> DynamicCache:
        """Return the keys and values as the LLM takes them."""
        cache = DynamicCache()
        for index, (keys, values) in enumerate(self.layers):
            cache.update(keys, values, index)
        return cache


def layers_of(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    """Return keys and values of each layer; LLMs here have attention layers only."""
    layers = []
    for layer in cache.layers:
        assert isinstance(layer, DynamicLayer)
        assert layer.keys is not None
        assert layer.values is not None
        layers.append((layer.keys, layer.values))
    return layers


def stack(states: Sequence[State]) -> State:
    """Return all rows of several states, padded on the left to the longest."""
    if len(states) == 1:
        return states[0]
    longest = max(state.mask.shape[1] for state in states)
    gaps = [longest - state.mask.shape[1] for state in states]
    layers = []
    for parts in zip(*(state.layers for state in states), strict=True):
        padded = [
            (F.pad(keys, (0, 0, gap, 0)), F.pad(values, (0, 0, gap, 0))) if gap else (keys, values)
            for (keys, values), gap in zip(parts, gaps, strict=True)
        ]
        keys, values = zip(*padded, strict=True)
        layers.append((torch.cat(keys), torch.cat(values)))
    masks = [F.pad(state.mask, (gap, 0)) for state, gap in zip(states, gaps, strict=True)]
    slots = [
        F.pad(state.slots, (gap, 0), value=-1) for state, gap in zip(states, gaps, strict=True)
    ]
    return State(layers, torch.cat(masks), torch.cat(slots))


@dataclass(frozen=True)
class Beginning:
    """What a prompt begins with: an instruction and a video.

    Attributes:
        key: Names the features.
        features: [n, d] of the video; none of them to mask it.
        prompt: The prompt.
    """

    key: Hashable
    features: Tensor
    prompt: Prompt

    @property
    def name(self) -> Hashable:
        """What equal beginnings have in common; where the video is masked, whichever it is."""
        shown = len(self.features)
        return self.key if shown else None, shown, self.prompt.segments[0].ids


class Prefixes:
    """Reads the beginnings of prompts, each once as long as it is kept.

    Attributes:
        reused: Beginnings that had been read before.

    Args:
        model: The model, in evaluation mode.
        most: Beginnings that are kept.
    """

    def __init__(self, model: TopaForConditionalGeneration, most: int = 32):
        self._model, self._most = model, most
        self._known: OrderedDict[Hashable, State] = OrderedDict()
        self.reused = 0

    @torch.inference_mode()
    def read(self, beginnings: Sequence[Beginning]) -> State:
        """Return what the LLM keeps of each beginning, a row for each."""
        fresh = {each.name: each for each in beginnings if each.name not in self._known}
        self.reused += len(beginnings) - len(fresh)
        if fresh:
            self._read(fresh)
        for each in beginnings:
            self._known.move_to_end(each.name)
        state = stack([self._known[each.name] for each in beginnings])
        while len(self._known) > self._most:
            self._known.popitem(last=False)
        return state

    def _read(self, fresh: dict[Hashable, Beginning]) -> None:
        config = self._model.config
        inputs = collate_for_generation(
            [Prompt(each.prompt.segments[:1]) for each in fresh.values()],
            [each.features for each in fresh.values()],
            config.num_frames,
            config.slots_per_frame,
        )
        inputs = {name: tensor.to(self._model.device) for name, tensor in inputs.items()}
        cache = DynamicCache()
        self._model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        state = State(layers_of(cache), inputs["attention_mask"], inputs["slot_index"])
        length = state.mask.shape[1]
        for row, (name, each) in enumerate(fresh.items()):
            self._known[name] = state.copy_row(row, length - len(each.prompt.segments[0].ids))
