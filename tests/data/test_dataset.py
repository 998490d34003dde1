"""Samples are pure functions of (seed, epoch, index), and each task builds its own prompt."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from topa.data.dataset import TideoDataset, refers_to_others, shuffle_options
from topa.data.templates import PromptBuilder
from topa.errors import ConfigError, DataError
from topa.tideo.schema import Question

FRAMES = 6
PAPER = {"choice": 0.5, "caption": 0.25, "open": 0.25}
ALL = {"choice": 1.0, "caption": 1.0, "open": 1.0, "contrast": 1.0, "recognise": 1.0}


@pytest.fixture(scope="session")
def builder(tokenizer) -> PromptBuilder:
    return PromptBuilder(tokenizer, FRAMES)


@pytest.fixture
def make(tideos, features, builder):
    def make(tasks=ALL, **settings) -> TideoDataset:
        return TideoDataset(
            tideos, features, builder, **{"num_frames": FRAMES, "tasks": tasks, **settings}
        )

    return make


def read(builder, prompt, leaf):
    """Return the text from the root to a segment, without the video slots."""
    path = []
    while leaf >= 0:
        path.insert(0, prompt.segments[leaf])
        leaf = path[0].parent
    ids = [
        token
        for segment in path
        for token, slot in zip(segment.ids, segment.slots, strict=True)
        if slot < 0
    ]
    return builder.tokenizer.decode(ids)


def read_last(builder, prompt):
    text = read(builder, prompt, len(prompt.segments) - 1)
    return text.removesuffix(builder.tokenizer.eos_token)


def same(a, b):
    return a.prompt == b.prompt and a.blind == b.blind and torch.equal(a.features, b.features)


def test_a_sample_depends_on_seed_epoch_and_index_alone(make):
    settings = {"object_dropout": 0.3, "noise": 0.01, "blind": 0.5, "seed": 3}
    one, other = make(**settings), make(**settings)
    one.set_epoch(2)
    wanted = [one[i] for i in range(len(one))]
    for epoch in (0, 5, 2):
        other.set_epoch(epoch)
        found = {i: other[i] for i in reversed(range(len(other)))}
    assert all(same(wanted[i], found[i]) for i in range(len(one)))
    assert same(other[4], other[4])


def test_epochs_and_seeds_draw_differently(make):
    dataset, other = make(seed=0), make(seed=1)
    first = [dataset[i] for i in range(len(dataset))]
    dataset.set_epoch(1)
    assert sum(same(first[i], dataset[i]) for i in range(len(dataset))) < len(dataset) / 2
    assert sum(same(first[i], other[i]) for i in range(len(dataset))) < len(dataset) / 2


def test_the_length_is_that_of_the_prompt(make):
    dataset = make()
    assert [dataset.length(i) for i in range(12)] == [len(dataset[i].prompt) for i in range(12)]


def test_the_paper_s_tasks_are_drawn_as_often_as_in_the_paper(make):
    dataset, drawn = make(PAPER), Counter()
    for epoch in range(60):
        dataset.set_epoch(epoch)
        for i in range(len(dataset)):
            text = read(dataset.builder, dataset[i].prompt, 0)
            drawn[text.split("\n")[0]] += 1
    shares = {line.split(" ")[1]: count / 720 for line, count in drawn.items()}
    # Choose / Generate / Predict; 720 draws: three standard deviations are below 0.06.
    assert shares["Choose"] == pytest.approx(0.5, abs=0.06)
    assert shares["Generate"] == pytest.approx(0.25, abs=0.06)
    assert shares["Predict"] == pytest.approx(0.25, abs=0.06)


# Tasks ------------------------------------------------------------------------------------

CHOICE = re.compile(
    r"Instruction: Choose the correct answer based on the video and question\.\nVideo:\n"
    r"Question: (.*\?)\nChoices: \n((?:\([A-Z]\) .*\n)+)"
    r"Answer: The correct choice is \(([A-Z])\)"
)


def test_choice_asks_for_the_letter_of_the_right_option(make, tideos):
    dataset = make({"choice": 1.0})
    letters = Counter()
    for epoch in range(5):
        dataset.set_epoch(epoch)
        for i, tideo in enumerate(tideos):
            match = CHOICE.fullmatch(read_last(dataset.builder, dataset[i].prompt))
            assert match
            question, listed, letter = match.groups()
            options = dict(re.findall(r"\(([A-Z])\) (.*)\n", listed))
            [source] = [
                qa
                for qa in tideo.qas
                if set(qa.options) == set(options.values())
                and qa.question.casefold() == question.casefold()
            ]
            assert options[letter] == source.options[source.answer]
            letters[letter] += 1
    assert len(letters) == 5  # the answer's letter says nothing


def test_caption_tells_the_global_caption(make, tideos):
    dataset = make({"caption": 1.0})
    for i, tideo in enumerate(tideos):
        assert read_last(dataset.builder, dataset[i].prompt) == (
            f"Instruction: Generate a summary for the video.\nVideo:\nDescription: {tideo.caption}"
        )


def test_open_answers_one_question_in_words(make, tideos):
    dataset = make({"open": 1.0})
    for i, tideo in enumerate(tideos):
        text = read_last(dataset.builder, dataset[i].prompt)
        assert text in {
            "Instruction: Predict the answer based on the video and question.\nVideo:\n"
            f"Question: {qa.question}\nAnswer: {qa.open_answer or qa.options[qa.answer]}"
            for qa in tideo.qas
        }


def test_contrast_asks_all_questions_with_the_right_option_marked(make, tideos):
    dataset = make({"contrast": 1.0})
    for i, tideo in enumerate(tideos):
        prompt = dataset[i].prompt
        assert prompt.answers == [qa.answer for qa in tideo.qas]
        for qa, branches in zip(tideo.qas, prompt.options, strict=True):
            texts = [read(dataset.builder, prompt, branch) for branch in branches]
            head = f"Video:\nQuestion: {qa.question}\nAnswer: "
            assert [text.split(head)[1] for text in texts] == qa.options


def recognised(prompt, builder):
    """Yield (question, options, right option) of a recognise prompt."""
    for branches, answer in zip(prompt.options, prompt.answers, strict=True):
        question = read(builder, prompt, prompt.segments[branches[0]].parent)
        options = [builder.tokenizer.decode(prompt.segments[i].ids)[1:] for i in branches]
        yield question.split("Question: ")[1].split("\n")[0], options, options[answer]


def test_recognise_has_one_right_option(make, tideos):
    """What others show is a wrong answer only if this Tideo does not show it as well."""
    dataset, asked = make({"recognise": 1.0}), set()
    for epoch in range(8):
        dataset.set_epoch(epoch)
        for i, tideo in enumerate(tideos):
            objects = {text.casefold() for frame in tideo.frames for text in frame.objects}
            captions = {frame.caption.casefold() for frame in tideo.frames}
            for question, options, right in recognised(dataset[i].prompt, dataset.builder):
                asked.add(question)
                own = objects if "can be seen" in question else captions
                assert [text for text in options if text.casefold() in own] == [right]
                assert len({text.casefold() for text in options}) == len(options) == 5
                if "first" in question:
                    assert right == tideo.frames[0].caption
                if "at the end" in question:
                    assert right == tideo.frames[-1].caption
    assert len(asked) == 4


def test_recognise_among_tideos_that_show_the_same_is_an_error(tideos, builder, features):
    twins = [tideos[0], tideos[0].model_copy(update={"id": "twin"})]
    encoded = encode_like(twins, features, tideos)
    dataset = TideoDataset(twins, encoded, builder, num_frames=FRAMES, tasks={"recognise": 1.0})
    with pytest.raises(DataError, match="of another Tideo differs"):
        dataset[0]


def encode_like(twins, features, tideos):
    """Return features of copies of the first Tideo."""
    frames = len(tideos[0].frames)
    texts = int(features.text_offsets[frames])
    return replace(
        features,
        texts=features.texts[:texts].repeat(2, 1),
        frames=features.frames[:frames].repeat(2, 1),
        frame_offsets=torch.tensor([0, frames, 2 * frames]),
        text_offsets=torch.cat(
            [features.text_offsets[: frames + 1], features.text_offsets[1 : frames + 1] + texts]
        ),
    )


def test_recognise_needs_other_tideos(tideos, features, builder):
    with pytest.raises(ConfigError, match="recognise"):
        TideoDataset(tideos[:1], features, builder, num_frames=FRAMES, tasks={"recognise": 1.0})


@pytest.mark.parametrize("tasks", [{"chioce": 1.0}, {"choice": 0.0}, {}])
def test_unknown_or_no_tasks_are_refused(tasks, make):
    with pytest.raises(ConfigError, match=r"data\.tasks: .*contrast"):
        make(tasks)


def test_no_tideos_are_refused(features, builder):
    with pytest.raises(ConfigError, match="no Tideos"):
        TideoDataset([], features, builder, num_frames=FRAMES, tasks=PAPER)


# Options ----------------------------------------------------------------------------------


def question_of(*options, answer=0):
    return Question(question="What?", options=list(options), answer=answer)


def test_shuffling_options_keeps_the_stored_tideo_intact(make, tideos):
    """The official code shuffles in place, and the answer's letter goes stale."""
    before = [tideo.model_copy(deep=True) for tideo in tideos]
    dataset = make({"choice": 1.0})
    for epoch in range(3):
        dataset.set_epoch(epoch)
        for i in range(len(dataset)):
            dataset[i]
    assert dataset.tideos == before


