"""topa serve and topa ui: the model for other programs, and on a page."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from topa.cli.terminal import LOADING, CheckpointOption, say

if TYPE_CHECKING:
    from topa.serve.settings import ServeConfig

SettingsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings that override the file's."),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE.yaml", help="Settings; the defaults without it."),
]
HostOption = Annotated[str, typer.Option("--host", help="Address to listen at.")]
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    settings: SettingsArgument = None,
    config: ConfigOption = None,
    host: HostOption = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port.")] = 8000,
    name: Annotated[
        str | None,
        typer.Option("--name", help="What clients call it.  [default: the checkpoint's name]"),
    ] = None,
    domains: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-domain", metavar="HOST", help="Fetch videos from this host; repeat it."
        ),
    ] = None,
    paths: Annotated[
        list[Path] | None,
        typer.Option("--allow-path", metavar="DIR", help="Read videos of this folder; repeat it."),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            "--engine", metavar="URL", help="Let vLLM, with the LLM of topa merge, write answers."
        ),
    ] = None,
    checkpoint: CheckpointOption = "embedded",
) -> None:
    """Answer over HTTP, as OpenAI's interface does.

    Keys of which clients need one are read from TOPA_API_KEYS, parted by commas.

    \b
    topa serve --port 8000 max_requests=32
    curl localhost:8000/v1/models
    topa serve --checkpoint runs/mine/final --engine http://127.0.0.1:8001/v1
    """
    chosen = [f"engine={engine}"] if engine else []
    resolved = _settle([*chosen, *(settings or [])], config, domains, paths)
    with _extra("serve"):
        from topa.serve.run import run_server
    from topa.serve.settings import KEYS_VARIABLE, ApiKeys

    keys = ApiKeys.from_environment()
    _check_port(host, port)
    if not keys and host not in _LOOPBACK:
        say(f"Anyone who reaches {host}:{port} can use this server. Set {KEYS_VARIABLE}.")
    signal.signal(signal.SIGTERM, _end)
    say(LOADING)
    from topa.answer import Topa

    called = name or Path(checkpoint).name or checkpoint
    load = partial(Topa.from_pretrained, checkpoint)
    run_server(load, resolved, keys, name=called, host=host, port=port, say=say)


def ui(
    settings: SettingsArgument = None,
    config: ConfigOption = None,
    host: HostOption = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port.")] = 7860,
    checkpoints: Annotated[
        list[str] | None,
        typer.Option(
            "--checkpoint",
            metavar="embedded|DIR",
            help="A model to choose from; repeat it.  [default: embedded]",
        ),
    ] = None,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")
    ] = True,
) -> None:
    """Open a page to ask about videos.

    \b
    topa ui
    topa ui --checkpoint embedded --checkpoint runs/mine/final
    """
    resolved = _settle(settings, config, None, None)
    with _extra("ui"):
        from topa.serve.page import run_page
    _check_port(host, port)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # it ends as with Ctrl-C
    if host not in _LOOPBACK:
        say(f"Anyone who reaches {host}:{port} can use this page; it has no passwords.")
    say(LOADING)
    run_page(checkpoints or ["embedded"], resolved, host=host, port=port, browser=browser, say=say)


def _settle(
    settings: list[str] | None,
    config: Path | None,
    domains: list[str] | None,
    paths: list[Path] | None,
) -> ServeConfig:
    """Return the settings of the file, the options and the overrides, the last first."""
    import json

    from topa.config import load_config
    from topa.serve.settings import ServeConfig

    overrides = []
    if domains:
        overrides.append(f"allow_domains={json.dumps(domains)}")
    if paths:
        overrides.append(f"allow_paths={json.dumps([str(path) for path in paths])}")
    return load_config(ServeConfig, config, [*overrides, *(settings or [])])


def _end(number: int, frame: FrameType | None) -> None:
    """End the process at SIGTERM: while it loads, or once uvicorn has finished and raises it again.

    Without a handler the first process of a container does not hear SIGTERM. `sys.exit` would wait
    for the thread that loads, which takes minutes the first time.
    """
    os._exit(0)


def _check_port(host: str, port: int) -> None:
    """See that the address can be listened at, before a model is loaded for nothing.

    Raises:
        ConfigError: It cannot.
    """
    from topa.errors import ConfigError

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise ConfigError(
            f"cannot listen there ({error.strerror})",
            where=f"{host}:{port}",
            mend="Name another with --host or --port.",
        ) from None


@contextlib.contextmanager
def _extra(name: str) -> Iterator[None]:
    """Say which extra is missing where an import in the block fails.

    Raises:
        ConfigError: A package of the extra is not installed.
    """
    from topa.errors import ConfigError

    try:
        yield
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] == "topa":
            raise
        raise ConfigError(
            f"the package {error.name} is not installed",
            where=f"topa {'ui' if name == 'ui' else 'serve'}",
            mend=f"Run: pip install -e '.[{name}]'",
        ) from None
