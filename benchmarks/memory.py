"""Memory projection (Eq. 2) of 10 frames on 1M x 768: topa against the one-shot way.

Run: python benchmarks/memory.py [--rows 1000000] [--dim 768] [--frames 10] [--repeats 5]

Both ways get the same memory and the same frames, in one process, with the same threads. Their
answers are asserted equal before anything is timed. Extra memory is what the process takes
above the memory itself while it projects: the peak of its resident size, read from the system.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable

import psutil
import torch
from torch.nn import functional

from topa.features.memory import Memory
from topa.runs import environment

_BLOCK = 1 << 16


def make_rows(rows: int, dim: int) -> torch.Tensor:
    """Return random unit rows [rows, dim], filled in blocks so that building adds no peak."""
    generator = torch.Generator().manual_seed(0)
    features = torch.empty(rows, dim)
    for block in features.split(_BLOCK):
        block.normal_(generator=generator)
        block /= block.norm(dim=-1, keepdim=True)
    return features


def project_one_shot(features: torch.Tensor, rows: torch.Tensor, tau: float) -> torch.Tensor:
    """Return Eq. 2 as it is written: all scores, their softmax, the mean of all rows."""
    weights = (tau * features @ rows.T).softmax(-1)
    return functional.normalize(weights @ rows, dim=-1)


def extra_memory(job: Callable[[], object]) -> float:
    """Return by how many MB the resident size of this process peaks while `job` runs."""
    process = psutil.Process()
    stop, peak = threading.Event(), [0]
    before = process.memory_info().rss

    def watch() -> None:
        while not stop.is_set():
            peak[0] = max(peak[0], process.memory_info().rss - before)
            time.sleep(0.0005)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        job()
    finally:
        stop.set()
        thread.join()
    return peak[0] / 1e6


def compare_projection(
    rows: int = 1_000_000, dim: int = 768, frames: int = 10, repeats: int = 5
) -> dict[str, float]:
    """Return seconds and extra MB of both ways, and their ratios.

    The two take turns, and the fastest of their repeats counts, so that other work on the
    machine strikes both alike.

    Raises:
        AssertionError: The two ways do not give the same features.
    """
    memory = Memory(make_rows(rows, dim), [""] * rows, "benchmark")
    features = functional.normalize(
        torch.randn(frames, dim, generator=torch.Generator().manual_seed(1)), dim=-1
    )
    ways = {
        "one_shot": lambda: project_one_shot(features, memory.features, memory.temperature),
        "topa": lambda: memory.project(features),
        "read_once": lambda: memory.features.sum(),
    }
    torch.testing.assert_close(ways["topa"](), ways["one_shot"](), atol=1e-4, rtol=0)
    seconds = {name: float("inf") for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    extra = {name: extra_memory(ways[name]) for name in ("topa", "one_shot")}
    return {
        **{f"{name}_seconds": round(value, 4) for name, value in seconds.items()},
        **{f"{name}_extra_mb": round(value, 2) for name, value in extra.items()},
        "times_faster": round(seconds["one_shot"] / seconds["topa"], 2),
        "share_of_extra_memory": round(extra["topa"] / max(extra["one_shot"], 1e-9), 3),
    }


def main() -> None:
    """Run the comparison and print it as JSON with the environment."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--frames", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = vars(parser.parse_args())
    result = {**arguments, **compare_projection(**arguments), "environment": environment()}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
