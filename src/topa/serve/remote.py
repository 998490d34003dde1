"""Answers written by another engine, such as vLLM, that is given embeddings instead of a video.

It runs the LLM that `topa merge` writes; the embeddings of a prompt with its frames are made here
and sent to its completions interface. Options are scored here: an engine does not tell the
probabilities of a prompt that is given as embeddings.
"""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator, Sequence
from io import BytesIO

import httpx2
import openai
import torch
from openai.types import CompletionChoice
from torch import Tensor

from topa.answer import Topa
from topa.data.collate import collate_for_generation
from topa.data.templates import Prompt
from topa.errors import ConfigError, EngineError
from topa.serve.writing import Finish, Flow, Piece, Sampling, Token

KEY_VARIABLE = "TOPA_ENGINE_KEY"
_FINISHES: dict[str | None, Finish] = {"stop": "stop", "length": "length"}


@torch.inference_mode()
def embed_prompt(topa: Topa, prompt: Prompt, features: Tensor) -> Tensor:
    """Return what a plain LLM is given for a prompt and a video, [S, D] on the CPU.

    Args:
        topa: The model, of variant "lora" or "projector".
        prompt: The prompt, without branches.
        features: [n, d] of the video; slots without a frame are left out.
    """
    model = topa.model
    inputs = collate_for_generation(
        [prompt], [features], model.config.num_frames, model.config.slots_per_frame
    )
    inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    shown = inputs.pop("attention_mask")[0].bool()
    return model.embed(**inputs)[0, shown].cpu()


def spell_embeddings(embeds: Tensor) -> str:
    """Return embeddings [S, D] as vLLM takes them: base64 of a file of torch, as bfloat16."""
    buffer = BytesIO()
    torch.save(embeds.bfloat16() if embeds.dtype == torch.float32 else embeds, buffer)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


class RemoteEngine:
    """Writes answers on an engine that runs the merged LLM.

    Args:
        topa: The checkpoint that was merged.
        url: Of its interface, such as http://127.0.0.1:8001/v1; a key is read from
            TOPA_ENGINE_KEY.
        seconds: Longest wait for it.

    Raises:
        ConfigError: The checkpoint carries the paper's adapter, which no other engine has.
    """

    def __init__(self, topa: Topa, url: str, seconds: float):
        if topa.model.config.variant == "adapter":
            raise ConfigError(
                "the paper's adapter is part of the attention, which another engine has not",
                where="engine",
                mend='Take a checkpoint of variant "lora" or "projector", or leave out --engine.',
            )
        self._topa, self._url = topa, url
        key = os.environ.get(KEY_VARIABLE, "none")
        self._client = openai.AsyncOpenAI(base_url=url, api_key=key, timeout=seconds)
        self._model: str | None = None

    async def write(
        self, features: Tensor, prompt: Prompt, samplings: Sequence[Sampling]
    ) -> AsyncIterator[tuple[int, Piece]]:
        """Yield (number of the answer, what was added to it) until all have ended.

        Args:
            features: [n, d] of the video; none of them to mask it.
            prompt: The prompt.
            samplings: How to write each answer; no run of tokens is kept from coming twice.

        Raises:
            EngineError: The engine cannot be reached, or refuses.
        """
        embeds = await asyncio.to_thread(embed_prompt, self._topa, prompt, features)
        spelled = spell_embeddings(embeds)
        outbox: asyncio.Queue[tuple[int, Piece] | EngineError] = asyncio.Queue()

        async def write_one(number: int, sampling: Sampling) -> None:
            try:
                async for piece in self._stream(spelled, sampling):
                    outbox.put_nowait((number, piece))
            except EngineError as error:
                outbox.put_nowait(error)
            except (openai.OpenAIError, httpx2.HTTPError) as error:
                outbox.put_nowait(self._tell(str(error)))

        tasks = [asyncio.create_task(write_one(*each)) for each in enumerate(samplings)]
        left = len(tasks)
        try:
            while left:
                item = await outbox.get()
                if isinstance(item, EngineError):
                    raise item
                yield item
                left -= item[1].finish is not None
        finally:
            for task in tasks:
                task.cancel()

    async def _stream(self, embeds: str, sampling: Sampling) -> AsyncIterator[Piece]:
        if self._model is None:
            self._model = (await self._client.models.list()).data[0].id
        eos = self._topa.builder.eos_id
        stream = await self._client.completions.create(
            model=self._model,
            prompt="",  # the client wants one; the embeddings are the prompt
            stream=True,
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            stop=list(sampling.stop) or None,
            seed=sampling.seed,
            logprobs=sampling.top_logprobs,
            extra_body={
                "prompt_embeds": embeds,
                "stop_token_ids": [] if eos is None else [eos],
                "repetition_penalty": sampling.repetition_penalty,
            },
        )
        flow, text, count = Flow(sampling), "", 0
        async with stream:
            async for chunk in stream:
                for choice in chunk.choices:
                    text += choice.text
                    tokens = _tokens_of(choice)
                    count += len(tokens) or 1  # a chunk is a token, unless it says otherwise
                    added, finish = flow.follow(text, _FINISHES.get(choice.finish_reason))
                    yield Piece(added, tokens, count, finish)
                    if finish is not None:
                        return
        raise self._tell("it ended before the answer did")

    def _tell(self, problem: str) -> EngineError:
        return EngineError(
            f"the engine does not answer as it should ({problem})",
            where=self._url,
            mend="See whether it runs the merged LLM, with --enable-prompt-embeds.",
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


def _tokens_of(choice: CompletionChoice) -> list[Token]:
    told = choice.logprobs
    if told is None or not told.tokens:
        return []
    values = told.token_logprobs or [0.0] * len(told.tokens)
    tops = told.top_logprobs or [{}] * len(told.tokens)
    return [
        Token(text, value, list((top or {}).items()))
        for text, value, top in zip(told.tokens, values, tops, strict=True)
    ]
