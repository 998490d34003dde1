"""The one prompt builder: text and video slots in, token segments out (DESIGN section 2).

A prompt is a tree of segments. A segment holds the tokens of one piece of text (and, at
the root, the video slots); it sees its ancestors and itself, never its siblings. So a
video is read once however many questions are asked about it, and a question once however
many options it has, in training, scoring and serving alike. A plain prompt is a tree with
one branch.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from topa.errors import ConfigError

TEMPLATE_VERSION = "topa-1"
AUTHORS_VERSION = "authors-1"
CHOICE_INSTRUCTION = "Instruction: Choose the correct answer based on the video and question."
CAPTION_INSTRUCTION = "Instruction: Generate a summary for the video."
OPEN_INSTRUCTION = "Instruction: Predict the answer based on the video and question."
LETTERS = string.ascii_uppercase

# What the authors' code has by number or in other words, by the size of the vocabulary: the token
# after the video (Llama 3's is not a plain newline) and the instruction to describe.
_AUTHORS_NEWLINE = {32000: 13, 128256: 627}
_AUTHORS_CAPTION = {128256: "Instruction: Generate a dense description for the video."}

DESCRIBE_QUESTION = "Can you describe this video?"
DESCRIBE_PREFIX = "It is a video of"


@dataclass(frozen=True)
class Segment:
    """Tokens of one piece of a prompt.

    Attributes:
        ids: Token ids; 0 where a video slot stands.
        parent: Index of the segment it continues, -1 for the root.
        slots: Number of the video slot at each token, -1 where there is none.
        is_label: Whether the model learns (or is scored on) these tokens.
    """

    ids: tuple[int, ...]
    parent: int
    slots: tuple[int, ...]
    is_label: bool = False


@dataclass
class Prompt:
    """A tree of segments in an order where parents come before children.

    Attributes:
        segments: The segments.
        options: For each question with options: the segments of its options.
        answers: For each of those questions: the index of the right option, -1 if unknown.
    """

    segments: list[Segment] = field(default_factory=list)
    options: list[list[int]] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(len(segment.ids) for segment in self.segments)


def clean_question(question: str) -> str:
    """Return the question stripped, capitalised and ending in "?"."""
    question = question.strip()
    if not question:
        raise ConfigError("the question is empty", mend="Give a question with words in it.")
    question = question[0].upper() + question[1:]
    return question if question.endswith("?") else question.rstrip(".!: ") + "?"


def ask_line(question: str) -> str:
    """Return the line `Question: ...`; what stands above such a line already, a dialogue, stays."""
    above, mark, words = question.rpartition("\nQuestion: ")
    return f"{above}{mark or 'Question: '}{clean_question(words)}"


def list_options(options: Sequence[str]) -> str:
    """Return the options as lines `(A) ...`.

    Raises:
        ConfigError: Fewer than 2 or more than 26 options, or an empty one.
    """
    if not 2 <= len(options) <= len(LETTERS):
        raise ConfigError(
            f"{len(options)} options given", mend=f"Give between 2 and {len(LETTERS)} options."
        )
    for number, option in enumerate(options, start=1):
        if not option.strip():
            raise ConfigError(f"option {number} is empty", mend="Give every option some words.")
    return "\n".join(
        f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=False)
    )


class PromptBuilder:
    """Builds prompts for one tokenizer and one number of video slots.

    Text is tokenized piece by piece and each piece in the context of a colon, so that a
    piece has the same tokens whatever comes before it, for byte-level and sentencepiece
    tokenizers alike, and a label is known by its piece, never by searching token ids.

    Args:
        tokenizer: The tokenizer of the LLM.
        num_slots: Video slots in a prompt (frames x slots per frame).
        version: Of the prompts that the model was trained with. With AUTHORS_VERSION the texts
            before and after the video are tokenized each on its own, as the authors' code does,
            so that sentencepiece puts a space before both.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, num_slots: int, version: str = TEMPLATE_VERSION
    ):
        self.tokenizer, self.version = tokenizer, version
        self.is_authors = version == AUTHORS_VERSION
        self.num_slots = num_slots
        self.eos_id: int | None = tokenizer.eos_token_id
        start = tokenizer("", add_special_tokens=True)["input_ids"]
        self.start_ids = tuple(token for token in start if token != self.eos_id)
        self._context = tuple(tokenizer(":", add_special_tokens=False)["input_ids"])
        self.tokenize = lru_cache(maxsize=1 << 16)(self._tokenize)

    def __reduce__(self) -> tuple[Any, ...]:
        # Processes that are spawned get it by pickle, which takes no cache of results.
        return PromptBuilder, (self.tokenizer, self.num_slots, self.version)

    def _tokenize(self, text: str) -> tuple[int, ...]:
        if not text:
            return ()
        ids = tuple(self.tokenizer(":" + text, add_special_tokens=False)["input_ids"])
        if ids[: len(self._context)] != self._context:
            # The text merges with a colon (as in ":)"), so no context can be shared.
            ids = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
            return ids
        return ids[len(self._context) :]

    def _tokenize_alone(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _tokenize_after_video(self, text: str) -> tuple[int, ...]:
        """Return the tokens of the text that follows the slots."""
        if not (self.is_authors and text.startswith("\n")):
            return self.tokenize(text)
        newline = _AUTHORS_NEWLINE.get(len(self.tokenizer), self._tokenize_alone("\n")[-1])
        return (newline, *self._tokenize_alone(text.removeprefix("\n")))

    def root(self, instruction: str) -> Prompt:
        """Start a prompt: the instruction and the video slots."""
        tokenize = self._tokenize_alone if self.is_authors else self.tokenize
        text = self.start_ids + tokenize(f"{instruction}\nVideo:")
        ids = text + (0,) * self.num_slots
        slots = (-1,) * len(text) + tuple(range(self.num_slots))
        return Prompt([Segment(ids, -1, slots)])

    def add(
        self, prompt: Prompt, text: str, parent: int, *, is_label: bool = False, end: bool = False
    ) -> int:
        """Append a segment after `parent` and return its index.

        Args:
            prompt: The prompt to extend.
            text: Its text, with the white space that parts it from the parent.
            parent: The segment it continues.
            is_label: Whether its tokens are learned or scored.
            end: Whether the end-of-text token closes it.
        """
        ids = self._tokenize_after_video(text) if parent == 0 else self.tokenize(text)
        if end and self.eos_id is not None:
            ids += (self.eos_id,)
        prompt.segments.append(Segment(ids, parent, (-1,) * len(ids), is_label))
        return len(prompt.segments) - 1

    def add_question(self, prompt: Prompt, question: str, *, answer_prefix: str = "") -> int:
        """Append the part of the open prompt between the video and the answer."""
        prefix = f" {answer_prefix.strip()}" if answer_prefix.strip() else ""
        text = f"\n{ask_line(question)}\nAnswer:{prefix}"
        return self.add(prompt, text, 0)

    def add_options(
        self, prompt: Prompt, parent: int, texts: Sequence[str], answer: int = -1
    ) -> None:
        """Append one labelled branch per option text under `parent`."""
        list_options(texts)  # refuses too few, too many and empty ones
        branches = [self.add(prompt, f" {text.strip()}", parent, is_label=True) for text in texts]
        prompt.options.append(branches)
        prompt.answers.append(answer)

    def choice(self, question: str, options: Sequence[str], answer: int = -1) -> Prompt:
        """Build the letter-selection prompt; the branches are the letters.

        With a known `answer` (training, paper) only the right letter is a branch.
        """
        prompt = self.root(CHOICE_INSTRUCTION)
        listed = list_options(options)
        text = f"\n{ask_line(question)}\nChoices: \n{listed}\nAnswer: The correct choice is"
        parent = self.add(prompt, text, 0)
        letters = [f"({letter})" for letter in LETTERS[: len(options)]]
        if answer >= 0:
            self.add(prompt, f" {letters[answer]}", parent, is_label=True, end=True)
        else:
            self.add_options(prompt, parent, letters)
        return prompt

    def caption(self, caption: str | None = None) -> Prompt:
        """Build the summary prompt, with the caption as label where it is known."""
        instruction, lines = CAPTION_INSTRUCTION, "\n"
        if self.is_authors:
            instruction = _AUTHORS_CAPTION.get(len(self.tokenizer), instruction)
            lines = "\n\n"  # theirs has an empty line here
        prompt = self.root(instruction)
        parent = self.add(prompt, f"{lines}Description:", 0)
        if caption is not None:
            self.add(prompt, f" {caption.strip()}", parent, is_label=True, end=True)
        return prompt

    def open(self, question: str, answer: str | None = None, *, answer_prefix: str = "") -> Prompt:
        """Build the open-question prompt, with the answer as label where it is known."""
        prompt = self.root(OPEN_INSTRUCTION)
        parent = self.add_question(prompt, question, answer_prefix=answer_prefix)
        if answer is not None:
            self.add(prompt, f" {answer.strip()}", parent, is_label=True, end=True)
        return prompt

    def likelihood(self, questions: Sequence[tuple[str, Sequence[str]]]) -> Prompt:
        """Build one prompt that scores the option texts of several questions on one video."""
        prompt = self.root(OPEN_INSTRUCTION)
        for question, options in questions:
            self.add_options(prompt, self.add_question(prompt, question), options)
        return prompt
