"""The one family of errors that topa raises on purpose.

Every message says what is wrong, where, and how to mend it, in one line. The
command line prints that line and exits with 2 for wrong use and 1 for a failed job.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any


class TopaError(Exception):
    """A problem that the user can understand and mend.

    Args:
        what: What is wrong, as a sentence without a full stop.
        where: The file, line, field or module at fault.
        mend: What the user can do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | Path | None = None, mend: str | None = None):
        self.what, self.where, self.mend = what, where, mend
        super().__init__(what, where, mend)

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where is not None else ""
        advice = f". {self.mend}" if self.mend else ""
        return f"{place}{self.what}{advice}"

    def __reduce__(self) -> tuple[Any, ...]:
        # By default pickle passes all parts by position; worker processes send errors by pickle.
        return partial(type(self), where=self.where, mend=self.mend), (self.what,)


class ConfigError(TopaError):
    """A setting, option or argument that cannot be used as given."""

    exit_code = 2


class DataError(TopaError):
    """A Tideo, question or feature file that does not hold what it should."""


class VideoError(TopaError):
    """A video that cannot be read, or holds no frames.

    Args:
        reached: How many seconds of it could be decoded, where that is known.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str | Path | None = None,
        mend: str | None = None,
        reached: float | None = None,
    ):
        super().__init__(what, where=where, mend=mend)
        self.reached = reached

    def __reduce__(self) -> tuple[Any, ...]:
        parts: dict[str, Any] = {"where": self.where, "mend": self.mend, "reached": self.reached}
        return partial(type(self), **parts), (self.what,)


class WeightsError(TopaError):
    """Weights of a third-party package that are missing or not the known ones."""


class CheckpointError(TopaError):
    """A checkpoint that does not fit the model or the code that loads it."""


class FingerprintError(TopaError):
    """Features, memory or checkpoint made with another encoder or LLM."""


class RequestError(TopaError):
    """A request to the server that cannot be answered as it is.

    Attributes:
        status: The HTTP status that tells so.
    """

    status = 400


class ForbiddenError(RequestError):
    """A request for something that the server's settings do not allow."""

    status = 403


class TooLargeError(RequestError):
    """A request, or what it names, beyond a limit of the server."""

    status = 413


class TimeLimitError(RequestError):
    """A request that took longer than the server gives it."""

    status = 504


class EngineError(RequestError):
    """Another engine, which the server asks, does not answer as it should."""

    status = 502
