"""Making a memory smaller: a sample, cluster centres, rows far from each other, no near-doubles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from topa.errors import ConfigError, DataError
from topa.features.encoder import temperature_for
from topa.features.memory import Memory
from topa.features.shards import FeatureStore

__all__ = ["REDUCTIONS", "mean_of_images", "memory_of_stores", "reduce_rows"]

Reduction = Literal["sample", "kmeans", "farthest"]
REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)
Progress = Callable[[str, int, int], None]
"""Called with a stage, what is done of it, and all of it."""

_ROUNDS = 20
_BLOCK = 4096


def _ignore(stage: str, done: int, total: int) -> None:
    pass


def reduce_rows(
    features: Tensor, count: int, method: str, seed: int = 0, progress: Progress = _ignore
) -> Tensor:
    """Return the numbers [count] of the rows to keep of unit rows [n, d], ascending.

    - `sample`: drawn evenly.
    - `kmeans`: the row nearest to each centre of spherical k-means (Dhillon and Modha, 2001),
      so that every row kept still is the feature of its caption.
    - `farthest`: one after the other the row least similar to those kept (Gonzalez, 1985).

    Raises:
        ConfigError: There is no such method, or `count` is not positive.
    """
    if method not in REDUCTIONS:
        raise ConfigError(
            f"unknown reduction {method!r}", mend=f"Use one of {', '.join(REDUCTIONS)}."
        )
    if count < 1:
        raise ConfigError(f"at least one row must be kept, got {count}", where="rows")
    if count >= len(features):
        return torch.arange(len(features))
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(features), generator=generator)
    if method == "sample":
        return order[:count].sort().values
    if method == "farthest":
        return _farthest(features, count, int(order[0]), progress).sort().values
    return _central(features, order[:count], progress).unique()


def _farthest(features: Tensor, count: int, first: int, progress: Progress) -> Tensor:
    kept = torch.empty(count, dtype=torch.long)
    nearest = torch.full((len(features),), -torch.inf)
    place = first
    for k in range(count):
        kept[k] = place
        nearest = torch.maximum(nearest, features @ features[place])
        nearest[place] = torch.inf  # never again, not even where rows are equal
        place = int(nearest.argmin())
        progress("farthest rows", k + 1, count)
    return kept


def _central(features: Tensor, start: Tensor, progress: Progress) -> Tensor:
    """Return the rows nearest to the centres of k-means that starts from the rows `start`."""
    centres = features[start]
    for done in range(_ROUNDS):
        progress("k-means, rounds at most", done, _ROUNDS)
        owner = torch.cat([(block @ centres.T).argmax(1) for block in features.split(_BLOCK)])
        sums = torch.zeros_like(centres).index_add_(0, owner, features)
        filled = sums.ne(0).any(1)  # a centre that nobody is nearest to stays
        moved = torch.where(filled[:, None], functional.normalize(sums, dim=-1), centres)
        if torch.allclose(moved, centres, atol=1e-4):
            break
        centres = moved
    best = torch.full((len(centres),), -torch.inf)
    rows = torch.zeros(len(centres), dtype=torch.long)
    for start_row, block in zip(
        range(0, len(features), _BLOCK), features.split(_BLOCK), strict=True
    ):
        found, places = (centres @ block.T).max(1)
        rows = torch.where(found > best, places + start_row, rows)
        best = torch.maximum(best, found)
    return rows


def distinct_rows(features: Tensor, limit: float, progress: Progress = _ignore) -> Tensor:
    """Return the numbers of rows whose cosine with every row kept before is below `limit`."""
    kept = torch.zeros(0, dtype=torch.long)
    for start in range(0, len(features), _BLOCK):
        block = features[start : start + _BLOCK]
        fresh = torch.ones(len(block), dtype=torch.bool)
        for part in kept.split(_BLOCK) if len(kept) else ():
            fresh &= (block @ features[part].T).amax(1) < limit
        inner = block @ block.T
        for row in fresh.nonzero().flatten().tolist():
            before = fresh[:row]
            fresh[row] = not (inner[row, :row][before] >= limit).any()
        kept = torch.cat([kept, fresh.nonzero().flatten() + start])
        progress("distinct rows", start + len(block), len(features))
    return kept


def mean_of_images(store: FeatureStore) -> Tensor:
    """Return the mean [d] of all frame features of a store of videos.

    Raises:
        DataError: The store holds Tideos, or nothing.
    """
    total = torch.zeros(store.dim, dtype=torch.float64)
    count = 0
    for entries, features in store.blocks():
        if any(entry.captions for entry in entries):
            raise DataError(
                "these are features of texts",
                where=store.folder,
                mend="The mean of images is taken from a store of `topa encode videos`.",
            )
        total += features.sum(0, dtype=torch.float64)
        count += len(features)
    if not count:
        raise DataError("the feature store is empty", where=store.folder)
    return (total / count).float()


def memory_of_stores(
    stores: Sequence[FeatureStore],
    *,
    rows: int | None = None,
    method: str = "sample",
    distinct: float | None = None,
    temperature: float | None = None,
    storage: str = "float32",
    images: FeatureStore | None = None,
    seed: int = 0,
    progress: Progress = _ignore,
) -> Memory:
    """Return a memory of the Tideos in feature stores.

    Args:
        stores: Of `topa encode textvid`, all of one encoder.
        rows: Most rows to keep; all by default.
        method: How they are chosen, one of REDUCTIONS.
        distinct: First leave out rows whose cosine with one before is at least this.
        temperature: tau of Eq. 2; by default what suits the encoder.
        storage: Type the rows are kept in, as in `Memory`.
        images: Store of videos whose mean makes this the memory of a mean shift.
        seed: Of the draw.
        progress: Told how far it is.

    Raises:
        DataError: A store holds videos, whose frames have no captions, or nothing.
        FingerprintError: The stores are of different encoders.
        ConfigError: An unknown method or storage.
    """
    parts: list[Tensor] = []
    captions: list[str] = []
    for store in stores:
        FeatureStore(store.folder, stores[0].fingerprint)
        for entries, features in store.blocks():
            for entry in entries:
                if len(entry.captions) != entry.rows:
                    raise DataError(
                        f"{entry.id!r} has no captions",
                        where=store.folder,
                        mend="A memory is built from Tideos: `topa encode textvid`.",
                    )
                captions += entry.captions
            parts.append(features)
    if not parts:
        raise DataError("the feature store is empty", where=stores[0].folder if stores else None)
    # float16 rows are a little off their length.
    features = functional.normalize(torch.cat(parts), dim=-1)
    keep = torch.arange(len(features))
    if distinct is not None:
        keep = distinct_rows(features, distinct, progress)
    if rows is not None:
        keep = keep[reduce_rows(features[keep], rows, method, seed, progress)]
    fingerprint = stores[0].fingerprint
    tau = temperature_for(fingerprint) if temperature is None else temperature
    chosen = [captions[row] for row in keep.tolist()]
    mean = None
    if images is not None:
        FeatureStore(images.folder, fingerprint)
        mean = mean_of_images(images)
    return Memory(features[keep], chosen, fingerprint, tau, storage=storage, image_mean=mean)
