"""What smaller storage, and mixing the nearest rows alone, change in the projection of Eq. 2.

On the memory of the bundled Tideos, for image features of photographs (packages of photos.py) at
the encoder's tau and at the paper's. The distance is that of projected unit vectors to those of
float32 and all rows; a distance d is a cosine of 1 - d^2 / 2.

    python benchmarks/memory_error.py [--packages DIR ...]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from PIL import Image
from torch import Tensor

from photos import find
from topa.features.attention import STORAGES
from topa.features.conse import ConseEncoder
from topa.features.encoder import PAPER_TEMPERATURE
from topa.features.memory import Memory, build_memory
from topa.runs import read_jsonl

NEAREST = (1, 10, 100, 1000)


def distances(found: Tensor, exact: Tensor) -> str:
    """Return mean and largest distance of unit rows as cells of a table."""
    error = (found - exact).norm(dim=-1)
    return f"{error.mean():.1e} | {error.max():.1e}"


def compare(memory: Memory, queries: Tensor) -> None:
    """Print the two tables for one temperature."""
    exact = memory.project(queries)
    print(f"tau {memory.temperature:g}\n\n| storage | MB | mean distance | largest |")
    print("|---" * 4 + "|")
    for storage in STORAGES:
        smaller = Memory(
            memory.features,
            memory.captions,
            memory.fingerprint,
            memory.temperature,
            storage=storage,
        )
        size = smaller.features.nbytes + (0 if smaller.scales is None else smaller.scales.nbytes)
        cells = distances(smaller.project(queries), exact)
        print(f"| {storage} | {size / 1e6:.1f} | {cells} |")
    print("\n| top k | mean mass dropped | largest | mean distance | largest |")
    print("|---" * 5 + "|")
    for k in NEAREST:
        dropped = 1 - memory.nearest(queries, k)[0].sum(1)
        found = memory.project(queries, top_k=k, max_dropped=1.0)
        mass = f"{dropped.mean():.1%} | {dropped.max():.1%}"
        print(f"| {k} | {mass} | {distances(found, exact)} |")
    print()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--packages", type=Path, nargs="*", default=[], help="more folders to find packages in"
    )
    folders = [Path(path) for path in sys.path if path.endswith("site-packages")]
    folders += parser.parse_args().packages
    rows = [row for _, row in read_jsonl(Path(__file__).parent / "photos.jsonl")]
    photos = dict.fromkeys(row["photo"] for row in rows)
    encoder = ConseEncoder()
    images = [Image.open(find(photo, folders)).convert("RGB") for photo in photos]
    memory = build_memory(["textvid", "everyday"], encoder)
    print(f"{len(memory)} rows of {memory.dim}, {len(images)} photographs\n")
    queries = encoder.encode_frames(images)
    for temperature in (memory.temperature, PAPER_TEMPERATURE):
        memory.temperature = temperature
        compare(memory, queries)


if __name__ == "__main__":
    main()
