"""What a model is told when it is to write a Tideo; versioned, and different for every seed.

Asked for the same thing again and again, a model writes the same thing again and again. So each
seed draws a camera, a place, a length, people and kinds of questions of its own, and other
examples out of TextVid-mini.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from topa.runs import digest
from topa.tideo.drafts import FRAMES, OBJECTS, QUESTIONS, draft_schema
from topa.tideo.schema import Source, Tideo
from topa.tideo.seeds import Seed
from topa.tideo.textvid import load_textvid

VERSION = "1"
Message = dict[str, str]

_SYSTEM = """\
You write textual videos: what a camera would see, moment by moment, in plain words.
Write only what is visible: no sounds, no thoughts, no names of persons, no text on screen.
Every frame caption is one sentence about one moment, and stands on its own: it does not say \
"then", "again" or "the same". Things keep their looks from frame to frame. Something happens or \
changes from beginning to end."""

_PLAIN = "You describe short videos, frame by frame, and ask questions about them."

_STYLES: dict[Source, str] = {
    "howto": "The seed is the title of a how-to video. Show the steps, with their materials and"
    " tools, from beginning to result.",
    "ego4d": "The seed is a narration of a first-person video. The camera is on the head of the"
    ' wearer: show hands and what they do, and write "the camera wearer" for that person.',
    "webvid": "The seed is the caption of a short stock clip. Show the place and how the scene"
    " develops.",
    "wordnet": "The seed is a word with its meaning. Invent an everyday video in which it is seen"
    " or done; a video about the thing, not about the word.",
    "topic": "The seed is a topic. Invent a video about it.",
    "unknown": "Invent a video that fits the seed.",
}

_CAMERAS = (
    "a steady camera on a tripod",
    "a hand-held phone",
    "a drone from above",
    "a fixed camera high on a wall",
    "a camera that follows the action",
    "close-ups with a change of view between them",
    "one long shot without a cut",
    "a camera behind a window",
)
_PLACES = (
    "at home",
    "in a workshop",
    "in a street of a large city",
    "in a village",
    "in the countryside",
    "by the water",
    "in a public building",
    "at a shop or market",
    "at a place of sport",
    "at work",
    "in the mountains",
    "in a garden or park",
)
_PEOPLE = (
    "nobody is seen",
    "hands only",
    "one person",
    "two persons",
    "a family of several ages",
    "a small group",
    "a crowd",
    "an animal",
    "a child and an adult",
    "an old person",
)
_MOMENTS = ("in the morning", "at noon", "at dusk", "at night under lamps", "in rain", "in snow")
_FOCUS = (
    "what comes before and after what",
    "why something happens",
    "how many there are, and their colours",
    "where things are",
    "who does what to whom",
    "what is used for what",
    "how something changes from beginning to end",
)

_TASK = """\
Write one textual video as JSON with these fields, in this order:
- "frames": {frames} frames in time order. Each has a "caption" (one sentence) and "objects" \
({objects} short noun phrases: the things in that frame).
- "caption": the whole video in two to four sentences.
- "qas": {questions} questions about the video. Each has "kind" (temporal: about order or time; \
causal: why or how; descriptive: what, who, where, how many), "question", "right" (the right \
answer, a few words), "wrong" (four wrong answers of the same length and kind as the right one, \
plausible to someone who has not seen the video) and "open_answer" (the right answer as a short \
sentence in other words).
The questions need the video: nobody should guess the answer from the question alone. No question \
says "frame" or "caption". Ask at least one temporal question. Write nothing but the JSON."""

_STORY_TASK = """\
Describe one video, shot by shot, in plain text: {frames} shots in time order, one or two \
sentences each, with every thing that is seen. Then, in one line each, note {facts} facts that \
only someone who watched it would know: what came first, why something happened, how many, which \
colour."""

_STRUCTURE_TASK = "Now put exactly this video into JSON, without adding to it.\n\n"
_CORRECTION = (
    "That is not right yet: {problem}.\nWrite the whole JSON again, corrected, and nothing else."
)


@dataclass(frozen=True)
class PromptStyle:
    """How a Tideo is asked for.

    Attributes:
        mode: `one` asks for JSON at once; `two` for a free story first, then for its structure,
            which costs more and keeps more variety.
        examples: Tideos of TextVid-mini shown before, of the same source where it has one.
        frames: Least and most frames asked for.
        questions: Least and most questions asked for.
        objects: Least and most objects of a frame asked for.
        length: Most characters of a text; None leaves it to the model.
        pool: The part of TextVid-mini that examples come from; `everyday` has short ones.
        plain: Say nothing but seeds and examples, for models that instructions confuse.
    """

    mode: Literal["one", "two"] = "one"
    examples: int = 2
    frames: tuple[int, int] = FRAMES
    questions: tuple[int, int] = QUESTIONS
    objects: tuple[int, int] = OBJECTS
    length: int | None = None
    pool: Literal["train", "everyday"] = "train"
    plain: bool = False

    @property
    def version(self) -> str:
        """Names everything that the prompt of a seed depends on; part of a journal's keys."""
        texts = [
            _SYSTEM,
            _PLAIN,
            _TASK,
            _STORY_TASK,
            _STRUCTURE_TASK,
            _CORRECTION,
            *_STYLES.values(),
        ]
        levers = [*_CAMERAS, *_PLACES, *_PEOPLE, *_MOMENTS, *_FOCUS]
        return f"{VERSION}-{self.mode}-{digest(repr(self), *texts, *levers)[:8]}"

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of what is asked for."""
        return draft_schema(self.frames, self.questions, self.objects, length=self.length)


COMPACT = PromptStyle(
    examples=2,
    frames=(5, 5),
    questions=(3, 3),
    objects=(1, 2),
    length=80,
    pool="everyday",
    plain=True,
)
"""What a very small model manages: few frames and questions, short texts, short examples."""


def draw_levers(seed: Seed, style: PromptStyle) -> list[str]:
    """Return what this seed's video is to be like; always the same for the same seed."""
    rng = random.Random(f"levers/{seed.source}/{seed.text}")
    camera, place = rng.choice(_CAMERAS), rng.choice(_PLACES)
    levers = [f"{rng.randint(*style.frames)} frames", f"people: {rng.choice(_PEOPLE)}"]
    if seed.source == "ego4d":
        levers = levers[:1]  # its camera and person are given
    else:
        levers.append(f"camera: {camera}")
    levers.append(f"{place}, {rng.choice(_MOMENTS)}")
    levers.append(f"{rng.randint(*style.questions)} questions")
    levers.append("questions about " + " and ".join(rng.sample(_FOCUS, 2)))
    return levers


