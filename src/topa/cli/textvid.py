"""topa textvid check: whether a file holds Tideos, and what gives their answers away."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from topa.cli.terminal import JsonOption, out, print_error, print_json

if TYPE_CHECKING:
    from topa.tideo.schema import Tideo

BUNDLED = ("textvid", "everyday", "heldout")


def check(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A JSONL file of Tideos, or a bundled set's name.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Check every line of a file of Tideos, and count what is in it.

    Invalid lines are listed with number and reason, and the exit code is 1. Positions of the
    right option, and how often it alone is the longest, tell what can be guessed blind.

    \b
    topa textvid check tideos.jsonl
    """
    from topa.tideo.textvid import load_tideos

    problems: list[tuple[int, str]] = []
    if file in BUNDLED:
        tideos = load_tideos(file)
    else:
        tideos, problems = read_lines(Path(file))
    found = summarise(tideos)
    for number, reason in problems:
        print_error(f"{file}, line {number}: {reason}")
    if as_json:
        invalid = [{"line": number, "reason": reason} for number, reason in problems]
        print_json({"file": file, "valid": len(tideos), "invalid": invalid, **found})
    else:
        _print_summary(found, len(tideos), len(problems))
    if problems:
        raise typer.Exit(1)


def read_lines(path: Path) -> tuple[list[Tideo], list[tuple[int, str]]]:
    """Return the valid Tideos of a JSONL file, and number and reason of every other line.

    Raises:
        DataError: The file is missing or empty.
    """
    from pydantic import ValidationError

    from topa.errors import DataError
    from topa.tideo.schema import Tideo, describe_errors

    if not path.is_file():
        raise DataError("file not found", where=path, mend="Check the path.")
    tideos: list[Tideo] = []
    problems: list[tuple[int, str]] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            tideo = Tideo.model_validate_json(line)
        except ValidationError as error:
            problems.append((number, describe_errors(error)))
            continue
        if tideo.id in seen:
            problems.append((number, f"id {tideo.id!r} is also on line {seen[tideo.id]}"))
            continue
        seen[tideo.id] = number
        tideos.append(tideo)
    if not tideos and not problems:
        raise DataError("no Tideos in the file", where=path)
    return tideos, problems


def summarise(tideos: Sequence[Tideo]) -> dict[str, Any]:
    """Return counts of Tideos, frames and questions, and what the right options have in common."""
    questions = [item for tideo in tideos for item in tideo.qas]
    captions = Counter(tideo.caption.casefold() for tideo in tideos)
    longest = 0
    for item in questions:
        lengths = [len(option) for option in item.options]
        most = max(lengths)
        longest += lengths[item.answer] == most and lengths.count(most) == 1
    return {
        "sources": dict(sorted(Counter(tideo.source for tideo in tideos).items())),
        "frames": sum(len(tideo.frames) for tideo in tideos),
        "questions": len(questions),
        "kinds": dict(sorted(Counter(item.kind or "unknown" for item in questions).items())),
        "answer_positions": dict(sorted(Counter(item.answer for item in questions).items())),
        "right_is_longest": longest / len(questions) if questions else None,
        "chance": (
            sum(1 / len(item.options) for item in questions) / len(questions) if questions else None
        ),
        "duplicate_captions": [
            tideo.id for tideo in tideos if captions[tideo.caption.casefold()] > 1
        ],
    }


def _print_summary(found: dict[str, Any], valid: int, invalid: int) -> None:
    def row(name: str, text: str) -> None:
        out.print(f"{name + ':':<28}{text}", markup=False, soft_wrap=True)

    def shares(counts: dict[Any, int]) -> str:
        return ", ".join(f"{name} {count}" for name, count in counts.items())

    row("Tideos", f"{valid} valid, {invalid} invalid lines")
    if not valid:
        return
    row("sources", shares(found["sources"]))
    row("frames", f"{found['frames']} ({found['frames'] / valid:.1f} per Tideo)")
    row("questions", f"{found['questions']} ({shares(found['kinds'])})")
    letters = {chr(ord("A") + i): count for i, count in found["answer_positions"].items()}
    row("right option", shares(letters))
    row(
        "right option alone longest",
        f"{found['right_is_longest']:.1%} (chance {found['chance']:.1%})",
    )
    twice = found["duplicate_captions"]
    row("captions that occur twice", ", ".join(twice) if twice else "none")
