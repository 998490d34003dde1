"""Features of Tideos and of videos: how they are made, kept and read back."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.nn import functional

from topa.errors import DataError, FingerprintError
from topa.features.encoder import Encoder, Progress
from topa.runs import atomic_path, cache_dir, digest
from topa.tideo.schema import Tideo

_log = logging.getLogger(__name__)

MANY_TEXTS = 5000
"""From so many texts on, encoding without a progress function is announced in the log."""


def sample_rows(n: int, num_frames: int) -> list[int]:
    """Return the rows to keep of n frames: floor(j*n/T) for j < T where n > T, else all.

    Fewer frames than T are kept as they are, never repeated or padded (paper, section 3.3).

    Raises:
        ValueError: n is negative or num_frames is not positive.
    """
    if n < 0 or num_frames < 1:
        raise ValueError(f"n must be >= 0 and num_frames >= 1, got {n} and {num_frames}")
    if n <= num_frames:
        return list(range(n))
    return [j * n // num_frames for j in range(num_frames)]


def frame_rows(features: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Return [min(n, T), d]: the rows of [n, d] frame features that fit T slots."""
    return features[sample_rows(len(features), num_frames)]


@dataclass(frozen=True)
class TideoFeatures:
    """Text features of Tideos, all rows unit-norm float32.

    Attributes:
        texts: [m, d], one row per text of every frame, in order (caption, then objects); [0, d]
            where they were not kept.
        text_offsets: [n + 1], the texts of frame f are rows text_offsets[f]:text_offsets[f+1].
        frame_offsets: [tideos + 1], the frames of Tideo i are frame_offsets[i]:frame_offsets[i+1].
        frames: [n, d], the frame features.
        fingerprint: Of the encoder.
    """

    texts: torch.Tensor
    text_offsets: torch.Tensor
    frame_offsets: torch.Tensor
    frames: torch.Tensor
    fingerprint: str

    def __len__(self) -> int:
        return len(self.frame_offsets) - 1

    def of(self, i: int) -> torch.Tensor:
        """Return the frame features [num_frames_i, d] of the Tideo at position i.

        Raises:
            IndexError: There is no such Tideo.
        """
        if not 0 <= i < len(self):
            raise IndexError(f"Tideo {i} of {len(self)}")
        return self.frames[self.frame_offsets[i] : self.frame_offsets[i + 1]]


def mean_rows(texts: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Return one unit row per frame: the normalised mean of its unit text rows.

    Args:
        texts: [m, d] unit rows.
        offsets: [n + 1] as `TideoFeatures.text_offsets`, every frame with at least one text.
    """
    owners = torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets.diff())
    sums = torch.zeros(len(offsets) - 1, texts.shape[1]).index_add_(0, owners, texts)
    # The direction of a sum is that of the mean.
    return functional.normalize(sums, dim=-1)


def encode_tideos(
    tideos: Sequence[Tideo],
    encoder: Encoder,
    *,
    cache: bool = True,
    progress: Progress | None = None,
) -> TideoFeatures:
    """Encode the texts of every frame; each different text only once, and once per machine.

    Args:
        tideos: Textual videos, in the order of the result.
        encoder: Of the text.
        cache: Keep the text features in the cache folder, and take them from there.
        progress: Called with the number of different texts done.

    Raises:
        DataError: There are no Tideos.
    """
    if not tideos:
        raise DataError("no Tideos to encode", where="encode_tideos", mend="Pass at least one.")
    frames = [frame.texts for tideo in tideos for frame in tideo.frames]
    places: dict[str, int] = {}
    rows = [places.setdefault(text, len(places)) for texts in frames for text in texts]
    unique = _encode_cached(list(places), encoder, cache=cache, progress=progress)
    texts = unique[torch.tensor(rows)]
    text_offsets = _offsets(len(texts) for texts in frames)
    return TideoFeatures(
        texts=texts,
        text_offsets=text_offsets,
        frame_offsets=_offsets(len(tideo.frames) for tideo in tideos),
        frames=mean_rows(texts, text_offsets),
        fingerprint=encoder.fingerprint,
    )


def _offsets(lengths: Iterable[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def _encode_cached(
    texts: list[str], encoder: Encoder, *, cache: bool, progress: Progress | None
) -> torch.Tensor:
    """Return unit rows [n, d] of different texts, from one file of the cache if it is there."""
    if not cache:
        return encoder.encode_text(texts, progress=progress)
    path = cache_dir("features") / f"{digest(encoder.fingerprint, *texts)}.safetensors"
    if path.is_file():
        try:
            found = read_features(path, encoder.fingerprint).get("texts")
        except (DataError, FingerprintError) as error:
            _log.warning("cached features are encoded again: %s", error)
        else:
            if found is not None and found.shape == (len(texts), encoder.dim):
                if progress is not None:
                    progress(len(texts))
                return found
            _log.warning("cached features are encoded again: %s: unexpected shape", path)
    if progress is None and len(texts) >= MANY_TEXTS:
        line = "encoding %s texts, once: they are kept in %s (on a CPU this takes minutes)"
        _log.warning(line, f"{len(texts):,}", path.parent)
    encoded = encoder.encode_text(texts, progress=progress)
    write_features(path, {"texts": encoded}, encoder.fingerprint)
    return encoded


def write_features(
    path: str | Path, features: Mapping[str, torch.Tensor], fingerprint: str
) -> None:
    """Write named features as one safetensors file, whole or not at all.

    Args:
        path: File to write.
        features: Name (a video, say) -> tensor of any shape, e.g. [frames, d].
        fingerprint: Of the encoder that made them.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in features.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"fingerprint": fingerprint})


def read_features(
    path: str | Path, fingerprint: str | None = None, *, names: Iterable[str] | None = None
) -> dict[str, torch.Tensor]:
    """Read named features; with `names`, those alone are read from the file.

    Raises:
        DataError: The file is missing or damaged, or lacks a name.
        FingerprintError: Another encoder made them than the one of `fingerprint`.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError("file not found", where=path, mend="Check the path.")
    try:
        with safe_open(path, framework="pt") as file:
            found = (file.metadata() or {}).get("fingerprint", "")
            check_fingerprint(found, fingerprint, where=path)
            present = list(file.keys())
            wanted = present if names is None else list(names)
            if missing := sorted(set(wanted) - set(present)):
                raise DataError(f"no features named {', '.join(missing)}", where=path)
            return {name: file.get_tensor(name) for name in wanted}
    except SafetensorError as error:
        raise DataError(
            f"not a whole safetensors file ({error})",
            where=path,
            mend="Encode the features again.",
        ) from None


def check_fingerprint(found: str, expected: str | None, *, where: str | Path) -> None:
    """Refuse features of another encoder.

    Raises:
        FingerprintError: `expected` is given and differs from `found`.
    """
    if expected is not None and found != expected:
        raise FingerprintError(
            f"made with encoder {found or '(not recorded)'}, needed is {expected}",
            where=where,
            mend="Encode again with the same encoder, or choose the encoder that made it.",
        )
