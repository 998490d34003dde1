"""TextVid-mini: the Tideos that come with the package (CC0-1.0)."""

from __future__ import annotations

import lzma
from functools import cache
from importlib import resources
from typing import Literal

from topa.tideo.schema import Tideo, read_tideos

Split = Literal["train", "everyday", "heldout"]


@cache
def load_textvid(split: Split = "train") -> tuple[Tideo, ...]:
    """Return the Tideos of a split.

    Args:
        split: "train", "everyday" (plain clips, also for training), or "heldout", which is
            for evaluation only.
    """
    path = resources.files("topa.tideo") / "textvid_mini" / f"{split}.jsonl.xz"
    lines = lzma.decompress(path.read_bytes()).decode("utf-8").splitlines()
    return tuple(Tideo.model_validate_json(line) for line in lines)


def load_tideos(source: str) -> list[Tideo]:
    """Return Tideos by name ("textvid", "everyday", "heldout") or from a JSONL file.

    Raises:
        DataError: The file is missing or holds something that is not a Tideo.
    """
    if source == "textvid":
        return list(load_textvid("train"))
    if source in ("everyday", "heldout"):
        return list(load_textvid("everyday" if source == "everyday" else "heldout"))
    return read_tideos(source)
