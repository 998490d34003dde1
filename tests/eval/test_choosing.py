"""Choosing: what each method compares, and a parser that never guesses."""

from __future__ import annotations

from typing import Any

import pytest

from topa.eval.choosing import choose, measures_of, parse_choice, resolve_method
from topa.eval.names import EVAL_METHODS

OPTIONS = ["A cat", "A dog", "Nothing"]


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("(B)", 1),
        (" (B) A dog", 1),
        ("B", 1),
        ("B.", 1),
        ("B) because", 1),
        ("C\nand more", 2),
        ("a dog.", 1),
        ("A cat", 0),  # the words of the first option, not its letter
        ("(D)", None),
        ("D", None),
        ("", None),
        ("A", 0),
        ("A large bird", None),
        ("perhaps (B)", None),
        ("cat or dog", None),
        ("b", None),
        ("(A", None),
    ],
)
def test_only_an_answer_without_doubt_is_one(text, option):
    assert parse_choice(text, OPTIONS) == option


def test_equal_options_are_not_told_apart_by_words():
    assert parse_choice("yes", ["Yes", "yes", "No"]) is None


MEASURES: dict[str, Any] = {
    "likelihood": [-1.0, -2.0, -1.5],
    "blind_likelihood": [-0.5, -3.0, -1.5],
    "tokens": [10, 1, 3],
    "letters": [-3.0, -2.0, -1.0],
    "blind_letters": [-1.0, -2.0, -3.0],
    "similarity": [0.1, 0.9, 0.2],
    "generation": "(C)",
    "blind_generation": "who knows",
}


@pytest.mark.parametrize(
    ("method", "blind", "option"),
    [
        ("likelihood-normalised", False, 0),  # -1 is the largest mean
        ("likelihood-raw", False, 1),  # sums: -10, -2, -4.5
        ("likelihood-pmi", False, 1),  # differences: -0.5, +1, 0
        ("likelihood-pmi", True, 0),  # blind: the plain likelihood
        ("likelihood-raw", True, 1),  # sums: -5, -3, -4.5
        ("selection", False, 2),
        ("selection", True, 0),
        ("similarity", False, 1),
        ("combined", False, 1),
        ("generation", False, 2),
    ],
)
def test_each_method_compares_what_it_says(method, blind, option):
    found, probabilities, reason = choose(method, MEASURES, OPTIONS, blind)
    assert (found, reason) == (option, None)
    if method != "generation":
        assert sum(probabilities or []) == pytest.approx(1)


def test_no_option_has_a_reason():
    found, _, reason = choose("generation", MEASURES, OPTIONS, blind=True)
    assert found is None
    assert reason == "no option in the answer 'who knows'"
    broken = {**MEASURES, "letters": [float("nan"), 0.0, 0.0]}
    assert choose("selection", broken, OPTIONS)[0] is None


@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("blind", [False, True])
@pytest.mark.parametrize("method", [m for m in EVAL_METHODS if m != "likelihood"])
def test_what_is_measured_is_enough_and_a_blind_run_never_looks(method, blind, context):
    if method == "similarity" and blind:
        return  # refused by Evaluation
    wanted = measures_of(method, blind, context)
    measures = {name: MEASURES[name] for name in wanted}
    assert choose(method, measures, OPTIONS, blind)[2] in (
        None,
        "no option in the answer 'who knows'",
    )
    if context and not blind:
        choose(method, measures, OPTIONS, blind=True)
        choose("similarity", measures, OPTIONS)
    if blind:
        assert not wanted & {"likelihood", "letters", "generation", "similarity"}


def test_likelihood_means_what_the_checkpoint_says():
    assert resolve_method("likelihood", True) == "likelihood-pmi"
    assert resolve_method("likelihood", False) == "likelihood-normalised"
    assert resolve_method("selection", True) == "selection"
