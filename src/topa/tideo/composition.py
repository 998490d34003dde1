"""How one seed becomes a Tideo: which calls are made, without making them.

`compose_tideo` is a generator that yields calls and is sent their replies. So the live run, batch
files and a continued run, which answers from its journal first, all follow the same steps.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from topa.runs import digest
from topa.tideo.backends import Call, Completion
from topa.tideo.drafts import DraftError, finish_tideo, parse_draft
from topa.tideo.prompts import (
    Message,
    PromptStyle,
    build_correction,
    build_messages,
    build_story_messages,
)
from topa.tideo.seeds import Seed

Composition = Generator[Call, Completion, tuple[dict[str, Any], list[str]]]
"""Yields calls, is sent their replies, and returns the result with notes on it."""


class Task(Protocol):
    """Anything that a run does for each of its items, which are dataclasses.

    Attributes:
        model: Name of the model that is asked.
    """

    @property
    def model(self) -> str: ...

    def key_of(self, item: Any) -> str:
        """Return the journal's key of an item."""
        ...

    def compose(self, item: Any, key: str) -> Composition:
        """Return the calls that an item takes; its result is what the journal keeps."""
        ...


@dataclass(frozen=True)
class Recipe:
    """What is asked for, and of which model.

    Attributes:
        model: Its name.
        style: The prompts.
        max_tokens: Most tokens of one reply.
        temperature: Of sampling.
        corrections: Corrective turns after a wrong reply.
        fresh: Whether a correction asks again from the beginning, with another draw, instead
            of showing the model its mistake; for models that only repeat it.
    """

    model: str
    style: PromptStyle = field(default_factory=PromptStyle)
    max_tokens: int = 3000
    temperature: float = 1.0
    corrections: int = 1
    fresh: bool = False

    def key_of(self, seed: Seed) -> str:
        """Return the journal's key of a seed: hash(seed, prompt version, model, schema)."""
        return digest(seed.source, seed.text, *self._identity)

    def compose(self, item: Seed, key: str) -> Composition:
        """Return the calls that write a seed's Tideo."""
        return compose_tideo(item, self, key)

    @property
    def _identity(self) -> tuple[str, str, str]:
        # Computed once: a run asks for it with every seed.
        if "_parts" not in self.__dict__:
            schema = json.dumps(self.style.schema, sort_keys=True)
            object.__setattr__(self, "_parts", (self.style.version, self.model, schema))
        parts: tuple[str, str, str] = self.__dict__["_parts"]
        return parts


def compose_tideo(seed: Seed, recipe: Recipe, key: str) -> Composition:
    """Yield the calls that write a seed's Tideo; return its fields and what was left out.

    One call, or two in two-step mode, and after a wrong reply as many corrections as the
    recipe allows.

    Raises:
        DraftError: The last reply is no Tideo either.
    """
    style, step = recipe.style, 0

    def call(messages: list[Message], structured: bool) -> Call:
        return Call(
            messages,
            schema=style.schema if structured else None,
            max_tokens=recipe.max_tokens,
            temperature=recipe.temperature,
            name=f"{key}-{step}",
            draw=int(digest(key, str(step)), 16) % (1 << 31),
        )

    story: str | None = None
    if style.mode == "two":
        reply = yield call(build_story_messages(seed, style), False)
        story, step = reply.text, step + 1
    messages = build_messages(seed, style, story=story)
    asked = messages
    for left in range(recipe.corrections, -1, -1):
        reply = yield call(asked, True)
        step += 1
        try:
            draft = parse_draft(reply.text)
            tideo, notes = finish_tideo(draft, seed=seed, key=key, min_questions=style.questions[0])
            return tideo.model_dump(exclude_none=True), notes
        except DraftError as error:
            if not left:
                raise
            problem = str(error)
            if reply.finish == "length":
                problem = f"the reply was cut off at {recipe.max_tokens} tokens; {problem}"
            if not recipe.fresh:
                asked = build_correction(messages, reply.text, problem[:1000])
    raise AssertionError("the loop returns or raises")


def replay(composition: Composition, replies: Sequence[Completion]) -> Call:
    """Advance a composition through the replies that are there; return the call that is next.

    Raises:
        StopIteration: The Tideo is finished; its value is the result.
        DraftError: The replies came to nothing.
    """
    call = next(composition)
    for reply in replies:
        call = composition.send(reply)
    return call
