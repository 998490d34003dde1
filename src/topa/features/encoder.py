"""What every encoder promises, and choosing one by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from PIL import Image

Progress = Callable[[int], None]
"""Called with the number of items done so far."""

EMBEDDED = "embedded"

PAPER_TEMPERATURE = 100.0  # tau of Eq. 2
# By family, the first part of a fingerprint. CLIP's cosines lie close together and want the
# paper's tau; ConSE's are centred and spread widely, where 100 picks a single caption
# (measured on photographs: docs/features.md).
_TEMPERATURES = {"conse": 30.0}


def temperature_for(fingerprint: str) -> float:
    """Return the tau of Eq. 2 for the features of an encoder: 100, as in the paper, or its own."""
    return _TEMPERATURES.get(fingerprint.partition("-")[0], PAPER_TEMPERATURE)


@runtime_checkable
class Encoder(Protocol):
    """One space for texts and images.

    Attributes:
        dim: Size of a feature.
        fingerprint: Names weights, prompts and preprocessing; features of two encoders may be
            compared only where their fingerprints are equal.
    """

    @property
    def dim(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def encode_text(
        self, texts: Sequence[str], *, progress: Progress | None = None
    ) -> torch.Tensor:
        """Return unit-norm float32 [n, dim] on the CPU, one row per text."""
        ...

    def encode_frames(
        self, images: Sequence[Image.Image], *, progress: Progress | None = None
    ) -> torch.Tensor:
        """Return unit-norm float32 [n, dim] on the CPU, one row per image."""
        ...


def load_encoder(name: str = EMBEDDED, *, device: str = "cpu") -> Encoder:
    """Return an encoder: "embedded", or a CLIP-like model by hub id or local folder.

    Args:
        name: "embedded" for ConSE out of installed packages, else what
            `transformers.AutoModel.from_pretrained` takes, e.g. "openai/clip-vit-large-patch14".
        device: Where the networks run; features always come back on the CPU.

    Raises:
        WeightsError: A package or a model is missing, or is not a dual text-image encoder.
    """
    if name == EMBEDDED:
        from topa.features.conse import ConseEncoder

        return ConseEncoder(device=device)
    from topa.features.clip import ClipEncoder

    return ClipEncoder(name, device=device)
