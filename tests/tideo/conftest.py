"""The tests' own OpenAI-compatible server, and seeds for it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("openai", reason="needs the extra `generate`")
pytest.importorskip("aiohttp", reason="needs the extra `generate`")
sys.path.insert(0, str(Path(__file__).parent))

from endpoint import Endpoint

from topa.tideo.backends import EndpointBackend, EndpointSettings
from topa.tideo.seeds import Seed


@pytest.fixture
def make_backend() -> Callable[..., EndpointBackend]:
    """Makes a backend of an endpoint of the tests."""

    def make(endpoint: Endpoint, timeout: float = 20.0) -> EndpointBackend:
        return EndpointBackend(EndpointSettings("model", endpoint.url, timeout=timeout))

    return make


@pytest.fixture
def make_seeds() -> Callable[[int], list[Seed]]:
    """Makes so many different seeds."""
    return lambda count: [Seed("webvid", f"clip number {i}") for i in range(count)]
