"""An OpenAI-compatible server that misbehaves on purpose, and counts what it did.

Run as a process (`python endpoint.py PORT_FILE`), or within a test (`Endpoint`). What a request
gets is drawn from its seed's text and how often it came, so that every run meets the same faults.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from aiohttp import web
from multidict import CIMultiDict

FAULTS = (
    "429",
    "500",
    "slow",
    "cut",
    "half",
    "cut-json",
    "wrong-json",
    "wrong-schema",
    "duplicate",
)
CONTENT = ("cut-json", "wrong-json", "wrong-schema")
SLOW = 5.0


def make_draft(seed: str) -> dict[str, Any]:
    """Return a draft that fits the seed, as a good model would write it."""
    rng = random.Random(seed)
    things = ["cup", "rope", "wheel", "lamp", "apple", "brush", "kite", "stone", "basket", "drum"]
    colours = ["red", "blue", "green", "white", "black", "yellow"]
    shown = [f"a {rng.choice(colours)} {thing}" for thing in rng.sample(things, 6)]
    return {
        "frames": [
            {"caption": f"A hand holds {thing} for {seed}.", "objects": [thing, "a hand"]}
            for thing in shown
        ],
        "caption": f"In a video about {seed}, a hand holds {', '.join(shown)}.",
        "qas": [
            {
                "kind": "temporal",
                "question": f"What is held {order}?",
                "right": shown[i],
                "wrong": [thing for j, thing in enumerate(shown) if j != i][:4],
                "open_answer": f"It is {shown[i]}.",
            }
            for i, order in enumerate(("first", "second", "third", "fourth"))
        ],
    }


def seed_of(body: dict[str, Any]) -> str:
    """Return the seed's text: the last one that the messages name."""
    texts = [message["content"] for message in body["messages"] if message["role"] == "user"]
    return [found for text in texts for found in re.findall(r"^Seed: (.*)$", text, re.M)][-1]


class Endpoint:
    """A server on a port of its own.

    Args:
        faults: Share of requests that meet a fault, or a function (seed, times) -> fault or None.
        formats: Response formats it accepts.
        reply: Function of the body -> text of the reply.
    """

    def __init__(
        self,
        faults: float | Callable[[str, int], str | None] = 0.0,
        *,
        formats: tuple[str, ...] = ("json_schema", "json_object"),
        reply: Callable[[dict[str, Any]], str] | None = None,
        delay: float = 0.0,
        slow: float = SLOW,
    ):
        self.faults, self.formats, self.delay, self.slow = faults, formats, delay, slow
        self.reply = reply or (lambda body: json.dumps(make_draft(seed_of(body))))
        self.requests = 0
        self.outcomes: Counter[str] = Counter()
        self.whole: Counter[str] = Counter()  # good replies by seed
        self.tokens = [0, 0]
        self.times: Counter[str] = Counter()
        self.spoilt: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[CIMultiDict[str]] = []
        self.keep = 0  # bodies to keep
        self.active = self.most_active = 0

    def fault_of(self, seed: str, times: int) -> str | None:
        if callable(self.faults):
            return self.faults(seed, times)
        rng = random.Random(f"{seed}/{times}")
        fault = rng.choice(FAULTS) if rng.random() < self.faults else None
        if fault in CONTENT and self.spoilt[seed]:
            return None  # a second one would be a seed that cannot be recovered
        self.spoilt[seed] += fault in CONTENT
        return fault

    async def handle(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        self.requests += 1
        self.active += 1
        self.most_active = max(self.most_active, self.active)
        try:
            return await self.answer(request, json.loads(raw))
        finally:
            self.active -= 1

    async def answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if len(self.bodies) < self.keep:
            self.bodies.append(body)
            self.headers.append(request.headers.copy())
        asked = body.get("response_format", {}).get("type")
        if asked is not None and asked not in self.formats:
            self.outcomes["400"] += 1
            return web.json_response({"error": {"message": f"{asked} unknown"}}, status=400)
        seed = seed_of(body)
        self.times[seed] += 1
        fault = self.fault_of(seed, self.times[seed])
        if self.delay:
            await asyncio.sleep(self.delay)
        if fault == "429":
            self.outcomes["429"] += 1
            return web.json_response(
                {"error": {"message": "slow down"}}, status=429, headers={"Retry-After": "0.01"}
            )
        if fault in ("500", "503", "401", "404", "422"):
            self.outcomes[fault] += 1
            return web.json_response({"error": {"message": "no"}}, status=int(fault))
        if fault == "slow":
            self.outcomes["slow"] += 1
            await asyncio.sleep(self.slow)
        text = self.reply(body)
        if fault == "cut-json":
            text = text[: len(text) // 5]
        elif fault == "duplicate":
            text = json.dumps(make_draft("the same as ever"))
        elif fault == "wrong-json":
            text = "Sure! Here is your video."
        elif fault == "wrong-schema":
            text = json.dumps({"frames": [{"caption": "x"}], "qas": "none"})
        usage = [len(str(body["messages"])) // 4, len(text) // 4]
        data = json.dumps(
            {
                "object": "chat.completion",
                "model": body["model"],
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": "stop",
                        "message": {"role": "assistant", "content": text},
                    }
                ],
                "usage": {
                    "prompt_tokens": usage[0],
                    "completion_tokens": usage[1],
                    "total_tokens": sum(usage),
                },
            }
        ).encode()
        if fault == "cut":
            self.outcomes["cut"] += 1
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if fault == "half":
            self.outcomes["half"] += 1
            response = web.StreamResponse(headers={"Content-Length": str(len(data))})
            await response.prepare(request)
            await response.write(data[: len(data) // 2])
            assert request.transport is not None
            request.transport.close()
            return response
        if fault == "slow":
            return web.Response(body=data, content_type="application/json")
        self.outcomes["answered"] += 1
        self.tokens[0] += usage[0]
        self.tokens[1] += usage[1]
        if fault in (None, "duplicate"):
            self.whole[seed] += 1
        return web.Response(body=data, content_type="application/json")

    async def count(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                "requests": self.requests,
                "outcomes": self.outcomes,
                "whole": self.whole,
                "tokens": self.tokens,
            }
        )

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/v1/chat/completions", self.handle)
        app.router.add_get("/count", self.count)
        return app

    def __enter__(self) -> Endpoint:
        """Serve from a thread."""
        started = threading.Event()
        self._loop = asyncio.new_event_loop()

        async def start() -> None:
            self._runner = web.AppRunner(self.app(), access_log=None)
            await self._runner.setup()
            site = web.TCPSite(self._runner, "127.0.0.1", 0)
            await site.start()
            self.port = self._runner.addresses[0][1]
            started.set()

        def serve() -> None:
            self._loop.run_until_complete(start())
            self._loop.run_forever()

        self._thread = threading.Thread(target=serve, daemon=True)
        self._thread.start()
        assert started.wait(20)
        return self

    def __exit__(self, *error: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


async def main(port_file: str, faults: float, delay: float) -> None:
    """Serve until killed, with the port in a file."""
    endpoint = Endpoint(faults, delay=delay, slow=0.5)
    runner = web.AppRunner(endpoint.app(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    with open(port_file, "w") as file:
        file.write(str(runner.addresses[0][1]))
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3])))
