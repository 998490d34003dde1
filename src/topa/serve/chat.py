"""Conversations in OpenAI's form: messages to a prompt, pieces to responses and streams."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import uuid4

from topa.answer import DESCRIPTION_PENALTY
from topa.data.templates import OPEN_INSTRUCTION, Prompt, PromptBuilder, clean_question
from topa.errors import RequestError, TooLargeError
from topa.serve.schemas import ChatRequest, Message, TextPart, VideoPart
from topa.serve.service import SeenVideo, Service
from topa.serve.writing import Piece, Sampling, Token

DEFAULT_TOKENS = 40
DESCRIPTION_TOKENS = 80


def find_video(messages: Sequence[Message]) -> str:
    """Return the address of the one video of a conversation.

    Raises:
        RequestError: There is none, or more than one.
    """
    urls = [
        part.video_url.url
        for message in messages
        if not isinstance(message.content, str)
        for part in message.content
        if isinstance(part, VideoPart)
    ]
    if not urls:
        raise RequestError(
            "there is no video in the messages",
            where="messages",
            mend="Add a part of type video_url to a user message.",
        )
    if len(set(urls)) > 1:
        raise RequestError("more than one video in the messages", where="messages")
    return urls[0]


def _text_of(message: Message) -> str:
    if isinstance(message.content, str):
        return message.content.strip()
    texts = [part.text.strip() for part in message.content if isinstance(part, TextPart)]
    return "\n".join(text for text in texts if text)


def build_prompt(builder: PromptBuilder, messages: Sequence[Message]) -> Prompt:
    """Return the prompt of a conversation.

    One question is the open prompt of the method, and a video without words the caption
    prompt. What a system message says stands before the instruction; earlier questions and
    answers continue the prompt, which is no task of the pre-alignment.

    Raises:
        RequestError: The last message is not a user's, or a message has no text.
    """
    system = [_text_of(m) for m in messages if m.role in ("system", "developer")]
    turns = [m for m in messages if m.role in ("user", "assistant")]
    if not turns or turns[-1].role != "user":
        raise RequestError("the last message must be a user's", where="messages")
    texts = [_text_of(message) for message in turns]
    if len(turns) == 1 and not texts[0] and not any(system):
        return builder.caption()
    instruction = "\n".join([*(text for text in system if text), OPEN_INSTRUCTION])
    prompt, parent = builder.root(instruction), 0
    carried: list[str] = []
    for number, (message, text) in enumerate(zip(turns, texts, strict=True)):
        last = number == len(turns) - 1
        if message.role == "assistant":
            if text:
                parent = builder.add(prompt, f" {text}", parent)
        elif last or turns[number + 1].role == "assistant":
            asked = "\n".join(filter(None, [*carried, text]))
            carried = []
            if not asked:
                raise RequestError("a message has no text", where="messages")
            line = f"\nQuestion: {clean_question(asked)}\nAnswer:"
            parent = builder.add(prompt, line, parent)
        else:  # several messages of a user, one after the other, are one question
            carried.append(text)
    return prompt


def samplings_of(request: ChatRequest, is_caption: bool, most: int) -> list[Sampling]:
    """Return how each of the n answers is written.

    Raises:
        TooLargeError: More than `most` answers.
    """
    if request.answers > most:
        raise TooLargeError(f"{request.answers} answers asked for, at most {most}", where="n")
    if request.stream_options is not None and not request.stream:
        raise RequestError("there is no stream that it could change", where="stream_options")
    if request.top_logprobs is not None and not request.logprobs:
        raise RequestError("it needs logprobs: true", where="top_logprobs")
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    longest = request.max_completion_tokens or request.max_tokens
    penalty = DESCRIPTION_PENALTY if is_caption else 1.0
    top = (request.top_logprobs or 0) if request.logprobs else None
    return [
        Sampling(
            max_tokens=longest or (DESCRIPTION_TOKENS if is_caption else DEFAULT_TOKENS),
            temperature=request.temperature or 0.0,
            top_p=1.0 if request.top_p is None else request.top_p,
            stop=tuple(stop),
            seed=None if request.seed is None else request.seed + number,
            top_logprobs=top,
            no_repeat=request.no_repeat_ngram_size,
            repetition_penalty=request.repetition_penalty or penalty,
            whole_sentences=is_caption,
        )
        for number in range(request.answers)
    ]


class Conversation:
    """One chat request on its way.

    Args:
        service: Answers it.
        request: The request.
        video: The video of its messages.

    Raises:
        TopaError: It cannot be answered as it is.
    """

    def __init__(self, service: Service, request: ChatRequest, video: SeenVideo):
        if service.remote is not None and "no_repeat_ngram_size" in request.model_fields_set:
            raise RequestError("the engine cannot keep to it", where="no_repeat_ngram_size")
        prompt = build_prompt(service.topa.builder, request.messages)
        is_caption = prompt == service.topa.builder.caption()
        samplings = samplings_of(request, is_caption, service.config.max_answers)
        self._request, self._metrics = request, service.metrics
        self._model = service.name
        self._id, self._created = f"chatcmpl-{uuid4().hex}", int(time.time())
        self._counts = [0] * request.answers
        frames = 0 if request.blind else len(video.times)
        config = service.topa.model.config
        # Slots that carry no frame are masked, and cost nothing.
        self._read = len(prompt) - (config.num_frames - frames) * config.slots_per_frame
        self._pieces = service.write(
            video, prompt, samplings, use_memory=request.use_memory, blind=request.blind
        )

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """Yield the pieces, counted."""
        self._metrics.tokens.labels("read").inc(self._read)
        async for number, piece in self._pieces:
            self._counts[number] = piece.count
            yield number, piece
        self._metrics.tokens.labels("written").inc(sum(self._counts))

    def _usage(self) -> dict[str, int]:
        written = sum(self._counts)
        return {
            "prompt_tokens": self._read,
            "completion_tokens": written,
            "total_tokens": self._read + written,
        }

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }

    async def response(self) -> dict[str, Any]:
        """Return the whole response."""
        texts = [""] * self._request.answers
        tokens: list[list[Token]] = [[] for _ in texts]
        reasons: list[str | None] = [None] * self._request.answers
        async for number, piece in self.pieces():
            texts[number] += piece.text
            tokens[number] += piece.tokens
            reasons[number] = piece.finish
        choices = [
            {
                "index": number,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": self._tell(tokens[number]),
                "finish_reason": reasons[number],
            }
            for number, text in enumerate(texts)
        ]
        return {**self._envelope("chat.completion", choices), "usage": self._usage()}

    async def stream(self) -> AsyncIterator[str]:
        """Yield the response as server-sent events."""
        for number in range(self._request.answers):
            yield self._event([self._change(number, {"role": "assistant", "content": ""})])
        async for number, piece in self.pieces():
            if piece.text or piece.tokens:
                change = {"content": piece.text}
                yield self._event([self._change(number, change, self._tell(piece.tokens))])
            if piece.finish is not None:
                yield self._event([self._change(number, {}, None, piece.finish)])
        options = self._request.stream_options
        if options is not None and options.include_usage:
            yield self._event([], usage=self._usage())
        yield "data: [DONE]\n\n"

    def _change(
        self,
        number: int,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        finish: str | None = None,
    ) -> dict[str, Any]:
        return {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": finish}

    def _event(self, choices: list[dict[str, Any]], **extra: Any) -> str:
        chunk = {**self._envelope("chat.completion.chunk", choices), **extra}
        return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"

    def _tell(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self._request.logprobs:
            return None
        content = [
            {
                **_spell(token.text, token.logprob),
                "top_logprobs": [_spell(text, value) for text, value in token.top],
            }
            for token in tokens
        ]
        return {"content": content, "refusal": None}


def _spell(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
