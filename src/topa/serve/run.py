"""Running the server until it is told to stop."""

from __future__ import annotations

from collections.abc import Callable

import uvicorn

from topa.answer import Topa
from topa.serve.api import create_app
from topa.serve.engine import start_thread
from topa.serve.service import Service
from topa.serve.settings import ApiKeys, ServeConfig


def run_server(
    load: Callable[[], Topa],
    config: ServeConfig,
    keys: ApiKeys,
    *,
    name: str,
    host: str,
    port: int,
    say: Callable[[str], None],
) -> None:
    """Answer over HTTP until SIGINT or SIGTERM; what was begun is finished first.

    Args:
        load: Returns the model with encoder and memory.
        config: The settings.
        keys: Keys of which each request to `/v1/` must bring one.
        name: What clients call the model.
        host: Address to listen at.
        port: Port to listen at.
        say: Told the address once the model is loaded.
    """
    thread = start_thread()
    topa = thread.submit(load).result()
    say(f"Serving {name!r} at http://{host}:{port}/v1 (Ctrl-C to stop).")
    uvicorn.run(
        create_app(Service(topa, config, name, thread=thread), keys),
        host=host,
        port=port,
        access_log=False,  # /metrics counts
        timeout_graceful_shutdown=int(config.request_seconds) + 1,
        h11_max_incomplete_event_size=64 * 1024,
        ws="none",
    )
