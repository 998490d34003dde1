"""A server around the tiny LLM, real in every other part, on a port of this machine."""

from __future__ import annotations

import base64
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")

import uvicorn
from fastapi import FastAPI

from topa.answer import Topa
from topa.serve.api import create_app
from topa.serve.service import Service
from topa.serve.settings import ApiKeys, ServeConfig

Serving = Callable[..., AbstractContextManager[str]]


@pytest.fixture(scope="session")
def topa(checkpoint: Path) -> Topa:
    """The untrained checkpoint around the tiny LLM."""
    return Topa.from_pretrained(checkpoint, device="cpu")


def as_url(path: Path) -> str:
    """Return a file as a data address."""
    return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()


@pytest.fixture(scope="session")
def url(video: Path) -> str:
    """The small real video as a data address."""
    return as_url(video)


@contextmanager
def run_app(app: FastAPI) -> Iterator[str]:
    """Run an application in a thread; yield its address."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    config = uvicorn.Config(app, port=port, log_level="warning", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()


@pytest.fixture(scope="session")
def serving(topa: Topa) -> Serving:
    """Runs a server with settings of one's own: `with serving(max_requests=1) as address:`."""

    @contextmanager
    def run(
        keys: tuple[str, ...] = (), fetcher: object = None, **settings: object
    ) -> Iterator[str]:
        service = Service(topa, ServeConfig(**settings), "tiny", fetcher)  # type: ignore[arg-type]
        with run_app(create_app(service, ApiKeys(keys))) as address:
            yield address

    return run


@pytest.fixture(scope="session")
def address(serving: Serving) -> Iterator[str]:
    """The address of a server with the default settings."""
    with serving() as address:
        yield address
