"""Which moments of a video are looked at: the default, the paper's way, and those of benchmarks."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Literal, get_args

from topa.errors import ConfigError

__all__ = ["RULES", "Rule", "sample_times", "segment_middles"]

Rule = Literal["middle", "paper", "linspace", "vlmevalkit", "mvbench"]
RULES: tuple[Rule, ...] = get_args(Rule)


def segment_middles(num_frames: int, start: Fraction, end: Fraction) -> list[Fraction]:
    """Return the middle of each of `num_frames` equal segments of [start, end], exactly."""
    return [start + (end - start) * (2 * j + 1) / (2 * num_frames) for j in range(num_frames)]


def sample_times(
    rule: str,
    num_frames: int,
    start: Fraction,
    end: Fraction,
    rate: Fraction,
    fps: Fraction | None = None,
) -> list[Fraction]:
    """Return the times in seconds, ascending, at which frames are looked at.

    - `middle`: the middles of equal segments.
    - `paper`: floor(j*n/T) over n features at one frame a second (TOPA, section 3.3).
    - `linspace`: frames round-down(linspace(0, N-1)), as lmms-eval does.
    - `vlmevalkit`: frames floor(j*N/(T+1)), j = 1..T, as VLMEvalKit does.
    - `mvbench`: frames floor(L/2T + round(j*L/T)) of L = N-1, as MVBench's own code does.

    The last three count frames of the average rate, as the benchmarks do; N is that of
    [start, end].

    Args:
        rule: One of RULES; not used with `fps`.
        num_frames: Number of frames (T).
        start: Seconds after the first frame.
        end: Seconds after the first frame, later than `start`.
        rate: Average frames per second.
        fps: Look at so many frames a second, at start + k/fps, instead.

    Raises:
        ConfigError: There is no such rule.
    """
    length = end - start
    if fps is not None:
        return [start + k / fps for k in range(max(1, math.ceil(length * fps)))]
    if rule == "middle":
        return segment_middles(num_frames, start, end)
    if rule == "paper":
        seconds = max(1, math.ceil(length))
        if seconds <= num_frames:
            return [start + k for k in range(seconds)]
        return [start + j * seconds // num_frames for j in range(num_frames)]
    count = max(1, round(length * rate))
    if rule == "linspace":
        gaps = max(1, num_frames - 1)
        places = [j * (count - 1) // gaps for j in range(num_frames)]
    elif rule == "vlmevalkit":
        places = [j * count // (num_frames + 1) for j in range(1, num_frames + 1)]
    elif rule == "mvbench":
        segment = Fraction(count - 1, num_frames)
        places = [math.floor(segment / 2 + round(segment * j)) for j in range(num_frames)]
    else:
        raise ConfigError(f"unknown rule {rule!r}", where="rule", mend=f"Use one of {RULES}.")
    # The middle of a frame's time on screen is safely within it, however pts are rounded.
    return [start + (min(place, count - 1) + Fraction(1, 2)) / rate for place in places]
