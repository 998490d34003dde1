"""Writing Tideos on a real local Ray cluster, with a worker killed in the middle."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

ray = pytest.importorskip("ray", reason="needs the extra `scale`")
pytest.importorskip("openai", reason="needs the extra `generate`")
psutil = pytest.importorskip("psutil", reason="finds the worker to kill")

from topa.scale.generation import generate_on_ray  # noqa: E402
from topa.tideo.backends import EndpointSettings  # noqa: E402
from topa.tideo.composition import Recipe  # noqa: E402
from topa.tideo.journal import list_journals, read_rows, read_state  # noqa: E402
from topa.tideo.pace import Pace  # noqa: E402
from topa.tideo.prompts import PromptStyle  # noqa: E402
from topa.tideo.results import read_results  # noqa: E402
from topa.tideo.seeds import Seed  # noqa: E402

SOURCE = Path(__file__).parents[1] / "tideo" / "endpoint.py"
RECIPE = Recipe("model", PromptStyle(examples=0))


def load_endpoint():
    spec = importlib.util.spec_from_file_location("endpoint_for_ray", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Endpoint


@pytest.fixture
def cluster(monkeypatch):
    # Ray's workers are nice to others by default, and starve on a machine that is busy.
    monkeypatch.setenv("RAY_worker_niceness", "0")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def kill_a_worker(killed: list[int]) -> None:
    """Kill -9 the first process of ours that runs the pipeline's worker."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not killed:
        for process in psutil.Process().children(recursive=True):
            try:
                if "MapWorker" in " ".join(process.cmdline()):
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)
                    break
            except psutil.Error:
                continue
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kill", [False, True])
def test_every_seed_once_though_a_worker_is_killed(tmp_path, cluster, kill):
    seeds = [Seed("webvid", f"clip number {i}") for i in range(120)]
    killed: list[int] = []
    with load_endpoint()(delay=0.2) as endpoint:

        def strike() -> None:
            while endpoint.requests < 20:
                time.sleep(0.02)
            kill_a_worker(killed)

        if kill:
            threading.Thread(target=strike, daemon=True).start()
        settings = EndpointSettings("model", endpoint.url, timeout=20)
        pace = Pace(concurrency=8, first_wait=0.01)
        arguments = (seeds, RECIPE, settings, tmp_path, pace)
        status = generate_on_ray(*arguments, workers=2, part=20)
        requests = endpoint.requests
        again = generate_on_ray(*arguments, workers=2, part=20)
    assert bool(killed) == kill
    assert (status.done, status.failed, status.stopped) == (120, 0, None)
    assert (again.done, endpoint.requests) == (120, requests)
    ended = Counter(
        row["key"]
        for path in list_journals(tmp_path)
        for row in read_rows(path)
        if row["t"] == "done"
    )
    assert ended == {RECIPE.key_of(seed): 1 for seed in seeds}
    assert len(list(read_results(tmp_path))) == 120
    ledger = read_state(tmp_path).ledger
    assert ledger.requests >= requests
    assert ledger.unknown <= 4 * len(killed)
