"""Endpoints as they differ: formats they refuse, fields they do not know, replies without usage."""

from __future__ import annotations

import asyncio
import json

import pytest
from endpoint import Endpoint, make_draft, seed_of

from topa.errors import ConfigError
from topa.tideo.backends import (
    BusyFault,
    Call,
    EndpointBackend,
    EndpointSettings,
    RefusedFault,
    read_completion,
)
from topa.tideo.composition import Recipe
from topa.tideo.generate import Run
from topa.tideo.pace import Pace
from topa.tideo.prompts import PromptStyle

RECIPE = Recipe("model", PromptStyle(examples=0))
PACE = Pace(concurrency=8, first_wait=0.01)


@pytest.mark.parametrize(
    ("formats", "used", "steps"),
    [
        (("json_schema", "json_object"), "json_schema", 0),
        (("json_object",), "json_object", 1),
        ((), "none", 2),
    ],
)
def test_the_strictest_format_that_is_accepted_is_used(
    tmp_path, make_backend, make_seeds, formats, used, steps
):
    with Endpoint(formats=formats) as endpoint:
        backend = make_backend(endpoint)
        status = Run(make_seeds(20), RECIPE, backend, tmp_path, PACE).execute()
    assert status.done == 20
    assert backend.format == used
    # Only requests that were on their way together may have tried in vain.
    assert status.ledger.faults["format"] <= steps * PACE.concurrency
    assert status.ledger.requests == endpoint.requests


class Particular(Endpoint):
    """Refuses what new reasoning models refuse, and does not count tokens."""

    async def answer(self, request, body):
        from aiohttp import web

        if "max_tokens" in body:
            text = "Use 'max_completion_tokens' instead."
            return web.json_response({"error": {"message": text}}, status=400)
        if "temperature" in body:
            text = "Unsupported value: 'temperature'"
            return web.json_response({"error": {"message": text}}, status=400)
        assert body["response_format"]["type"] == "json_schema"
        assert body["reasoning_effort"] == "low"
        text = json.dumps(make_draft(seed_of(body)))
        return web.json_response({"choices": [{"message": {"content": text}}]})


def test_unknown_fields_are_left_out_and_tokens_estimated(tmp_path, make_seeds):
    with Particular() as endpoint:
        settings = EndpointSettings("model", endpoint.url, extra={"reasoning_effort": "low"})
        run = Run(make_seeds(5), RECIPE, EndpointBackend(settings), tmp_path, PACE)
        status = run.execute()
    assert status.done == 5
    assert status.ledger.estimated == 5
    length = len(json.dumps(make_draft("clip number 0")))
    assert status.ledger.completion_tokens == pytest.approx(5 * length / 4, rel=0.1)


@pytest.mark.parametrize(
    "body",
    [
        "",
        "<html>",
        "{}",
        '{"choices": []}',
        '{"choices": [{"message": {"cont',
        "[1]",
        "null",
        '{"choices": [null]}',
        '{"choices": [{}]}',
    ],
)
def test_a_body_that_is_no_completion_may_be_tried_again(body):
    with pytest.raises(BusyFault, match="not a chat completion"):
        read_completion(body)


def test_an_empty_reply_is_a_reply():
    body = {"choices": [{"message": {"content": None}, "finish_reason": "content_filter"}]}
    found = read_completion(json.dumps(body))
    assert (found.text, found.finish, found.prompt_tokens) == ("", "content_filter", None)


def test_a_server_that_is_not_there_may_come_back():
    backend = EndpointBackend(EndpointSettings("m", "http://127.0.0.1:9/v1", timeout=5))

    async def ask() -> None:
        try:
            await backend.complete(Call([{"role": "user", "content": "x"}]))
        finally:
            await backend.close()

    with pytest.raises(BusyFault) as told:
        asyncio.run(ask())
    assert told.value.kind == "connection"


def test_a_key_that_a_server_repeats_is_cut_out(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")

    class Leaking(Endpoint):
        async def answer(self, request, body):
            from aiohttp import web

            text = f"wrong key {request.headers['Authorization']}"
            return web.json_response({"error": {"message": text}}, status=401)

    with Leaking() as endpoint:
        backend = EndpointBackend(EndpointSettings("m", endpoint.url))

        async def ask() -> None:
            try:
                await backend.complete(Call([{"role": "user", "content": "x"}]))
            finally:
                await backend.close()

        with pytest.raises(RefusedFault) as refused:
            asyncio.run(ask())
    assert "sk-secret" not in str(refused.value)
    assert "[key]" in str(refused.value)


def test_a_hosted_service_needs_a_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for url in (None, "https://example.org/v1"):
        with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
            EndpointBackend(EndpointSettings("m", url))
