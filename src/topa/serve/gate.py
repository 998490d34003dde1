"""What stands before every request: keys, room, size, time; and what counts it."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from topa.serve.settings import ApiKeys

if TYPE_CHECKING:
    from topa.serve.service import Service

_BODY_SECONDS = 30.0  # a request that is still being sent is given up after them,
_BODY_RATE = 64 * 1024  # and after one more for each so many bytes that have come
_RETRY_SECONDS = 1


class Gate:
    """Lets requests to `/v1/` in, or says why not, before their body is read.

    Args:
        app: What answers them.
        service: Gives the limits, and counts.
        keys: Keys of which each must bring one.
    """

    def __init__(self, app: ASGIApp, service: Service, keys: ApiKeys):
        self._app, self._service, self._keys = app, service, keys
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), [0]

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                status[0] = message["status"]
            await send(message)

        try:
            await self._let_in(scope, receive, counting, status)
        finally:
            metrics = self._service.metrics
            # Names of strangers are no labels; what was not answered at all is a 500.
            route = getattr(scope.get("route"), "path", "other")
            metrics.requests.labels(route, str(status[0] or 500)).inc()
            metrics.seconds.labels(route).observe(time.monotonic() - started)

    async def _let_in(self, scope: Scope, receive: Receive, send: Send, status: list[int]) -> None:
        if not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        config, metrics = self._service.config, self._service.metrics
        headers = dict(scope["headers"])
        given = headers.get(b"authorization")
        if not self._keys.accept(None if given is None else given.decode("latin-1")):
            await refuse(send, 401, "a valid API key is needed", "authentication_error")
            return
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > config.max_body_bytes:
            await refuse(send, 413, f"a request has at most {config.max_body_bytes} bytes")
            return
        if self._running >= config.max_requests:
            metrics.refused.inc()
            text = f"{config.max_requests} requests are being answered. Try again soon."
            await refuse(send, 429, text, "rate_limit_error")
            return
        self._running += 1
        metrics.running.inc()
        try:
            async with asyncio.timeout(config.request_seconds):
                await self._app(scope, _limited(receive, config.max_body_bytes), send)
        except TimeoutError:
            if status[0] == 0:
                text = f"the request took longer than {config.request_seconds:g} s"
                await refuse(send, 504, text, "timeout_error")
        finally:
            self._running -= 1
            metrics.running.dec()


def _limited(receive: Receive, most: int) -> Receive:
    """Return a way of receiving that ends where a body is too large or too slow."""
    total, more = 0, True
    started = asyncio.get_running_loop().time()

    async def receive_some() -> Message:
        nonlocal total, more
        if not more:  # what follows the body is the end of the connection, whenever it comes
            return await receive()
        try:
            # All of it counts, not the silence alone: a byte now and then keeps no place.
            async with asyncio.timeout_at(started + _BODY_SECONDS + total / _BODY_RATE):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, "the request was sent too slowly") from None
        total += len(message.get("body", b""))
        more = message.get("more_body", False)
        if total > most:
            raise HTTPException(413, f"a request has at most {most} bytes")
        return message

    return receive_some


async def refuse(send: Send, status: int, text: str, kind: str = "invalid_request_error") -> None:
    """Send a problem in OpenAI's form."""
    error = {"message": text, "type": kind, "param": None, "code": None}
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json")]
    if status == 429:
        headers.append((b"retry-after", str(_RETRY_SECONDS).encode()))
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status == 413:
        headers.append((b"connection", b"close"))  # the rest of the body is not read
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
