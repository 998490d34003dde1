"""Prompts and their features, made into one padded batch of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from topa.data.templates import Prompt
from topa.errors import ConfigError


@dataclass
class Batch:
    """Prompts of one forward pass. B prompts, S tokens, G segments, T frames, N targets.

    Attributes:
        input_ids: [B, S] token ids, 0 in slots and padding.
        slot_index: [B, S] video slot number, -1 elsewhere.
        segment_ids: [B, S] segment of each token, -1 in the padding.
        visible_segments: [B, G, G] True where a query's segment (dim 1) sees a key's (dim 2).
        features: [B, T, d] frame features, zero where masked.
        frame_mask: [B, T] True where there is a frame.
        target_rows: [N] prompt of each target token.
        target_sources: [N] position whose output predicts it.
        target_ids: [N] the token.
        target_spans: [N] the labelled segment it belongs to, numbered over the batch.
        span_groups: [M] question with options of each span, -1 for a plain label.
        group_answers: [Q] span of the right option of each question, -1 if unknown.
        tokens: [K] the positions row * S + column that are computed: not the padding, and what
            comes before the videos only once where prompts begin alike. None: all of [B, S].
        places: [B, S] which of the K tokens stands at a position; any one in the padding.
    """

    input_ids: Tensor
    slot_index: Tensor
    segment_ids: Tensor
    visible_segments: Tensor
    features: Tensor
    frame_mask: Tensor
    target_rows: Tensor
    target_sources: Tensor
    target_ids: Tensor
    target_spans: Tensor
    span_groups: Tensor
    group_answers: Tensor
    tokens: Tensor | None = None
    places: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with every tensor on `device`."""
        return Batch(**{name: tensor.to(device) for name, tensor in self.as_dict().items()})

    def as_dict(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        found = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: tensor for name, tensor in found.items() if tensor is not None}


def pad_frames(features: Sequence[Tensor], num_frames: int) -> tuple[Tensor, Tensor]:
    """Stack features of unequal length into [B, T, d] and the mask [B, T] of real frames.

    Raises:
        ConfigError: A video has more frames than the model has slots for.
    """
    longest = max(len(item) for item in features)
    if longest > num_frames:
        raise ConfigError(
            f"{longest} frames given, the model has temporal slots for {num_frames}",
            mend="Sample fewer frames, or train with a larger model.num_frames.",
        )
    padded = features[0].new_zeros(len(features), num_frames, features[0].shape[-1])
    mask = torch.zeros(len(features), num_frames, dtype=torch.bool)
    for row, item in enumerate(features):
        padded[row, : len(item)] = item
        mask[row, : len(item)] = True
    return padded, mask


