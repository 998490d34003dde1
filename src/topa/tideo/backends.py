"""Where Tideos are written: what every backend promises, and any OpenAI-compatible endpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

from topa.errors import ConfigError
from topa.tideo.prompts import Message


@dataclass(frozen=True)
class Call:
    """One request for text.

    Attributes:
        messages: In the chat format.
        schema: JSON schema that the reply is to follow; None for free text.
        max_tokens: Most tokens of the reply.
        temperature: Of sampling.
        name: Same on a repetition of the same request; sent as Idempotency-Key.
        draw: Number for backends that sample by a seed.
    """

    messages: list[Message]
    schema: dict[str, Any] | None = None
    max_tokens: int = 3000
    temperature: float = 1.0
    name: str = ""
    draw: int = 0


@dataclass(frozen=True)
class Completion:
    """What came back.

    Attributes:
        text: The reply.
        prompt_tokens: As the server counts; None if it does not say.
        completion_tokens: Likewise.
        finish: Why it ended: stop, length, ...
    """

    text: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish: str = "stop"


class BusyFault(Exception):
    """This request failed, the same one may well succeed: 429, 5xx, a cut line, a time-out.

    Args:
        kind: Short name for the ledger: `429`, `500`, `timeout`, `connection`, `reply`, `format`.
        detail: What the server said.
        wait: Seconds the server asked to wait.
        congested: Whether fewer requests at once would help.
    """

    def __init__(self, kind: str, detail: str = "", *, wait: float = 0.0, congested: bool = True):
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind, self.detail, self.wait, self.congested = kind, detail, wait, congested


class RejectedFault(Exception):
    """The server will not answer this request (400, 422): the seed fails, the run goes on."""


class RefusedFault(Exception):
    """The server will answer no request like this: wrong key, no such model, no money left."""


class Backend(Protocol):
    """Anything that answers calls.

    Attributes:
        model: Name of the model, part of a journal's keys.
        parallel: Most calls at once that make sense; None for as many as wanted.
    """

    model: str
    parallel: int | None

    async def complete(self, call: Call) -> Completion:
        """Answer a call.

        Raises:
            BusyFault: May be tried again.
            RejectedFault: Only this call failed.
            RefusedFault: All calls would.
        """
        ...

    async def close(self) -> None:
        """Give connections and memory back."""
        ...


@dataclass
class EndpointSettings:
    """An OpenAI-compatible endpoint.

    Attributes:
        model: Name of the model there.
        base_url: Ends in /v1, usually; None for OpenAI's own.
        key_variable: Environment variable with the key.
        timeout: Seconds for one request.
        extra: Further fields of the request body, e.g. `{"top_p": 0.95}`.
    """

    model: str
    base_url: str | None = None
    key_variable: str = "OPENAI_API_KEY"
    timeout: float = 180.0
    extra: dict[str, Any] = field(default_factory=dict)


# Response formats from the strictest to none; an endpoint that refuses one gets the next.
_FORMATS = ("json_schema", "json_object", "none")
_MAX_DETAIL = 300


class EndpointBackend:
    """A chat-completion endpoint, spoken to through the `openai` client.

    The client's own retries are off: every attempt is counted and paced by the run.

    Raises:
        ConfigError: `openai` is not installed, the URL holds a password, or there is no key
            for an endpoint that is not on this machine.
    """

    parallel: int | None = None

    def __init__(self, settings: EndpointSettings):
        try:
            import openai
        except ImportError:
            raise ConfigError(
                "endpoints are spoken to with the openai client, which is not installed",
                where="--base-url",
                mend="Run `pip install -e '.[generate]'`.",
            ) from None
        self._errors = openai
        self.settings, self.model = settings, settings.model
        self._format = 0
        self._proven = -1
        self._length_name = "max_tokens"
        self._temperature = True
        # aiohttp takes a third of the time of the default transport per request.
        self._client = openai.AsyncOpenAI(
            api_key=_find_key(settings),
            base_url=settings.base_url,
            timeout=settings.timeout,
            max_retries=0,
            http_client=openai.DefaultAioHttpClient(timeout=settings.timeout),
        )

    async def complete(self, call: Call) -> Completion:
        """Send one request; see `Backend.complete`."""
        asked = self._format
        body = self.body_of(call)
        headers = {"Idempotency-Key": call.name} if call.name else {}
        errors = self._errors
        try:
            # Not `chat.completions.create`: walking through the schema's types, as it does
            # with every request, takes longer than everything else together.
            raw = await self._client.post(
                "/chat/completions", cast_to=str, body=body, options={"headers": headers}
            )
        except errors.APITimeoutError as error:
            # A refused connection comes as httpx's ConnectTimeout from aiohttp.
            refused = type(error.__cause__).__name__.startswith("Connect")
            kind = "connection" if refused else "timeout"
            raise BusyFault(kind, _first_line(error.__cause__ or error)) from None
        except errors.APIConnectionError as error:
            raise BusyFault("connection", _first_line(error.__cause__ or error)) from None
        except errors.APIStatusError as error:
            raise self._judge(error, asked, body) from None
        except errors.APIError as error:
            raise BusyFault("reply", _first_line(error)) from None
        completion = read_completion(raw)
        if call.schema is not None:
            self._proven = max(self._proven, asked)
        return completion

    def body_of(self, call: Call) -> dict[str, Any]:
        """Return the body of the request for a call."""
        body: dict[str, Any] = {"model": self.model, "messages": call.messages}
        body[self._length_name] = call.max_tokens
        if self._temperature:
            body["temperature"] = call.temperature
        chosen = response_format(call.schema, _FORMATS[self._format])
        if chosen is not None:
            body["response_format"] = chosen
        return {**body, **self.settings.extra}

    def _judge(self, error: Any, asked: int, body: dict[str, Any]) -> Exception:
        """Return what an HTTP status means for this call and for the run."""
        status, detail = error.status_code, _first_line(error)
        detail = detail.replace(self._client.api_key, "[key]")  # some servers repeat it
        if status == 429 and "insufficient_quota" in detail:
            return RefusedFault(f"429: {detail}")
        if status in (408, 409, 425, 429) or status >= 500:
            return BusyFault(str(status), detail, wait=_retry_after(error.response.headers))
        if status in (401, 402, 403, 404, 405):
            return RefusedFault(f"{status}: {detail}")
        if self._adapt(detail, asked, body):
            return BusyFault("format", detail, congested=False)
        return RejectedFault(f"{status}: {detail}")

    def _adapt(self, detail: str, asked: int, body: dict[str, Any]) -> bool:
        """Do without a field of the request that this endpoint does not know; say if one was."""
        # By what this request held, not by what the next one will: many are on their way at once.
        if "max_completion_tokens" in detail and "max_tokens" in body:
            self._length_name = "max_completion_tokens"
            return True
        if "temperature" in detail and "temperature" in body:
            self._temperature = False
            return True
        if "response_format" not in body or asked <= self._proven:
            return False
        self._format = max(self._format, asked + 1)
        return True

    @property
    def format(self) -> str:
        """The response format in use: json_schema, json_object or none."""
        return _FORMATS[self._format]

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


def response_format(schema: dict[str, Any] | None, kind: str) -> dict[str, Any] | None:
    """Return the `response_format` field that asks for a schema, or None."""
    if schema is None or kind == "none":
        return None
    if kind == "json_object":
        return {"type": "json_object"}
    wrapped = {"name": "tideo", "strict": True, "schema": schema}
    return {"type": "json_schema", "json_schema": wrapped}


def read_completion(body: bytes | str | dict[str, Any]) -> Completion:
    """Return the completion in the body of a chat-completion response.

    Raises:
        BusyFault: The body is no such response (cut off, or a proxy's page).
    """
    try:
        value = body if isinstance(body, dict) else json.loads(body)
        choice = value["choices"][0]
        text = choice["message"]["content"]
        usage = value.get("usage") or {}
        prompt, reply = usage.get("prompt_tokens"), usage.get("completion_tokens")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise BusyFault("reply", f"not a chat completion ({type(error).__name__})") from None
    return Completion(
        text or "",
        prompt if isinstance(prompt, int) else None,
        reply if isinstance(reply, int) else None,
        finish=choice.get("finish_reason") or "stop",
    )


def _find_key(settings: EndpointSettings) -> str:
    address = urlsplit(settings.base_url or "")
    if address.username or address.password:
        raise ConfigError(
            "the URL holds a user name or password",
            where="--base-url",
            mend=f"Put the key into the environment variable {settings.key_variable}.",
        )
    key = os.environ.get(settings.key_variable, "")
    if key:
        return key
    if settings.base_url is None or address.scheme == "https":
        raise ConfigError(
            f"the environment variable {settings.key_variable} is not set",
            where=settings.base_url or "OpenAI's endpoint",
            mend="Set it to the endpoint's key, or to any word if it wants none.",
        )
    return "none"  # local servers want some word


def _retry_after(headers: Any) -> float:
    try:
        return max(0.0, min(float(headers.get("retry-after", 0)), 600.0))
    except ValueError:  # a date: the back-off of the run does
        return 0.0


def _first_line(error: object) -> str:
    lines: Sequence[str] = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:_MAX_DETAIL]
