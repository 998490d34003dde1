"""Batches: padding, slots, who sees whom, and where each target is predicted."""

from __future__ import annotations

import pytest
import torch

from topa.data.collate import collate, collate_for_generation, pad_frames
from topa.data.templates import Prompt, Segment
from topa.errors import ConfigError

SLOTS = 2


def segment(ids, parent, is_label=False):
    return Segment(tuple(ids), parent, (-1,) * len(ids), is_label)


@pytest.fixture
def tree() -> Prompt:
    """Root 10 11 [v0] [v1], question 12, options 13 14 and 15; then a plain label 0 2."""
    root = Segment((10, 11, 0, 0), -1, (-1, -1, 0, 1))
    return Prompt(
        [
            root,
            segment([12], 0),
            segment([13, 14], 1, True),
            segment([15], 1, True),
            segment([0, 2], 0, True),
        ],
        options=[[2, 3]],
        answers=[1],
    )


@pytest.fixture
def line() -> Prompt:
    """[v0] [v1] 20, label 21."""
    return Prompt(
        [Segment((0, 0), -1, (0, 1)), segment([20], 0), segment([21], 1, True)],
    )


def test_no_padding_is_computed_and_a_common_beginning_once(tree, line):
    # Like `tree` up to 10, then another token: only the first is shared.
    other = Prompt([Segment((10, 12, 11, 0), -1, (-1, -1, -1, 0)), segment([11], 0, True)])
    features = [torch.ones(2, 5), torch.ones(1, 5), torch.ones(1, 5), torch.ones(2, 5)]
    batch = collate([tree, line, other, tree], features, SLOTS)
    row = batch.input_ids.shape[1]
    own = [*range(10), *range(row, row + 4), *range(2 * row + 1, 2 * row + 5)]
    assert batch.tokens.tolist() == [*own, *range(3 * row + 2, 3 * row + 10)]
    assert batch.places[0, :10].tolist() == [*range(10)]
    assert batch.places[2, :5].tolist() == [0, 14, 15, 16, 17]
    assert batch.places[3, :10].tolist() == [0, 1, *range(18, 26)]
    ids = batch.input_ids.flatten()[batch.tokens][batch.places]
    assert ids[batch.segment_ids >= 0].equal(batch.input_ids[batch.segment_ids >= 0])


def test_frames_are_padded_and_masked_never_repeated():
    padded, mask = pad_frames([torch.ones(3, 4), torch.ones(1, 4), torch.ones(0, 4)], 3)
    assert mask.tolist() == [[True] * 3, [True, False, False], [False] * 3]
    assert padded.shape == (3, 3, 4)
    assert padded[~mask].eq(0).all()
    assert padded[mask].eq(1).all()


def test_more_frames_than_slots_are_refused():
    with pytest.raises(ConfigError, match="4 frames given, the model has temporal slots for 3"):
        pad_frames([torch.ones(4, 2)], 3)


def test_tokens_slots_and_segments_lie_where_they_should(tree, line):
    batch = collate([tree, line], [torch.ones(2, 5), torch.ones(1, 5)], SLOTS)
    assert batch.input_ids.tolist()[0] == [10, 11, 0, 0, 12, 13, 14, 15, 0, 2] + [0] * 6
    assert batch.input_ids.tolist()[1] == [0, 0, 20, 21] + [0] * 12
    assert batch.slot_index.tolist()[0] == [-1, -1, 0, 1] + [-1] * 12
    assert batch.slot_index.tolist()[1] == [0, 1] + [-1] * 14
    assert batch.segment_ids.tolist()[0] == [0, 0, 0, 0, 1, 2, 2, 3, 4, 4] + [-1] * 6
    assert batch.frame_mask.tolist() == [[True, True], [True, False]]