def test_the_answer_moves_with_its_option():
    question, seen = question_of("red", "green", "blue", "white", answer=2), set()
    for seed in range(30):
        shuffled = shuffle_options(question, np.random.default_rng(seed))
        assert sorted(shuffled.options) == sorted(question.options)
        assert shuffled.options[shuffled.answer] == "blue"
        seen.add(tuple(shuffled.options))
    assert question.options == ["red", "green", "blue", "white"]
    assert len(seen) > 10


@pytest.mark.parametrize(
    "option",
    [
        "both of them",
        "Both of them",
        "All of the above",
        "none of these",
        "None",
        "neither the cat nor the dog",
        "A and C",
        "B or D",
        "(A) and (B)",
        "The same as (B)",
    ],
)
def test_options_that_refer_to_others_keep_their_order(option):
    assert refers_to_others(option)
    question = question_of("red", "green", "blue", option)
    for seed in range(10):
        assert shuffle_options(question, np.random.default_rng(seed)) == question


@pytest.mark.parametrize(
    "option",
    [
        "He raises his hand",
        "She kicks the ball",
        "a tall wall",
        "Nonetheless it falls",
        "A man and a woman",
        "a cat and a dog",
        "The bothy stands empty",
        "Sand and Cement",
    ],
)
def test_hand_and_ball_do_not_refer_to_other_options(option):
    """The official code searches "and", "all" and "none" within words."""
    assert not refers_to_others(option)


