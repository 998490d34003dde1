"""Tideos that say nearly the same as another one, by MinHash over their words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from topa.errors import ConfigError
from topa.tideo.quality import words_of
from topa.tideo.schema import Tideo

THRESHOLD = 0.6
_SHINGLE = 3
_PERMUTATIONS = 128


@dataclass(frozen=True)
class Duplicate:
    """A Tideo that comes after one like it.

    Attributes:
        id: Of the later one.
        of: Of the first one.
        similarity: From 0 to 1.
    """

    id: str
    of: str
    similarity: float


def shingles_of(tideo: Tideo) -> set[str]:
    """Return every three words in a row of the frame captions and of the global caption."""
    found: set[str] = set()
    for text in (tideo.caption, *(frame.caption for frame in tideo.frames)):
        words = words_of(text)
        for i in range(max(1, len(words) - _SHINGLE + 1)):
            found.add(" ".join(words[i : i + _SHINGLE]))
    return found


def find_duplicates(tideos: Iterable[Tideo], threshold: float = THRESHOLD) -> list[Duplicate]:
    """Return every Tideo whose text is near that of an earlier one which is kept.

    The Jaccard similarity of three-word shingles is estimated with 128 permutations (Broder,
    1997); neighbours are found by locality-sensitive hashing, so the time grows with the number
    of Tideos, not with its square.

    Args:
        tideos: In the order in which the first of its kind is kept.
        threshold: Similarity from which two count as the same.

    Raises:
        ConfigError: datasketch is not installed, or the threshold is not between 0 and 1.
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"a threshold between 0 and 1 is needed, got {threshold}", where="near")
    try:
        from datasketch import MinHash, MinHashLSH
    except ImportError:
        raise ConfigError(
            "near-duplicates are found with datasketch, which is not installed",
            where="near",
            mend="Run `pip install -e '.[generate]'`.",
        ) from None
    index = MinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS)
    kept: dict[str, MinHash] = {}
    found: list[Duplicate] = []
    for tideo in tideos:
        sketch = MinHash(num_perm=_PERMUTATIONS)
        sketch.update_batch([shingle.encode() for shingle in sorted(shingles_of(tideo))])
        near = [(sketch.jaccard(kept[other]), other) for other in index.query(sketch)]
        similarity, first = max(near, default=(0.0, ""))
        if similarity >= threshold:
            found.append(Duplicate(tideo.id, first, float(similarity)))
            continue
        kept[tideo.id] = sketch
        index.insert(tideo.id, sketch)
    return found
