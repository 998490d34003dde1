"""One video in the demonstration: its frames, what the memory takes them for, the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from rich.table import Table
from rich.text import Text

from topa.answer import ExplainedFrame, Topa
from topa.data.templates import list_options
from topa.demo.narration import Narrator
from topa.features.samples import (
    SAMPLE_OPEN_ANSWER,
    SAMPLE_OPEN_QUESTION,
    SAMPLE_QUESTIONS,
    write_sample_video,
)
from topa.features.video import Clip
from topa.runs import atomic_path

THUMBNAIL = (320, 240)
NEAREST = 3


@dataclass(frozen=True)
class Asked:
    """A question with options.

    Attributes:
        question: The question.
        options: The options.
        answer: Index of the right one; None where nobody knows it.
    """

    question: str
    options: Sequence[str]
    answer: int | None = None


# Of a video that nobody has described, only what can be asked of any video.
GENERAL_QUESTIONS = (
    Asked(
        "Where does the video take place?",
        (
            "Inside a building",
            "Outdoors in nature",
            "On a street or among buildings",
            "On or under water",
            "In the air or in space",
        ),
    ),
    Asked(
        "What is the main subject of the video?",
        ("A person", "An animal", "A vehicle", "Food or drink", "A landscape or a building"),
    ),
    Asked(
        "What kind of video is it?",
        (
            "Instructions for making or doing something",
            "Sports or games",
            "Animals or nature",
            "Everyday life at home",
            "A journey or a place",
        ),
    ),
)
GENERAL_OPEN_QUESTION = "What is happening in the video?"


@dataclass
class Watched:
    """A video, its sampled frames, and what to ask about it.

    Attributes:
        path: The file.
        clip: Its sampled frames.
        frames: For each: time in seconds, thumbnail (relative to the report), the nearest
            captions of the memory and their weights.
        questions: Questions with options.
        open_question: A question without.
        open_reference: A right answer to it, if known.
        shots: What is really shown, in time order, if known.
    """

    path: Path
    clip: Clip
    frames: list[dict[str, Any]]
    questions: Sequence[Asked] = GENERAL_QUESTIONS
    open_question: str = GENERAL_OPEN_QUESTION
    open_reference: str | None = None
    shots: list[str] = field(default_factory=list)

    @classmethod
    def take(cls, topa: Topa, video: Path | None, out: Path, narrator: Narrator) -> Watched:
        """Read the video of the user, or make the built-in one, and explain its frames.

        Raises:
            VideoError: The video cannot be read.
            DataError: The photographs of the built-in video are not installed.
        """
        known: dict[str, Any] = {}
        if video is None:
            video = out / "sample.mp4"
            known = {
                "shots": write_sample_video(video),
                "questions": [Asked(q.question, q.options, q.answer) for q in SAMPLE_QUESTIONS],
                "open_question": SAMPLE_OPEN_QUESTION,
                "open_reference": SAMPLE_OPEN_ANSWER,
            }
            narrator.say(f"  Made a video of {len(known['shots'])} shots from photographs.")
        clip = topa.watch(video)
        length = "" if clip.duration is None else f", {clip.duration:.1f} seconds long"
        narrator.say(f"  {video}{length}: {len(clip.images)} frames sampled.")
        narrator.say(f"  Paths of thumbnails start at {out}.")
        explained = topa.explain(clip, k=NEAREST)
        frames = write_frames(explained, out)
        narrator.console.print(tabulate_frames(frames))
        return cls(video, clip, frames, **known)

    def summary(self) -> dict[str, Any]:
        """Return what the report says about the file."""
        return {"file": str(self.path), "duration": self.clip.duration, "shots": self.shots}


def write_frames(explained: Sequence[ExplainedFrame], out: Path) -> list[dict[str, Any]]:
    """Write a JPEG thumbnail of each frame under out/frames, and return the frames for JSON."""
    folder = out / "frames"
    rows: list[dict[str, Any]] = []
    for number, frame in enumerate(explained, start=1):
        path = folder / f"frame-{number:02d}.jpg"
        thumbnail = frame.image.convert("RGB")
        thumbnail.thumbnail(THUMBNAIL, Image.Resampling.LANCZOS)
        with atomic_path(path) as temporary:
            thumbnail.save(temporary, "JPEG", quality=85)
        rows.append(
            {
                "time": round(frame.time, 3),
                "image": path.relative_to(out).as_posix(),
                "captions": frame.captions,
                "weights": [round(weight, 4) for weight in frame.weights],
            }
        )
    written = {out / row["image"] for row in rows}
    for stale in set(folder.glob("frame-*.jpg")) - written:  # of a longer video shown before
        stale.unlink()
    return rows


def tabulate_frames(frames: Sequence[dict[str, Any]]) -> Table:
    """Return a terminal table of frames and the memory captions nearest to them."""
    table = Table("Time", "Thumbnail", "Weight", "Nearest captions in the memory")
    table.columns[0].justify = table.columns[2].justify = "right"
    for frame in frames:
        first = [f"{frame['time']:.1f} s", frame["image"]]
        pairs = list(zip(frame["weights"], frame["captions"], strict=True))
        for row, (weight, caption) in enumerate(pairs):
            head = first if row == 0 else ["", ""]
            end = row == len(pairs) - 1
            table.add_row(*head, spell_share(weight), Text(caption), end_section=end)
    return table


def spell_share(share: float) -> str:
    """Return a share in percent; a small one is not called nothing."""
    return "<1%" if 0 < share < 0.005 else f"{share:.0%}"


def answer_questions(topa: Topa, watched: Watched, narrator: Narrator) -> dict[str, Any]:
    """Describe the video and answer its questions; say which answers are right and wrong.

    Returns:
        `description`, `answers` (one for each question with options) and `open`.
    """
    features = topa.encode(watched.clip)
    description = topa.generate([topa.builder.caption()], [features], 80)[0]
    narrator.say(f"  Description: {description}")
    choices = [(asked.question, asked.options) for asked in watched.questions]
    scores = topa.score([choices], [features])[0]
    answers = []
    for asked, score in zip(watched.questions, scores, strict=True):
        chosen = int(score.argmax())
        answers.append(
            {
                "question": asked.question,
                "options": list(asked.options),
                "probabilities": [round(p, 4) for p in score.softmax(-1).tolist()],
                "chosen": chosen,
                "answer": asked.answer,
                "right": None if asked.answer is None else chosen == asked.answer,
            }
        )
        narrator.console.print(spell_answer(answers[-1]))
    prompt = topa.builder.open(watched.open_question)
    text = topa.generate([prompt], [features], 40)[0]
    narrator.say(f"\n  {watched.open_question}\n    {text}")
    if watched.open_reference is not None:
        narrator.say(f"    (really: {watched.open_reference})")
    return {
        "description": description,
        "answers": answers,
        "open": {
            "question": watched.open_question,
            "text": text,
            "reference": watched.open_reference,
        },
    }


def spell_answer(answer: dict[str, Any]) -> Text:
    """Return a question, the probability of each option, and whether the chosen one is right."""
    text = Text(f"\n  {answer['question']}")
    listed = list_options(answer["options"]).splitlines()
    for i, (option, share) in enumerate(zip(listed, answer["probabilities"], strict=True)):
        chosen = i == answer["chosen"]
        marks = ["chosen"] if chosen else []
        if answer["right"] is not None and chosen:
            marks.append("right" if answer["right"] else "WRONG")
        elif i == answer["answer"]:
            marks.append("this is right")
        mark = f"  <- {', '.join(marks)}" if marks else ""
        text.append(f"\n    {spell_share(share):>4} {option}{mark}", "bold" if chosen else "")
    return text