def test_segments_see_themselves_and_their_ancestors_alone(tree):
    batch = collate([tree], [torch.ones(2, 5)], SLOTS)
    seen = [row.nonzero().flatten().tolist() for row in batch.visible_segments[0]]
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 1, 3], [0, 4]]


def test_each_target_is_predicted_by_the_token_before_it_on_its_path(tree, line):
    batch = collate([tree, line], [torch.ones(2, 5), torch.ones(1, 5)], SLOTS)
    targets = list(
        zip(
            batch.target_rows.tolist(),
            batch.target_sources.tolist(),
            batch.target_ids.tolist(),
            batch.target_spans.tolist(),
            strict=True,
        )
    )
    assert targets == [
        (0, 4, 13, 0),  # after the question 12
        (0, 5, 14, 0),
        (0, 4, 15, 1),  # the second option too
        (0, 3, 0, 2),  # after the last slot
        (0, 8, 2, 2),
        (1, 2, 21, 3),
    ]
    assert batch.span_groups.tolist() == [0, 0, -1, -1]
    assert batch.group_answers.tolist() == [1]


def test_token_id_zero_is_learned_like_any_other(tree):
    """The official code ignores label 0, a real token of most vocabularies."""
    batch = collate([tree], [torch.ones(2, 5)], SLOTS)
    assert 0 in batch.target_ids.tolist()
    # Slots and padding hold 0 as well, and are no targets.
    assert len(batch.target_ids) == 5


def test_questions_are_numbered_over_the_batch(tree):
    batch = collate([tree, tree], [torch.ones(2, 5)] * 2, SLOTS)
    assert batch.span_groups.tolist() == [0, 0, -1, 1, 1, -1]
    assert batch.group_answers.tolist() == [1, 4]


def test_an_unknown_answer_is_minus_one(tree):
    tree.answers = [-1]
    assert collate([tree], [torch.ones(2, 5)], SLOTS).group_answers.tolist() == [-1]


@pytest.mark.parametrize(("multiple", "length"), [(1, 10), (8, 16), (10, 10), (64, 64)])
def test_lengths_are_rounded_up_not_to_a_fixed_maximum(multiple, length, tree):
    batch = collate([tree], [torch.ones(2, 5)], SLOTS, multiple)
    assert batch.input_ids.shape == (1, length)


def test_generation_is_padded_on_the_left(line):
    longer = Prompt([segment([7, 8], -1), *line.segments[:2]])
    longer.segments = [
        Segment((7, 8, 0, 0), -1, (-1, -1, 0, 1)),
        segment([20, 21], 0),
    ]
    inputs = collate_for_generation([longer, line], [torch.ones(2, 5), torch.ones(1, 5)], SLOTS, 1)
    assert inputs["input_ids"].tolist() == [[7, 8, 0, 0, 20, 21], [0, 0, 0, 0, 20, 21]]
    assert inputs["slot_index"].tolist() == [[-1, -1, 0, 1, -1, -1], [-1, -1, 0, 1, -1, -1]]
    # The second has no second frame: its slot is masked like the padding.
    assert inputs["attention_mask"].tolist() == [[1] * 6, [0, 0, 1, 0, 1, 1]]


def test_several_slots_of_one_frame_are_masked_together():
    prompt = Prompt([Segment((0, 0, 0, 0, 5), -1, (0, 1, 2, 3, -1))])
    inputs = collate_for_generation([prompt], [torch.ones(1, 5)], SLOTS, 2)
    assert inputs["attention_mask"].tolist() == [[1, 1, 0, 0, 1]]


def test_a_tree_cannot_be_continued(tree):
    with pytest.raises(ConfigError, match="branches cannot be continued"):
        collate_for_generation([tree], [torch.ones(2, 5)], SLOTS, 1)


def test_a_batch_moves_as_a_whole(tree):
    batch = collate([tree], [torch.ones(2, 5)], SLOTS).to("meta")
    assert {tensor.device.type for tensor in batch.as_dict().values()} == {"meta"}
