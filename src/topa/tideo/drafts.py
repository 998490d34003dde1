"""What a model is asked to write, and turning what it wrote into a Tideo.

A draft differs from a Tideo in one thing: a question has its right answer apart from the wrong
ones. So the model cannot point at an option that is not there, and the place of the right
option is drawn by chance instead of by the model's habit.
"""

from __future__ import annotations

import json
import random
import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from topa.tideo.schema import Frame, Kind, Question, Text, Tideo, describe_errors
from topa.tideo.seeds import Seed

FRAMES = (5, 15)
QUESTIONS = (3, 6)
OBJECTS = (1, 5)
WRONG = 4
_KINDS = ("temporal", "causal", "descriptive")
# Options that speak of other options must stay in their places.
REFERS = re.compile(
    r"\b(?:(?:all|none|neither|both) of (?:the|these)\b|[A-E] and [A-E]\b|above\b)", re.IGNORECASE
)


class DraftError(ValueError):
    """What a model wrote is no Tideo; the message says why, for the model too."""


class _DraftQuestion(BaseModel):
    model_config = ConfigDict(extra="ignore")

    question: Text
    right: Text
    wrong: list[Text] = Field(min_length=1, max_length=25)
    open_answer: Text | None = None
    kind: Kind | None = None

    @model_validator(mode="before")
    @classmethod
    def _split_options(cls, value: Any) -> Any:
        """Accept the other usual form: options and a letter, a number or a text."""
        if not isinstance(value, dict) or "right" in value or "options" not in value:
            return value
        options = value["options"]
        if isinstance(options, dict):
            options = list(options.values())
        place = _place_of(value.get("answer", value.get("correct")), options)
        rest = {key: part for key, part in value.items() if key not in ("options", "answer")}
        wrong = [*options[:place], *options[place + 1 :]]
        return {**rest, "right": options[place], "wrong": wrong}

    @model_validator(mode="after")
    def _options_differ(self) -> _DraftQuestion:
        texts = [text.casefold() for text in (self.right, *self.wrong)]
        if len(set(texts)) < len(texts):
            raise ValueError("two options are the same")
        return self


def _place_of(answer: Any, options: Any) -> int:
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise ValueError("options must be a list of texts")
    letter = (
        re.fullmatch(r"\(?([A-Za-z])[).]?", answer.strip()) if isinstance(answer, str) else None
    )
    if isinstance(answer, str) and answer in options:
        place = options.index(answer)
    elif letter:
        place = ord(letter[1].upper()) - ord("A")
    elif isinstance(answer, int) and not isinstance(answer, bool):
        place = answer
    else:
        raise ValueError("no answer among the options")
    if not 0 <= place < len(options):
        raise ValueError(f"answer {answer!r} is not one of {len(options)} options")
    return place


def draft_schema(
    frames: tuple[int, int] = FRAMES,
    questions: tuple[int, int] = QUESTIONS,
    objects: tuple[int, int] = OBJECTS,
    *,
    length: int | None = None,
) -> dict[str, Any]:
    """Return the flat JSON schema of a draft: no references, all required, nothing further.

    Args:
        frames: Least and most frames.
        questions: Least and most questions.
        objects: Least and most objects of a frame.
        length: Most characters of a text, for models that do not know when to stop.
    """
    text: dict[str, Any] = {"type": "string"}
    if length is not None:
        # Small models also break out into brackets and line ends.
        text["pattern"] = _plain_text(length)

    def many(item: dict[str, Any], least: int, most: int) -> dict[str, Any]:
        return {"type": "array", "items": item, "minItems": least, "maxItems": most}

    def record(**fields: dict[str, Any]) -> dict[str, Any]:
        names = list(fields)
        return {
            "type": "object",
            "properties": fields,
            "required": names,
            "additionalProperties": False,
        }

    frame = record(caption=text, objects=many(text, *objects))
    question = record(
        kind={"type": "string", "enum": list(_KINDS)},
        question=text,
        right=text,
        wrong=many(text, WRONG, WRONG),
        open_answer=text,
    )
    caption = text if length is None else {**text, "pattern": _plain_text(3 * length)}
    return record(frames=many(frame, *frames), caption=caption, qas=many(question, *questions))


