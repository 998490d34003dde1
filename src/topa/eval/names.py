"""Names of methods and ablations, apart so that the command line knows them without torch."""

from __future__ import annotations

from typing import Literal, get_args

EvalMethod = Literal[
    "likelihood",
    "likelihood-raw",
    "likelihood-normalised",
    "likelihood-pmi",
    "selection",
    "similarity",
    "combined",
    "generation",
]
EVAL_METHODS: tuple[EvalMethod, ...] = get_args(EvalMethod)

AblationName = Literal[
    "frames", "projection", "blind", "tasks", "scoring", "memory-size", "data-size"
]
