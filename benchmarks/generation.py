"""Throughput and memory of the generation pipeline, against a local server that answers at once.

The server is a process of its own; no language model takes part. Run:
`python benchmarks/generation.py --seeds 2000`
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from topa.runs import environment
from topa.tideo.backends import EndpointBackend, EndpointSettings
from topa.tideo.composition import Recipe
from topa.tideo.generate import Run
from topa.tideo.pace import Pace
from topa.tideo.prompts import PromptStyle
from topa.tideo.seeds import Seed
from topa.tideo.status import RunStatus

SERVER = Path(__file__).parents[1] / "tests" / "tideo" / "endpoint.py"


def main() -> None:
    """Print Tideos per second, CPU time per Tideo, and memory along the way, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--examples", type=int, default=0)
    options = parser.parse_args()
    seeds = [Seed("webvid", f"clip number {i}") for i in range(options.seeds)]
    recipe = Recipe("model", PromptStyle(examples=options.examples))
    resident: list[tuple[int, int]] = []
    me = psutil.Process()

    def watch(status: RunStatus) -> None:
        resident.append((status.done, me.memory_info().rss >> 20))

    with tempfile.TemporaryDirectory() as folder:
        port_file = Path(folder) / "port"
        server = subprocess.Popen([sys.executable, str(SERVER), str(port_file), "0", "0"])
        try:
            while not (port_file.is_file() and port_file.read_text()):
                time.sleep(0.05)
            url = f"http://127.0.0.1:{port_file.read_text()}/v1"
            backend = EndpointBackend(EndpointSettings("model", url))
            begun, used = time.perf_counter(), time.process_time()
            run = Run(seeds, recipe, backend, folder, Pace(concurrency=options.concurrency))
            status = run.execute(watch)
            wall, used = time.perf_counter() - begun, time.process_time() - used
        finally:
            server.kill()
            server.wait()
    tenth = len(resident) // 10
    print(
        json.dumps(
            {
                "seeds": options.seeds,
                "done": status.done,
                "per_second": status.done / wall,
                "client_cpu_ms_per_tideo": 1000 * used / status.done,
                "rss_mb_after_a_tenth": resident[tenth],
                "rss_mb_at_the_end": resident[-1],
                "rss_mb_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
                "load_average": os.getloadavg()[0],
                "environment": environment(),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