def collate_for_generation(
    prompts: Sequence[Prompt], features: Sequence[Tensor], num_frames: int, slots_per_frame: int
) -> dict[str, Tensor]:
    """Return what `generate()` takes for plain prompts, padded on the left.

    Args:
        prompts: B prompts without branches: every segment continues the one before.
        features: B tensors [n_i, d].
        num_frames: T.
        slots_per_frame: Slots that a frame takes.

    Returns:
        `input_ids`, `slot_index`, `attention_mask` [B, S] and `features` [B, T, d]; slots of
        frames that are not there are masked.
    """
    length = max(len(prompt) for prompt in prompts)
    padded, frame_mask = pad_frames(features, num_frames)
    input_ids = torch.zeros(len(prompts), length, dtype=torch.long)
    slot_index = torch.full((len(prompts), length), -1, dtype=torch.long)
    attention_mask = torch.zeros(len(prompts), length, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        if any(segment.parent != i - 1 for i, segment in enumerate(prompt.segments)):
            raise ConfigError("a prompt with branches cannot be continued", where="generate")
        start = length - len(prompt)
        slots = torch.tensor([slot for segment in prompt.segments for slot in segment.slots])
        ids = [token for segment in prompt.segments for token in segment.ids]
        input_ids[row, start:] = torch.tensor(ids, dtype=torch.long)
        slot_index[row, start:] = slots
        shown = frame_mask[row][slots.clamp(min=0) // slots_per_frame]
        attention_mask[row, start:] = ((slots < 0) | shown).long()
    return {
        "input_ids": input_ids,
        "slot_index": slot_index,
        "attention_mask": attention_mask,
        "features": padded,
    }


@dataclass
class _Targets:
    rows: list[int]
    sources: list[int]
    ids: list[int]
    spans: list[int]
    span_groups: list[int]
    group_answers: list[int]


def collate(
    prompts: Sequence[Prompt], features: Sequence[Tensor], num_frames: int, multiple: int = 8
) -> Batch:
    """Pad prompts on the right to a common length (a multiple of `multiple`).

    Args:
        prompts: B prompts.
        features: B tensors [n_i, d] with n_i <= num_frames.
        num_frames: T.
        multiple: Lengths are rounded up to it, for the matrix units.
    """
    length = -(-max(len(prompt) for prompt in prompts) // multiple) * multiple
    groups = max(len(prompt.segments) for prompt in prompts)
    size = len(prompts)
    input_ids = torch.zeros(size, length, dtype=torch.long)
    slot_index = torch.full((size, length), -1, dtype=torch.long)
    segment_ids = torch.full((size, length), -1, dtype=torch.long)
    visible = torch.zeros(size, groups, groups, dtype=torch.bool)
    targets = _Targets([], [], [], [], [], [])
    for row, prompt in enumerate(prompts):
        starts = _place(prompt, row, input_ids, slot_index, segment_ids, visible)
        _collect_targets(prompt, row, starts, targets)
    padded, mask = pad_frames(features, num_frames)
    tokens, places = _pack(prompts, length)
    return Batch(
        input_ids=input_ids,
        slot_index=slot_index,
        segment_ids=segment_ids,
        visible_segments=visible,
        features=padded,
        frame_mask=mask,
        target_rows=torch.tensor(targets.rows, dtype=torch.long),
        target_sources=torch.tensor(targets.sources, dtype=torch.long),
        target_ids=torch.tensor(targets.ids, dtype=torch.long),
        target_spans=torch.tensor(targets.spans, dtype=torch.long),
        span_groups=torch.tensor(targets.span_groups, dtype=torch.long),
        group_answers=torch.tensor(targets.group_answers, dtype=torch.long),
        tokens=tokens,
        places=places,
    )


def _pack(prompts: Sequence[Prompt], length: int) -> tuple[Tensor, Tensor]:
    """Return the positions [K] that are computed, and which of them stands where [B, S].

    Text before the first video slot is the same function of itself in every prompt, so that
    prompts which begin alike share it: it is a tree, walked by (place before, token).
    """
    tokens: list[int] = []
    places = torch.zeros(len(prompts), length, dtype=torch.long)
    shared: dict[tuple[int, int], int] = {}
    for row, prompt in enumerate(prompts):
        root, before = prompt.segments[0], -1
        found: list[int] = []
        for token, slot in zip(root.ids, root.slots, strict=True):
            if slot >= 0:
                break
            before = shared.setdefault((before, token), len(tokens))
            if before == len(tokens):
                tokens.append(row * length + len(found))
            found.append(before)
        own = range(len(found), len(prompt))
        found += range(len(tokens), len(tokens) + len(own))
        tokens += [row * length + column for column in own]
        places[row, : len(found)] = torch.tensor(found, dtype=torch.long)
    return torch.tensor(tokens, dtype=torch.long), places


def _place(
    prompt: Prompt,
    row: int,
    input_ids: Tensor,
    slot_index: Tensor,
    segment_ids: Tensor,
    visible: Tensor,
) -> list[int]:
    """Write one prompt into its row; return where each segment starts."""
    starts, position = [], 0
    for index, segment in enumerate(prompt.segments):
        end = position + len(segment.ids)
        input_ids[row, position:end] = torch.tensor(segment.ids, dtype=torch.long)
        slot_index[row, position:end] = torch.tensor(segment.slots, dtype=torch.long)
        segment_ids[row, position:end] = index
        if segment.parent >= 0:
            visible[row, index] = visible[row, segment.parent]
        visible[row, index, index] = True
        starts.append(position)
        position = end
    return starts


def _collect_targets(prompt: Prompt, row: int, starts: list[int], targets: _Targets) -> None:
    """Append the labelled tokens of one prompt and the positions that predict them."""
    group_of = {
        segment: group for group, members in enumerate(prompt.options) for segment in members
    }
    first_group = len(targets.group_answers)
    span_of: dict[int, int] = {}
    for index, segment in enumerate(prompt.segments):
        if not segment.is_label:
            continue
        parent = prompt.segments[segment.parent]
        before = starts[segment.parent] + len(parent.ids) - 1
        start, count = starts[index], len(segment.ids)
        span = span_of[index] = len(targets.span_groups)
        targets.rows += [row] * count
        targets.sources += [before, *range(start, start + count - 1)]
        targets.ids += segment.ids
        targets.spans += [span] * count
        group = group_of.get(index)
        targets.span_groups.append(-1 if group is None else first_group + group)
    for members, answer in zip(prompt.options, prompt.answers, strict=True):
        targets.group_answers.append(span_of[members[answer]] if answer >= 0 else -1)