def _plain_text(length: int) -> str:
    return rf"^[A-Za-z0-9][A-Za-z0-9 ,.'-]{{2,{length - 2}}}[A-Za-z0-9.?]$"


def parse_draft(text: str) -> dict[str, Any]:
    """Return the JSON object in a reply, mended where it is cut off or slightly wrong.

    Raises:
        DraftError: There is no JSON object in it.
    """
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        value = _mend(text)
    if isinstance(value, list):
        value = next((item for item in value if isinstance(item, dict)), None)
    if isinstance(value, dict) and "frames" not in value and len(value) == 1:
        value = next(iter(value.values()))  # {"tideo": {...}}
    if not isinstance(value, dict):
        raise DraftError("the reply holds no JSON object")
    return value


def _mend(text: str) -> Any:
    from json_repair import repair_json

    start = text.find("{")
    if start < 0:
        raise DraftError("the reply holds no JSON object")
    try:
        return repair_json(text[start:], return_objects=True, skip_json_loads=True)
    except (RecursionError, ValueError, IndexError) as error:
        raise DraftError(f"the reply is not JSON ({type(error).__name__})") from None


def finish_tideo(
    draft: dict[str, Any], *, seed: Seed, key: str, min_questions: int = QUESTIONS[0]
) -> tuple[Tideo, list[str]]:
    """Check a draft and return its Tideo, with what had to be left out of it.

    A question that is wrong is left out while enough remain; more than five objects of a
    frame are cut to five. Both are named in the list.

    Args:
        draft: As `parse_draft` gives it.
        seed: What it grew from.
        key: Of the seed in this run; names the Tideo and draws the places of right options.
        min_questions: That must remain.

    Raises:
        DraftError: It is no Tideo; says what is wrong, field by field.
    """
    notes: list[str] = []
    frames = draft.get("frames")
    frames = [_cut_objects(frame, i, notes) for i, frame in enumerate(_as_list(frames, "frames"))]
    questions: list[Question] = []
    problems: list[str] = []
    rng = random.Random(key)
    for i, item in enumerate(_as_list(draft.get("qas", draft.get("questions")), "qas")):
        try:
            questions.append(_place_options(_DraftQuestion.model_validate(item), rng))
        except ValidationError as error:
            problems.append(f"qas.{i}: {describe_errors(error)}")
    if len(questions) < min_questions:
        shortage = f"qas: {len(questions)} good questions, {min_questions} needed"
        raise DraftError("; ".join([shortage, *problems]))
    notes += [f"left out {problem}" for problem in problems]
    if len(questions) > QUESTIONS[1]:
        notes.append(f"left out {len(questions) - QUESTIONS[1]} questions beyond {QUESTIONS[1]}")
    try:
        tideo = Tideo(
            id=f"{seed.source}-{key}",
            source=seed.source,
            seed=seed.text,
            frames=frames,
            caption=draft.get("caption", draft.get("global_caption")),  # type: ignore[arg-type]
            qas=questions[: QUESTIONS[1]],
        )
    except ValidationError as error:
        raise DraftError(describe_errors(error)) from None
    return tideo, notes


def _as_list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise DraftError(f"{name}: a list is needed")
    return value


def _cut_objects(frame: Any, number: int, notes: list[str]) -> Any:
    if isinstance(frame, Frame) or not isinstance(frame, dict):
        return frame
    objects = frame.get("objects")
    if isinstance(objects, list) and len(objects) > OBJECTS[1]:
        notes.append(f"left out objects of frame {number} beyond {OBJECTS[1]}")
        objects = objects[: OBJECTS[1]]
    return {"caption": frame.get("caption"), "objects": objects}


def _place_options(item: _DraftQuestion, rng: random.Random) -> Question:
    options = [item.right, *item.wrong]
    place = rng.randrange(len(options))  # drawn always, so that one question moves no other
    rest = item.wrong
    rng.shuffle(rest)
    # "All of these" comes last, wherever the right one is; the others stay as they were drawn.
    drawn = [*rest[:place], item.right, *rest[place:]]
    ordered = sorted(drawn, key=lambda option: bool(REFERS.search(option)))
    return Question(
        question=item.question,
        options=ordered,
        answer=ordered.index(item.right),
        open_answer=item.open_answer,
        kind=item.kind,
    )