def build_messages(seed: Seed, style: PromptStyle, *, story: str | None = None) -> list[Message]:
    """Return the messages that ask for the JSON of a seed's Tideo, in the chat format.

    Args:
        seed: What it is to grow from.
        style: How it is asked for.
        story: What the model answered to `build_story_messages`, in two-step mode.
    """
    messages: list[Message] = [{"role": "system", "content": _PLAIN if style.plain else _SYSTEM}]
    task = _TASK.format(
        frames=_spell(style.frames),
        questions=_spell(style.questions),
        objects=_spell(style.objects),
    )
    for text, draft in _draw_examples(seed, style):
        asked = f"Seed: {text}"
        if len(messages) == 1 and not style.plain:
            asked = f"{asked}\n\n{task}"
        messages.append({"role": "user", "content": asked})
        messages.append({"role": "assistant", "content": draft})
    content = _introduce(seed, style)
    if story is not None:
        content = f"{_STRUCTURE_TASK}{content}\n\nThe video:\n{story}"
    if (len(messages) == 1 and not style.plain) or story is not None:
        content = f"{content}\n\n{task}"
    return [*messages, {"role": "user", "content": content}]


def build_story_messages(seed: Seed, style: PromptStyle) -> list[Message]:
    """Return the messages that ask for a free story, the first of two steps."""
    task = _STORY_TASK.format(frames=_spell(style.frames), facts=style.questions[1])
    content = f"{_introduce(seed, style)}\n\n{task}"
    return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": content}]


def build_correction(messages: Sequence[Message], reply: str, problem: str) -> list[Message]:
    """Return the messages that show a wrong reply to the model and say what is wrong."""
    return [
        *messages,
        {"role": "assistant", "content": reply},
        {"role": "user", "content": _CORRECTION.format(problem=problem)},
    ]


def _introduce(seed: Seed, style: PromptStyle) -> str:
    if style.plain:
        return f"Seed: {seed.text}"
    levers = "; ".join(draw_levers(seed, style))
    return (
        f"Seed: {seed.text}\n{_STYLES[seed.source]}\n"
        f"Make it like this, as far as it fits the seed: {levers}."
    )


def _spell(bounds: tuple[int, int]) -> str:
    return str(bounds[0]) if bounds[0] == bounds[1] else f"{bounds[0]} to {bounds[1]}"


def _draw_examples(seed: Seed, style: PromptStyle) -> list[tuple[str, str]]:
    pool = _pool(seed.source, style.pool)
    rng = random.Random(f"examples/{seed.source}/{seed.text}")
    return rng.sample(pool, min(style.examples, len(pool)))


@cache
def _pool(source: Source, split: Literal["train", "everyday"]) -> list[tuple[str, str]]:
    """Return the seeds and drafts of TextVid-mini's Tideos of a source, or all of them."""
    tideos = load_textvid(split)
    chosen = [tideo for tideo in tideos if tideo.source == source] or tideos
    return [(str(tideo.seed), _show(tideo)) for tideo in chosen]


def _show(tideo: Tideo) -> str:
    """Return a Tideo in the form that is asked for."""
    return json.dumps(
        {
            "frames": [frame.model_dump() for frame in tideo.frames],
            "caption": tideo.caption,
            "qas": [
                {
                    "kind": item.kind,
                    "question": item.question,
                    "right": item.options[item.answer],
                    "wrong": [o for i, o in enumerate(item.options) if i != item.answer],
                    "open_answer": item.open_answer,
                }
                for item in tideo.qas
            ],
        },
        ensure_ascii=False,
    )
