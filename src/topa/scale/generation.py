"""Writing Tideos on a Ray cluster: the same run, in many workers, against many endpoints.

The seeds are cut into parts. Each part is a run of its own with its own journal, so a worker that
dies costs what was on its way: Ray gives the part to another worker, which goes on from the
journal. The folder of the run has to be one that all workers see.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from topa.errors import ConfigError
from topa.runs import digest
from topa.tideo.backends import EndpointBackend, EndpointSettings
from topa.tideo.composition import Recipe
from topa.tideo.generate import Run
from topa.tideo.journal import Journal, read_state
from topa.tideo.pace import Pace
from topa.tideo.seeds import Seed
from topa.tideo.status import RunStatus

PART = 256
_LOCK_WAIT = 120.0  # seconds for the journal of a worker that is being ended


class _Worker:
    """Writes the Tideos of one part after another."""

    def __init__(
        self,
        recipe: Recipe,
        endpoints: list[EndpointSettings],
        out: str,
        pace: Pace,
        retry_failed: bool,
    ):
        self.recipe, self.endpoints, self.out = recipe, endpoints, out
        self.pace, self.retry_failed = pace, retry_failed

    def __call__(self, part: dict[str, Any]) -> dict[str, Any]:
        """Run one part, and return how it went."""
        name = str(part["name"])
        seeds = [Seed(source, text) for source, text in part["seeds"]]
        _await_journal(Path(self.out) / "journal" / name)
        # The same part always goes to the same endpoint; parts are spread evenly.
        endpoint = self.endpoints[int(digest(name), 16) % len(self.endpoints)]
        pace = self.pace
        if pace.budget is not None:
            pace = replace(pace, budget=float(part["budget"]))
        run = Run(
            seeds,
            self.recipe,
            EndpointBackend(endpoint),
            self.out,
            pace,
            journal=name,
            retry_failed=self.retry_failed,
        )
        status = run.execute()
        return {
            "name": name,
            "total": status.total,
            "done": status.done,
            "failed": status.failed,
            "stopped": status.stopped or "",
        }


def generate_on_ray(
    seeds: Sequence[Seed],
    recipe: Recipe,
    endpoint: EndpointSettings | Sequence[EndpointSettings],
    out: str | Path,
    pace: Pace,
    *,
    workers: int = 2,
    part: int = PART,
    progress: Callable[[RunStatus], None] | None = None,
    retry_failed: bool = False,
) -> RunStatus:
    """Write Tideos for seeds with Ray Data; see `topa.tideo.generate.Run`.

    Joins the cluster that Ray finds (`RAY_ADDRESS`, or one started on this machine), else
    starts one here. Concurrency and rates are shared out among the workers, the budget among
    the parts by their number of seeds, so that none of them is exceeded together.

    Args:
        seeds: All different.
        recipe: What is asked for.
        endpoint: Who is asked; several are used evenly.
        out: Folder that all workers see.
        pace: Of the whole run.
        workers: At once.
        part: Seeds of one part.
        progress: Called after each part.
        retry_failed: As of `Run`.

    Raises:
        ConfigError: Ray is not installed.
    """
    ray = _import_ray()
    endpoints = [endpoint] if isinstance(endpoint, EndpointSettings) else list(endpoint)
    if recipe.model == "embedded" or recipe.model.startswith("vllm:"):
        raise ConfigError(
            "the ray engine speaks to endpoints",
            where="--engine",
            mend="Serve the model (`vllm serve`), and give --base-url.",
        )
    out = Path(out).resolve()
    parts = list(_cut(seeds, recipe, part, pace.budget))
    shared = _share(pace, workers)
    status = RunStatus(len(seeds))
    with _cluster(ray):
        rows = ray.data.from_items(parts, override_num_blocks=len(parts)).map(
            _Worker,
            fn_constructor_args=(recipe, endpoints, str(out), shared, retry_failed),
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(parts))),
            num_cpus=0.5,
        )
        for row in rows.iter_rows():
            status.done += row["done"]
            status.failed += row["failed"]
            status.stopped = status.stopped or row["stopped"] or None
            if progress is not None:
                progress(status)
    status.ledger = read_state(out).ledger
    return status


def _cut(
    seeds: Sequence[Seed], recipe: Recipe, size: int, budget: float | None
) -> Iterator[dict[str, Any]]:
    """Yield parts; a part's name depends on its seeds alone, so that a later run finds it."""
    for start in range(0, len(seeds), size):
        chosen = seeds[start : start + size]
        name = digest(*(recipe.key_of(seed) for seed in chosen))
        yield {
            "name": f"part-{name}.jsonl",
            "seeds": [(seed.source, seed.text) for seed in chosen],
            "budget": 0.0 if budget is None else budget * len(chosen) / len(seeds),
        }


def _share(pace: Pace, workers: int) -> Pace:
    def divide(rate: float | None) -> float | None:
        return None if rate is None else rate / workers

    return replace(
        pace,
        concurrency=max(1, pace.concurrency // workers),
        requests_per_minute=divide(pace.requests_per_minute),
        tokens_per_minute=divide(pace.tokens_per_minute),
    )


def _await_journal(path: Path) -> None:
    """Wait until nobody else writes a part: a worker that Ray gave up may still be ending.

    Raises:
        ConfigError: It is still being written after two minutes.
    """
    deadline = time.monotonic() + _LOCK_WAIT
    while True:
        try:
            Journal(path).close()
            return
        except ConfigError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _import_ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError:
        raise ConfigError(
            "Ray is not installed", where="--engine", mend="Run `pip install -e '.[scale]'`."
        ) from None
    return ray


@contextlib.contextmanager
def _cluster(ray: Any) -> Iterator[None]:
    """Use the cluster that this process is part of, or join or start one for the while."""
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(address="auto", logging_level="warning", log_to_driver=False)
    except ConnectionError:
        ray.init(logging_level="warning", log_to_driver=False, include_dashboard=False)
    try:
        yield
    finally:
        ray.shutdown()
