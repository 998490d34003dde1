"""What a linear layer takes for few rows: PyTorch's, topa's, and one reading of the weight.

    python benchmarks/few_rows.py [--rows 1 2 4 8 16 64]

topa's is given as it is after loading an LLM, and as it is once packed for answering.

Weights are of the sizes of the embedded LLM's; between two uses of one, 200 MB of others are used,
so that none lies in a cache. Microseconds, medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from topa.linear import pack, speed_inference

SIZES = ((576, 576), (1536, 576), (576, 1536), (49152, 576))
CACHES = 200e6


def median_of(ways: Sequence[Callable[[], Tensor]]) -> float:
    """Return the median microseconds of a call, going round the ways three times or more."""
    taken = []
    for way in [*ways] * max(3, 30 // len(ways)):
        start = time.perf_counter()
        way()
        taken.append(1e6 * (time.perf_counter() - start))
    return statistics.median(taken)


def measure(size: tuple[int, int], rows: int) -> list[float]:
    """Return what PyTorch's layer, topa's, topa's packed, and reading a weight [out, in] take."""
    count = max(1, int(CACHES / (4 * size[0] * size[1])))
    layers = nn.ModuleList(nn.Linear(size[1], size[0], bias=False) for _ in range(count))
    plain = [layer.weight.data for layer in layers]
    x = torch.randn(rows, size[1])
    theirs = median_of([lambda w=weight: nn.functional.linear(x, w) for weight in plain])
    speed_inference(layers)
    ours = median_of([lambda layer=layer: layer(x) for layer in layers])
    pack(layers)
    packed = median_of([lambda layer=layer: layer(x) for layer in layers])
    return [theirs, ours, packed, median_of([lambda w=weight: w.sum() for weight in plain])]


@torch.inference_mode()
def main() -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 64])
    settings = parser.parse_args()
    print(f"float32, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print(
        "| weight | rows | PyTorch | topa | packed | sum of the weight |\n|---|---|---|---|---|---|"
    )
    for size in SIZES:
        for rows in settings.rows:
            cells = " | ".join(f"{value:,.0f}" for value in measure(size, rows))
            print(f"| {size[0]} x {size[1]} | {rows} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
