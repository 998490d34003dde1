"""One answer, token by token: stops, lengths, spaces, probabilities."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from topa.serve.writing import Sampling, Writer


def write(tokenizer, text: str, sampling: Sampling, end: bool = False):
    """Write a given text: each row of logits has its largest value at the next token."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if end:
        ids = [*ids, tokenizer.eos_token_id]
    writer = Writer(tokenizer, tokenizer.eos_token_id, [], sampling)
    pieces = []
    for token in ids:
        logits = torch.zeros(len(tokenizer))
        logits[token] = 5.0
        pieces.append(writer.take(logits))
        if pieces[-1].finish:
            break
    return pieces


def test_the_pieces_make_the_text(tokenizer):
    pieces = write(tokenizer, " A cat — «élan» 猫 sits. ", Sampling(99, no_repeat=0), end=True)
    assert "".join(piece.text for piece in pieces) == "A cat — «élan» 猫 sits."
    assert pieces[-1].finish == "stop"
    assert not any("\ufffd" in piece.text for piece in pieces)


def test_length_ends_it(tokenizer):
    pieces = write(tokenizer, "one two three four five six", Sampling(3))
    assert (len(pieces), pieces[-1].finish, pieces[-1].count) == (3, "length", 3)


@pytest.mark.parametrize("stop", ["five", "our f", "e four", " four five"])
def test_a_stop_ends_it_and_is_never_shown(stop, tokenizer):
    text = "one two three four five six"
    pieces = write(tokenizer, text, Sampling(99, stop=("zzz", stop)))
    shown = "".join(piece.text for piece in pieces)
    assert shown == text[: text.index(stop)].rstrip()
    assert pieces[-1].finish == "stop"
    so_far = ""
    for piece in pieces:
        so_far += piece.text
        assert text.startswith(so_far)


def test_the_first_of_several_stops_counts(tokenizer):
    pieces = write(tokenizer, "one two three four", Sampling(99, stop=("three", "two")))
    assert "".join(piece.text for piece in pieces) == "one"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("A cat sits. A dog of 3.5 kg! It ru", "A cat sits. A dog of 3.5 kg!"),
        ("A cat sits. A dog runs.", "A cat sits. A dog runs."),
        ("A cat that never sits", "A cat that never sits"),
    ],
)
def test_a_sentence_that_is_cut_off_is_left_out(text, shown, tokenizer):
    pieces = write(tokenizer, text, Sampling(99, whole_sentences=True), end=True)
    so_far = ""
    for piece in pieces:
        so_far += piece.text
        assert shown.startswith(so_far)
    assert so_far == shown
    assert shown.count(".") == 0 or any(piece.text for piece in pieces[:-1])


def test_no_run_of_tokens_occurs_twice(tokenizer):
    ids = tokenizer("a b c", add_special_tokens=False)["input_ids"]
    writer = Writer(tokenizer, None, [], Sampling(99, no_repeat=2))
    for token in [*ids, *ids]:
        logits = torch.zeros(len(tokenizer))
        logits[token] = 5.0
        writer.take(logits)
    pairs = list(pairwise(writer._ids))
    assert len(set(pairs)) == len(pairs)


def test_probabilities_are_those_of_the_logits(tokenizer):
    writer = Writer(tokenizer, None, [], Sampling(9, top_logprobs=2))
    logits = torch.zeros(len(tokenizer))
    logits[100], logits[200] = 9.0, 8.0
    [token] = writer.take(logits).tokens
    expected = torch.log_softmax(logits, -1)
    assert token.text == tokenizer.decode([100])
    assert token.logprob == pytest.approx(float(expected[100]))
    assert [value for _, value in token.top] == pytest.approx(
        [float(expected[100]), float(expected[200])]
    )
