"""The video's bias in attention: as a mask for each head, and in a channel of queries and keys.

Run: python benchmarks/attention.py [--repeats 5] [--shapes 1x9x3x512x64,1x32x8x1024x128]

Both ways are one layer's attention with the same kernel, in one process, with the same threads, on
the same random queries, keys and values; their answers are asserted equal before anything is timed.
"without" is the attention of an LLM that has no bias at all. Extra memory is what the process takes
above its inputs while it computes: the peak of its resident size (GPU: of what torch gave out).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import torch
from torch.nn import functional

from topa.bench.storage import extra_memory
from topa.model.attention import VideoBias, attend
from topa.runs import environment


def attend_by_mask(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: VideoBias, scaling: float
) -> torch.Tensor:
    """Return the same attention with causality and bias as a number per head, query and key."""
    of_query, of_key = bias.factors(query.dtype)
    causal = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    table = (of_query * of_key.transpose(-1, -2)).masked_fill(~causal, float("-inf"))
    groups = query.shape[1] // key.shape[1]
    return functional.scaled_dot_product_attention(
        query,
        key.repeat_interleave(groups, 1),
        value.repeat_interleave(groups, 1),
        attn_mask=table,
        scale=scaling,
    )


@torch.inference_mode()
def compare_bias(shape: tuple[int, ...], repeats: int, device: str) -> dict[str, float | str]:
    """Time both ways once in turn, `repeats` times, and keep the best of each.

    Args:
        shape: Samples, heads, key heads, tokens, width of a head.
        repeats: Turns.
        device: "cpu" or "cuda".
    """
    batch, heads, groups, tokens, width = shape
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    generator = torch.Generator(device).manual_seed(0)

    def draw(count: int) -> torch.Tensor:
        size = (batch, tokens, count, width)
        made = torch.randn(size, generator=generator, device=device, dtype=dtype)
        return made.transpose(1, 2)

    query, key, value = draw(heads), draw(groups), draw(groups)
    slots = torch.zeros(batch, tokens, dtype=torch.bool, device=device)
    slots[:, 16:26] = True
    after = torch.arange(tokens, device=device).expand(batch, -1) > 25
    bias = VideoBias(torch.randn(heads, generator=generator, device=device), after, slots)
    scaling = width**-0.5
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "mask": lambda: attend_by_mask(query, key, value, bias, scaling),
        "channel": lambda: attend(query, key, value, None, scaling=scaling, bias=bias),
        "without": lambda: attend(query, key, value, None, scaling=scaling),
    }
    near = 2e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(ways["channel"](), ways["mask"](), atol=near, rtol=0)
    seconds = {name: float("inf") for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            seconds[name] = min(seconds[name], _time(way, device))
    extra = {name: _extra(way, device) for name, way in ways.items()}
    return {
        "shape": "x".join(map(str, shape)),
        **{f"{name}_ms": round(1000 * value, 2) for name, value in seconds.items()},
        **{f"{name}_extra_mb": value and round(value, 1) for name, value in extra.items()},
        "times_faster": round(seconds["mask"] / seconds["channel"], 2),
    }


def _time(way: Callable[[], torch.Tensor], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    way()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _extra(way: Callable[[], torch.Tensor], device: str) -> float | None:
    """Return the peak of memory above what is held before, in MB; None where it is not known."""
    if device == "cpu":
        return extra_memory(way)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    way()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def main() -> None:
    """Run the comparison and print it as JSON with the environment."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shapes", default="4x9x3x256x64,1x9x3x1024x64,1x32x8x1024x128")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shapes = [tuple(map(int, shape.split("x"))) for shape in arguments.shapes.split(",")]
    rows = [compare_bias(shape, arguments.repeats, device) for shape in shapes]
    print(json.dumps({"device": device, "rows": rows, "environment": environment()}, indent=2))


if __name__ == "__main__":
    main()