# Features ---------------------------------------------------------------------------------


def test_frames_are_sampled_evenly_and_short_videos_kept_whole(make, features, tideos):
    for most in (3, 6, 15):
        dataset = make(PAPER, num_frames=most)
        for i, tideo in enumerate(tideos):
            count = len(tideo.frames)
            rows = [j * count // most for j in range(most)] if count > most else range(count)
            wanted = features.of(i)[list(rows)]
            torch.testing.assert_close(dataset[i].features, wanted, rtol=0, atol=0)


def test_dropout_leaves_means_of_the_texts_that_stay(make, features):
    """Every feature is the mean of some non-empty part of its frame's texts."""
    dataset = make(PAPER, object_dropout=0.6, num_frames=15)
    for i in range(4):
        first = int(features.frame_offsets[i])
        for row, found in enumerate(dataset[i].features, start=first):
            a, b = features.text_offsets[row : row + 2].tolist()
            texts = features.texts[a:b]
            means = [
                torch.nn.functional.normalize(
                    texts[[k for k in range(len(texts)) if part >> k & 1]].mean(0), dim=0
                )
                for part in range(1, 1 << len(texts))
            ]
            assert max(float(mean @ found) for mean in means) > 1 - 1e-6


def test_noise_has_the_variance_asked_for_and_leaves_unit_vectors(make, features):
    dataset = make(PAPER, noise=1e-4, num_frames=15)
    samples = [dataset[i].features for i in range(12)]
    found = torch.cat(samples)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(len(found)))
    # Noise along the unit vector is lost to the norm: 7 of 8 directions remain.
    variance = (found - features.frames).square().sum(-1).mean() / (8 - 1)
    assert float(variance) == pytest.approx(1e-4, rel=0.2)


def test_only_contrast_samples_are_blind_and_as_often_as_asked(make):
    dataset = make({"contrast": 1.0}, blind=0.3)
    drawn = []
    for epoch in range(25):
        dataset.set_epoch(epoch)
        drawn += [dataset[i].blind for i in range(12)]
    assert np.mean(drawn) == pytest.approx(0.3, abs=0.08)  # 300 draws: three deviations
    others = make({"choice": 1.0, "recognise": 1.0}, blind=1.0)
    assert not any(others[i].blind for i in range(12))
