"""Questions about videos, as evaluations take them."""

from topa.data.questions import VideoQuestion, from_tideos, read_questions

__all__ = ["VideoQuestion", "from_tideos", "read_questions"]
