"""Answers of another engine: the merged LLM under transformers, over real HTTP, is one."""

from __future__ import annotations

import base64
import io
import json
import socket
from collections.abc import AsyncIterator
from contextlib import contextmanager

import openai
import pytest
import torch
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse

from topa.answer import Topa
from topa.errors import ConfigError
from topa.model.export import export_plain, load_plain
from topa.serve.api import create_app
from topa.serve.remote import RemoteEngine, embed_prompt
from topa.serve.service import Service
from topa.serve.settings import ServeConfig
from topa.train.align import build_model

from .conftest import run_app

QUESTION = "What is it?"


def make_topa(align_config, encoder, make_tiny_llm, variant="lora") -> Topa:
    """A model whose trained parts are not at their silent start."""
    section = align_config.model.model_copy(update={"variant": variant})
    config = align_config.model_copy(update={"model": section})
    model, builder = build_model(config, encoder, make_tiny_llm())
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for _, parameter in model.trainable_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return Topa(model.eval(), builder, encoder, None)


@pytest.fixture
def topa(align_config, encoder, make_tiny_llm) -> Topa:
    return make_topa(align_config, encoder, make_tiny_llm)


@pytest.fixture
def merged(align_config, encoder, make_tiny_llm, tmp_path):
    """The LLM that transformers alone loads from what `topa merge` writes of the same model."""
    twin = make_topa(align_config, encoder, make_tiny_llm)
    export_plain(twin.model, twin.builder.tokenizer, tmp_path)
    return load_plain(tmp_path)[0]


def make_engine(llm, tokenizer) -> FastAPI:
    """What is used of vLLM's completions interface, around an LLM of transformers."""
    app = FastAPI()

    @app.get("/v1/models")
    async def models() -> dict:
        return {"object": "list", "data": [{"id": "merged", "object": "model"}]}

    @app.post("/v1/completions")
    async def completions(request: Request) -> StreamingResponse:
        body = await request.json()
        if body["model"] != "merged" or body["prompt"] != "" or not body["stream"]:
            raise HTTPException(400, "not as an engine is asked")
        content = io.BytesIO(base64.b64decode(body["prompt_embeds"], validate=True))
        embeds = torch.load(content, weights_only=True)
        tokens = llm.generate(
            inputs_embeds=embeds[None].float(),
            attention_mask=torch.ones(1, len(embeds), dtype=torch.long),
            max_new_tokens=body["max_tokens"],
            do_sample=False,
            eos_token_id=body["stop_token_ids"],
            pad_token_id=body["stop_token_ids"][0],
        )[0].tolist()
        ended = tokens[-1] in body["stop_token_ids"]

        async def stream() -> AsyncIterator[str]:
            said = ""
            for place, _ in enumerate(tokens):
                text = tokenizer.decode(tokens[: place + 1], skip_special_tokens=True)
                choice = {"index": 0, "text": text[len(said) :], "finish_reason": None}
                said = text
                if place == len(tokens) - 1:
                    choice["finish_reason"] = "stop" if ended else "length"
                chunk = {"id": "1", "object": "text_completion", "created": 0, "model": "merged"}
                yield f"data: {json.dumps({**chunk, 'choices': [choice]})}\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(stream(), media_type="text/event-stream")

    return app


@contextmanager
def serving(topa: Topa, engine: str):
    service = Service(topa, ServeConfig(engine=f"{engine}/v1"), "tiny")
    with (
        run_app(create_app(service)) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def ask(client, url, **extra):
    parts = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    messages = [{"role": "user", "content": parts}]
    return client.chat.completions.create(model="tiny", messages=messages, **extra)


def test_the_engine_s_answers_are_the_checkpoint_s(topa, merged, url, video):
    prompt = topa.builder.open(QUESTION)
    # What travels is rounded to 16 bits: so it is for the answer that is expected.
    embeds = embed_prompt(topa, prompt, topa.encode(topa.watch(video))).bfloat16().float()
    ids = topa.model.language_model.generate(
        inputs_embeds=embeds[None],
        attention_mask=torch.ones(1, len(embeds), dtype=torch.long),
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=topa.builder.eos_id,
        pad_token_id=topa.builder.eos_id,
    )
    expected = topa.builder.tokenizer.decode(ids[0], skip_special_tokens=True).strip()
    assert expected
    with (
        run_app(make_engine(merged, topa.builder.tokenizer)) as engine,
        serving(topa, engine) as client,
    ):
        answer = ask(client, url, max_tokens=8, n=2)
        assert [choice.message.content for choice in answer.choices] == [expected] * 2
        assert answer.usage.completion_tokens == 2 * len(ids[0])
        pieces = [
            chunk.choices[0].delta.content or ""
            for chunk in ask(client, url, max_tokens=8, stream=True)
        ]
        assert "".join(pieces) == expected
        assert len(pieces) > 3
        with pytest.raises(openai.BadRequestError, match="cannot keep to it"):
            ask(client, url, extra_body={"no_repeat_ngram_size": 3})


@torch.no_grad()
def test_the_merged_llm_gives_the_logits_of_the_checkpoint(topa, merged, video):
    shown = topa.encode(topa.watch(video))
    embeds = embed_prompt(topa, topa.builder.open(QUESTION), shown)
    wanted = topa.model.language_model(inputs_embeds=embeds[None]).logits
    torch.testing.assert_close(merged(inputs_embeds=embeds[None]).logits, wanted)


def test_an_engine_that_is_not_there_is_told(topa, url):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        engine = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with (
            serving(topa, engine) as client,
            pytest.raises(openai.InternalServerError, match="the engine does not answer") as told,
        ):
            ask(client, url)
    assert told.value.status_code == 502


def test_the_paper_s_adapter_goes_to_no_other_engine(align_config, encoder, make_tiny_llm):
    topa = make_topa(align_config, encoder, make_tiny_llm, "adapter")
    with pytest.raises(ConfigError, match="part of the attention"):
        RemoteEngine(topa, "http://127.0.0.1:1/v1", 1.0)
