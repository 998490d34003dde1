"""Questions as samples: the right option stays the right one, wherever it goes."""

from __future__ import annotations

import pytest
import torch

from topa.data.asked import QuestionDataset, question_text
from topa.data.questions import VideoQuestion
from topa.data.sampling import Drawing
from topa.data.templates import PromptBuilder
from topa.errors import ConfigError

OPTIONS = ["a red car", "a blue boat", "a green hat"]


def make(tokenizer, task="choice", **fields):
    question = VideoQuestion(
        **{"qid": "q", "video": "v", "question": "what is it", "options": OPTIONS, "answer": 1}
        | fields
    )
    builder = PromptBuilder(tokenizer, 4)
    return QuestionDataset([question], [torch.eye(9, 8)], builder, Drawing(4, {task: 1.0}))


def test_the_letter_is_that_of_the_right_option(tokenizer):
    dataset, seen = make(tokenizer), set()
    for epoch in range(12):
        dataset.set_epoch(epoch)
        sample = dataset[0]
        asked = tokenizer.decode(sample.prompt.segments[1].ids)
        letter = tokenizer.decode(sample.prompt.segments[2].ids, skip_special_tokens=True).strip()
        assert f"{letter} a blue boat" in asked
        seen.add(letter)
        again = dataset[0]
        assert again.prompt == sample.prompt
        assert torch.equal(again.features, sample.features)
    assert len(seen) == 3


def test_options_that_speak_of_others_stay_in_place(tokenizer):
    dataset = make(tokenizer, options=["a car", "a boat", "both of them"], answer=2)
    for epoch in range(6):
        dataset.set_epoch(epoch)
        assert "(C) both of them" in tokenizer.decode(dataset[0].prompt.segments[1].ids)


def test_frames_are_sampled_as_everywhere(tokenizer):
    """9 rows to 4 frames: floor(j * 9 / 4) = 0, 2, 4, 6."""
    assert torch.equal(make(tokenizer)[0].features, torch.eye(9, 8)[[0, 2, 4, 6]])


def test_subtitles_come_before_the_question(tokenizer):
    dataset = make(tokenizer, "open", subtitles="Hello there.")
    assert question_text(dataset.questions[0]) == "Dialogue: Hello there.\nQuestion: what is it"
    asked = tokenizer.decode(dataset[0].prompt.segments[1].ids)
    assert "\nDialogue: Hello there.\nQuestion: What is it?\nAnswer:" in asked


def test_a_question_without_an_answer_is_refused(tokenizer):
    with pytest.raises(ConfigError, match="1 questions have no answer, the first is q"):
        make(tokenizer, answer=None)


def test_unknown_tasks_are_refused(tokenizer):
    with pytest.raises(ConfigError, match="caption"):
        make(tokenizer, "caption")
