"""Tideo features: one vector for each Tideo, laid out in the plane, and near ones found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from topa.errors import ConfigError, DataError
from topa.features.store import TideoFeatures
from topa.tideo.duplicates import Duplicate
from topa.tideo.schema import Tideo

_CHUNK = 1024


def average_frames(features: TideoFeatures) -> Tensor:
    """Return [tideos, d] unit rows: the normalised mean of each Tideo's frame features."""
    means = [features.of(i).mean(0) for i in range(len(features))]
    return functional.normalize(torch.stack(means), dim=-1)


def lay_out(
    tideos: Sequence[Tideo], features: TideoFeatures, *, seed: int = 0
) -> list[dict[str, Any]]:
    """Return id, source, seed, x and y (0 to 1) of each Tideo, near ones near (t-SNE).

    t-SNE (van der Maaten and Hinton, 2008) is scikit-learn's, on 50 principal components.

    Raises:
        ConfigError: scikit-learn is not installed.
        DataError: There are fewer than three Tideos.
    """
    try:
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE
    except ImportError:
        raise ConfigError(
            "the map is made with scikit-learn, which is not installed",
            where="map",
            mend="Run `pip install -e '.[generate]'`.",
        ) from None
    if len(tideos) < 3:
        raise DataError("a map needs at least three Tideos", where="map")
    rows = average_frames(features).numpy()
    parts = min(50, *rows.shape)
    rows = PCA(n_components=parts, random_state=seed).fit_transform(rows)
    perplexity = min(30.0, (len(tideos) - 1) / 3)
    places = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(rows)
    low, high = places.min(0), places.max(0)
    places = (places - low) / (high - low).clip(min=1e-9)
    return [
        {
            "id": tideo.id,
            "source": tideo.source,
            "seed": tideo.seed or "",
            "x": float(x),
            "y": float(y),
        }
        for tideo, (x, y) in zip(tideos, places, strict=True)
    ]


def find_near(
    tideos: Sequence[Tideo], features: TideoFeatures, threshold: float = 0.95
) -> list[Duplicate]:
    """Return every Tideo whose feature is near that of an earlier one which is kept.

    Exact, so its time grows with the square of their number; MinHash
    (`topa.tideo.duplicates`) is for more than some ten thousands.

    Args:
        tideos: In the order in which the first of its kind is kept.
        features: Of the same Tideos.
        threshold: Cosine from which two count as the same.
    """
    rows = average_frames(features)
    gone: set[int] = set()
    found: list[Duplicate] = []
    for start in range(0, len(rows), _CHUNK):
        scores = rows[start : start + _CHUNK] @ rows.T
        for offset, near in enumerate(scores >= threshold):
            i = start + offset
            earlier = [int(j) for j in near[:i].nonzero().flatten() if int(j) not in gone]
            if earlier:
                best = earlier[int(scores[offset, earlier].argmax())]
                gone.add(i)
                found.append(Duplicate(tideos[i].id, tideos[best].id, float(scores[offset, best])))
    return found
