"""Prompts that are too long: cut at the video side or left out, never at the answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from topa.data.templates import Prompt

OnOverlong = Literal["cut", "drop"]


def fit_prompt(
    prompt: Prompt, most: int | None, num_frames: int, slots_per_frame: int, overlong: OnOverlong
) -> tuple[Prompt | None, int]:
    """Return a prompt of at most `most` tokens and how many frames its slots hold.

    The rule: `drop` leaves a longer prompt out; `cut` takes away as few frames as make it fit,
    and leaves it out where its text alone is too long. Text, and the answer above all, is
    never cut: truncation on the right is how the authors' code loses answers.

    Args:
        prompt: A prompt whose root ends with num_frames * slots_per_frame slots.
        most: Most tokens; no limit if None.
        num_frames: T.
        slots_per_frame: Slots of each frame.
        overlong: The rule.

    Returns:
        None and 0 where the prompt is left out.
    """
    excess = 0 if most is None else len(prompt) - most
    if excess <= 0:
        return prompt, num_frames
    frames = num_frames - -(-excess // slots_per_frame)
    if overlong == "drop" or frames < 1:
        return None, 0
    root = prompt.segments[0]
    end = len(root.ids) - (num_frames - frames) * slots_per_frame
    shorter = replace(root, ids=root.ids[:end], slots=root.slots[:end])
    return Prompt([shorter, *prompt.segments[1:]], prompt.options, prompt.answers), frames
