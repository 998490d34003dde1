"""Benchmarks, each read from files at their original names."""

from __future__ import annotations

from topa.errors import ConfigError
from topa.eval.benchmarks import egoschema, msrvtt, mvbench, nextqa, star, textvid, tvqa, vatex
from topa.eval.benchmarks.catalogue import Benchmark, Item, Split, VideoCaption, name_count
from topa.eval.benchmarks.own import read_own

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "Item",
    "Split",
    "VideoCaption",
    "find_benchmark",
    "name_count",
    "read_own",
]

BENCHMARKS: dict[str, Benchmark] = {
    module.BENCHMARK.name: module.BENCHMARK
    for module in (egoschema, nextqa, star, tvqa, mvbench, msrvtt, vatex, textvid)
}


def find_benchmark(name: str) -> Benchmark:
    """Return a benchmark by name.

    Raises:
        ConfigError: There is none of this name.
    """
    if name not in BENCHMARKS:
        raise ConfigError(
            f"no benchmark is called {name!r}",
            mend=f"Known are {', '.join(BENCHMARKS)}; or name a .jsonl or .csv file of your own.",
        )
    return BENCHMARKS[name]
