"""Messages: what is wrong, where, how to mend it, in one line."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from topa import errors
from topa.errors import ConfigError, DataError, TopaError

FAMILY = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, TopaError) and kind is not TopaError
]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (TopaError("no frames"), "no frames"),
        (TopaError("no frames", where=Path("a.mp4")), "a.mp4: no frames"),
        (TopaError("no frames", mend="Cut it again."), "no frames. Cut it again."),
        (
            DataError("no frames", where="a.mp4", mend="Cut it again."),
            "a.mp4: no frames. Cut it again.",
        ),
    ],
)
def test_message(error, message):
    assert str(error) == message


def test_wrong_use_exits_with_2_and_a_failed_job_with_1():
    assert {kind: kind.exit_code for kind in FAMILY if kind.exit_code != 1} == {ConfigError: 2}


@pytest.mark.parametrize("kind", FAMILY, ids=lambda kind: kind.__name__)
def test_all_are_caught_as_one_family(kind):
    with pytest.raises(TopaError, match="here: it broke"):
        raise kind("it broke", where="here")


def test_the_parts_stay_apart_for_programs():
    error = DataError("no frames", where="a.mp4", mend="Cut it again.")
    assert (error.what, error.where, error.mend) == ("no frames", "a.mp4", "Cut it again.")


@pytest.mark.parametrize("kind", [TopaError, *FAMILY], ids=lambda kind: kind.__name__)
def test_an_error_survives_the_way_from_a_worker_process(kind):
    for error in (kind("no frames", where=Path("a.mp4"), mend="Cut it again."), kind("it broke")):
        found = pickle.loads(pickle.dumps(error))
        assert type(found) is kind
        assert vars(found) == vars(error)
        assert str(found) == str(error)


def test_where_and_mend_are_given_by_name():
    with pytest.raises(TypeError, match="positional"):
        TopaError("no frames", "a.mp4")  # type: ignore[misc]
