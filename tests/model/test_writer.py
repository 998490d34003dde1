"""A causal LM as a writer of Tideos: the schema holds, and the embedded one writes some."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("llguidance", reason="needs the extra `generate`")

from topa.model.writer import LanguageWriter
from topa.tideo.backends import Call, RejectedFault
from topa.tideo.composition import Recipe
from topa.tideo.generate import Run
from topa.tideo.prompts import COMPACT
from topa.tideo.results import read_results
from topa.tideo.seeds import Seed

SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"type": "string", "enum": ["temporal", "causal"]},
        "words": {
            "type": "array",
            "items": {"type": "string", "pattern": "^[a-z]{2,6}$"},
            "minItems": 2,
            "maxItems": 3,
        },
    },
    "required": ["kind", "words"],
    "additionalProperties": False,
}


def make_call(draw: int = 1, **fields) -> Call:
    messages = [{"role": "user", "content": "Write."}]
    return Call(messages, **{"schema": SCHEMA, "max_tokens": 100, "draw": draw, **fields})


def test_even_an_untrained_llm_keeps_to_the_schema(tiny_llm):
    writer = LanguageWriter(tiny_llm)
    replies = [writer.write(make_call(draw)) for draw in range(5)]
    for reply in replies:
        value = json.loads(reply.text)
        assert value["kind"] in ("temporal", "causal")
        assert 2 <= len(value["words"]) <= 3
        assert reply.finish == "stop"
        assert reply.completion_tokens <= 100
    assert len({reply.text for reply in replies}) > 1
    assert writer.write(make_call(3)) == replies[3]


def test_a_reply_that_is_too_long_says_so(tiny_llm):
    reply = LanguageWriter(tiny_llm).write(make_call(max_tokens=5))
    assert reply.finish == "length"


def test_a_prompt_without_room_is_rejected(tiny_llm):
    with pytest.raises(RejectedFault, match="too long"):
        LanguageWriter(tiny_llm).write(make_call(max_tokens=10**6))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_embedded_llm_writes_five_valid_tideos(tmp_path, tokenizer):
    subjects = (
        "a woman bakes bread",
        "a dog runs on the beach",
        "a boy paints a fence",
        "a man repairs a bicycle",
        "children play football",
        "a cat sleeps on a sofa",
    )
    seeds = [Seed("webvid", subject) for subject in subjects]
    recipe = Recipe("embedded", COMPACT, 1500, 0.6, corrections=9, fresh=True)
    Run(seeds, recipe, LanguageWriter(), tmp_path).execute()
    assert len(list(read_results(tmp_path))) >= 5
