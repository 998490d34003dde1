"""Prompts, read back from their tokens, are those of the design; labels are their own pieces."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topa.data import templates
from topa.data.templates import Prompt, PromptBuilder, clean_question, list_options
from topa.errors import ConfigError

SLOTS = 3
OPTIONS = ["It jumps", "It sleeps", "It eats", "It sings", "It reads"]


@pytest.fixture(scope="session")
def builder(tokenizer) -> PromptBuilder:
    return PromptBuilder(tokenizer, SLOTS)


def read(builder: PromptBuilder, prompt: Prompt, leaf: int | None = None) -> str:
    """Return the text of the path from the root to a segment, with [v] for a video slot."""
    path, index = [], len(prompt.segments) - 1 if leaf is None else leaf
    while index >= 0:
        path.insert(0, prompt.segments[index])
        index = path[0].parent
    return "".join(show(builder, segment) for segment in path)


def show(builder: PromptBuilder, segment) -> str:
    text, ids = "", []
    for token, slot in zip(segment.ids, segment.slots, strict=True):
        if slot >= 0:
            text, ids = text + builder.tokenizer.decode(ids) + "[v]", []
        else:
            ids.append(token)
    return text + builder.tokenizer.decode(ids)


def label(builder: PromptBuilder, prompt: Prompt) -> list[str]:
    return [show(builder, segment) for segment in prompt.segments if segment.is_label]


def test_the_choice_prompt_is_that_of_the_design(builder):
    prompt = builder.choice("what does the cat do", OPTIONS, 2)
    assert read(builder, prompt) == (
        "Instruction: Choose the correct answer based on the video and question.\n"
        "Video:[v][v][v]\n"
        "Question: What does the cat do?\n"
        "Choices: \n(A) It jumps\n(B) It sleeps\n(C) It eats\n(D) It sings\n(E) It reads\n"
        "Answer: The correct choice is (C)" + builder.tokenizer.eos_token
    )
    assert label(builder, prompt) == [" (C)" + builder.tokenizer.eos_token]


def test_the_caption_prompt_is_that_of_the_design(builder):
    prompt = builder.caption("A cat jumps.")
    assert read(builder, prompt) == (
        "Instruction: Generate a summary for the video.\n"
        "Video:[v][v][v]\n"
        "Description: A cat jumps." + builder.tokenizer.eos_token
    )
    assert label(builder, prompt) == [" A cat jumps." + builder.tokenizer.eos_token]


def test_the_open_prompt_is_that_of_the_design(builder):
    prompt = builder.open("What does the cat do?", "It jumps.")
    assert read(builder, prompt) == (
        "Instruction: Predict the answer based on the video and question.\n"
        "Video:[v][v][v]\n"
        "Question: What does the cat do?\n"
        "Answer: It jumps." + builder.tokenizer.eos_token
    )
    assert label(builder, prompt) == [" It jumps." + builder.tokenizer.eos_token]


def test_the_paper_s_prompt_for_describing(builder):
    prompt = builder.open(templates.DESCRIBE_QUESTION, answer_prefix=templates.DESCRIBE_PREFIX)
    assert read(builder, prompt).endswith(
        "\nQuestion: Can you describe this video?\nAnswer: It is a video of"
    )
    assert label(builder, prompt) == []


def test_likelihood_continues_the_open_prompt_with_each_option(builder):
    prompt = builder.likelihood([("What?", OPTIONS), ("Who?", ["A man", "A dog"])])
    assert [len(branches) for branches in prompt.options] == [5, 2]
    assert prompt.answers == [-1, -1]
    for question, branches, texts in zip(
        ("What?", "Who?"), prompt.options, (OPTIONS, ["A man", "A dog"]), strict=True
    ):
        for branch, text in zip(branches, texts, strict=True):
            learned = builder.open(question, text)
            whole = read(builder, learned).removesuffix(builder.tokenizer.eos_token)
            assert read(builder, prompt, branch) == whole


def test_one_answer_phrase_for_every_dataset(builder):
    """Training and every kind of scoring share the words, and the tokens, before the answer."""
    trained = builder.choice("What?", OPTIONS, 1)
    scored = builder.choice("What?", OPTIONS)
    assert trained.segments[:2] == scored.segments[:2]
    assert read(builder, trained, 1).endswith("\nAnswer: The correct choice is")
    letters = [show(builder, scored.segments[i]) for i in scored.options[0]]
    assert letters == [" (A)", " (B)", " (C)", " (D)", " (E)"]
    two = builder.choice("What?", OPTIONS[:2])
    assert read(builder, two, 1).endswith("\n(B) It sleeps\nAnswer: The correct choice is")
    chosen = trained.segments[2].ids[:-1]  # without the end of text
    assert chosen == scored.segments[scored.options[0][1]].ids


def test_labels_come_from_pieces_not_from_token_search(builder):
    """A text that looks like the place of the answer does not move the label."""
    tricky = "Answer: The correct choice is (B)\nAnswer: what"
    prompt = builder.choice(tricky, ["Answer: (C)", "Answer:"], 0)
    assert label(builder, prompt) == [" (A)" + builder.tokenizer.eos_token]
    opened = builder.open(tricky, "Answer: Video: Description:")
    wanted = " Answer: Video: Description:" + builder.tokenizer.eos_token
    assert label(builder, opened) == [wanted]
    assert opened.segments[-1].is_label
    assert not any(segment.is_label for segment in opened.segments[:-1])


def test_long_prompts_are_not_cut(builder):
    """The official code cuts at 150 tokens, the answer first."""
    question = "what happens " + "and then " * 2000
    options = [f"It is number {i} " + "of many " * 300 for i in range(5)]
    prompt = builder.choice(question, options, 4)
    assert len(prompt) > 5000
    assert label(builder, prompt) == [" (E)" + builder.tokenizer.eos_token]
    text = read(builder, prompt)
    assert text.count("and then") == 2000
    assert text.count("of many") == 1500


def test_slots_are_numbered_in_order(builder):
    [root] = builder.root("Instruction: Look.").segments
    assert root.slots[-SLOTS:] == (0, 1, 2)
    assert root.ids[-SLOTS:] == (0, 0, 0)
    assert set(root.slots[:-SLOTS]) == {-1}


# Characters of the first plane that are in use: byte-level tokenizers miss rare bytes beyond.
TEXT = st.text(
    st.characters(max_codepoint=0xD7FF, exclude_categories=["Cs", "Cc", "Cn", "Co"]), max_size=30
)


@settings(max_examples=60, deadline=None)
@given(TEXT)
def test_a_piece_has_the_same_tokens_wherever_it_stands(builder, text):
    prompt = builder.root(templates.OPEN_INSTRUCTION)
    first = builder.add(prompt, f" {text}", 0)
    second = builder.add(prompt, f" {text}", builder.add(prompt, "\nQuestion: Why?", 0))
    assert prompt.segments[first].ids == prompt.segments[second].ids
    assert builder.tokenizer.decode(prompt.segments[first].ids) == f" {text}"


@pytest.mark.parametrize(
    ("question", "clean"),
    [
        ("what is it", "What is it?"),
        ("  What is it?  ", "What is it?"),
        ("describe it.", "Describe it?"),
        ("is it on TV", "Is it on TV?"),
        ("why: ", "Why?"),
        ("éclair or cake", "Éclair or cake?"),
    ],
)
def test_questions_are_stripped_capitalised_and_asked(question, clean):
    assert clean_question(question) == clean


@given(st.text(min_size=1).filter(str.strip))
def test_cleaning_twice_is_cleaning_once(question):
    once = clean_question(question)
    assert once.endswith("?")
    assert clean_question(once) == once


@pytest.mark.parametrize("question", ["", "   ", "\n"])
def test_an_empty_question_is_refused(question):
    with pytest.raises(ConfigError, match="the question is empty"):
        clean_question(question)


def test_options_are_lettered():
    assert list_options(["one", "two"]) == "(A) one\n(B) two"
    assert list_options([str(i) for i in range(26)]).endswith("(Z) 25")


@pytest.mark.parametrize("count", [0, 1, 27])
def test_too_few_and_too_many_options_are_refused(count, builder):
    texts = [str(i) for i in range(count)]
    for build in (
        lambda: builder.choice("What?", texts),
        lambda: builder.likelihood([("What?", texts)]),
    ):
        with pytest.raises(ConfigError, match=f"{count} options given"):
            build()


def test_an_empty_option_is_refused(builder):
    """It would be scored as the likelihood of nothing."""
    for build in (builder.choice, lambda q, o: builder.likelihood([(q, o)])):
        with pytest.raises(ConfigError, match="option 2 is empty"):
            build("What?", ["a cat", "  "])


def test_a_builder_goes_to_a_spawned_process(builder):
    again = pickle.loads(pickle.dumps(PromptBuilder(builder.tokenizer, 2, "authors-1")))
    assert (again.num_slots, again.is_authors) == (2, True)
    assert pickle.loads(pickle.dumps(builder)).open("why", "so") == builder.open("why", "so")
