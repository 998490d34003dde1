"""The Python and the shell commands that do what was just done on the page."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from topa.answer import Method

VIDEO = "clip.mp4"
_PORT = 8000


@dataclass(frozen=True)
class Side:
    """How one side of the page answers.

    Attributes:
        checkpoint: The model.
        method: How options are scored; the checkpoint's own if None.
        use_memory: Project image features through the memory.
        blind: Mask the video.
        num_frames: Frames to sample; the model's own number if None.
    """

    checkpoint: str
    method: Method | None = None
    use_memory: bool = True
    blind: bool = False
    num_frames: int | None = None


def write_python(side: Side, question: str | None, options: Sequence[str] | None) -> str:
    """Return Python that asks a question, or describes where there is none."""
    arguments: dict[str, Any] = {}
    if question is not None and options:
        arguments["options"] = list(options)
        if side.method is not None:
            arguments["method"] = side.method
    if not side.use_memory:
        arguments["use_memory"] = False
    if side.blind:
        arguments["blind"] = True
    if side.num_frames is not None:
        arguments["num_frames"] = side.num_frames
    extra = "".join(f", {name}={value!r}" for name, value in arguments.items())
    lines = ["from topa import Topa", "", f"m = Topa.from_pretrained({side.checkpoint!r})"]
    if question is not None:
        lines.append(f"answer = m.ask({VIDEO!r}, {question!r}{extra})")
        lines.append(
            "print(answer.text, answer.probabilities)" if options else "print(answer.text)"
        )
    elif side.blind:
        lines.append("# Described without looking: only the server does that, see the shell tab.")
    else:
        lines.append(f"print(m.describe({VIDEO!r}{extra}))")
    return "\n".join(lines)


def write_shell(
    side: Side, question: str | None, options: Sequence[str] | None, port: int = _PORT
) -> str:
    """Return shell commands that ask the same of `topa serve`."""
    video = {"url": "@"}
    body: dict[str, Any]
    if question is not None and options:
        route = "score"
        body = {
            "video_url": video,
            "questions": [{"question": question, "options": list(options)}],
        }
        if side.method is not None:
            body["method"] = side.method
    else:
        route = "chat/completions"
        content: list[dict[str, Any]] = [{"type": "video_url", "video_url": video}]
        if question is not None:
            content.append({"type": "text", "text": question})
        body = {"messages": [{"role": "user", "content": content}]}
    if not side.use_memory:
        body["use_memory"] = False
    if side.blind:
        body["blind"] = True
    if side.num_frames is not None:
        body["num_frames"] = side.num_frames
    # The video goes through a pipe: arguments of commands are too short for it.
    before, after = json.dumps(body).split('"@"', 1)
    given = "" if side.checkpoint == "embedded" else f" --checkpoint {shlex.quote(side.checkpoint)}"
    given += "" if port == _PORT else f" --port {port}"
    head = shlex.quote(before + '"data:video/mp4;base64,')
    tail = shlex.quote('"' + after)
    return (
        f"topa serve{given}    # in another terminal\n\n"
        f"(printf %s {head}; base64 -w0 {VIDEO}; printf %s {tail}) |\n"
        f"  curl -s http://127.0.0.1:{port}/v1/{route} -H 'Content-Type: application/json' -d @-"
    )


def write_codes(
    sides: Sequence[Side], question: str | None, options: Sequence[str] | None
) -> list[str]:
    """Return the Python and the shell commands of all sides; each has a server of its own."""
    python = [write_python(side, question, options) for side in sides]
    shell = [write_shell(side, question, options, _PORT + i) for i, side in enumerate(sides)]
    return ["\n\n# The second side\n".join(codes) for codes in (python, shell)]
