"""What every encoder promises, and choosing one by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol, runtime_checkable

import torch
from PIL import Image

from topa.errors import ConfigError

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


LongText = Literal["split", "truncate"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
_PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "float16")
_OPEN_CLIP = "open_clip:"


def mixed_precision(precision: Precision, device: str) -> torch.autocast:
    """Return the context in which a network's large operations run in a smaller type.

    Args:
        precision: The type; `auto` is bfloat16 on a GPU and float32 elsewhere.
        device: Where the network runs.
    """
    kind = torch.device(device).type
    if precision == "auto":
        precision = "bfloat16" if kind == "cuda" else "float32"
    if precision == "float32":
        return torch.autocast(kind, enabled=False)
    return torch.autocast(kind, dtype=getattr(torch, precision))


def load_encoder(name: str = EMBEDDED, *, device: str = "cpu") -> Encoder:
    """Return an encoder by name.

    Args:
        name: "embedded" for ConSE out of installed packages; `open_clip:MODEL/PRETRAINED` or
            `open_clip:hf-hub:OWNER/NAME` for a model of open_clip; else what
            `transformers.AutoModel.from_pretrained` takes, e.g. "openai/clip-vit-large-patch14".
            Options follow the name, so that they go wherever it goes. With `+truncate` texts
            longer than the context are cut off, as in the paper, instead of split and averaged;
            the two have different fingerprints. `+float32`, `+bfloat16` and `+float16` are the
            type that large operations run in: by default bfloat16 on a GPU and float32
            elsewhere, and always float32 for the embedded encoder. All have one fingerprint,
            since their features have a cosine above 0.999.
        device: Where the networks run; features always come back on the CPU.

    Raises:
        WeightsError: A package or a model is missing, or is not a dual text-image encoder.
        ConfigError: open_clip is needed and not installed.
    """
    name, options = _split_options(name)
    long_text: LongText = "truncate" if "truncate" in options else "split"
    precision: Precision = next((kind for kind in _PRECISIONS if kind in options), "auto")
    if name == EMBEDDED:
        from topa.features.conse import ConseEncoder

        exact: Precision = "float32" if precision == "auto" else precision
        return ConseEncoder(device=device, precision=exact, long_text=long_text)
    if name.startswith(_OPEN_CLIP):
        from topa.features.openclip import OpenClipEncoder

        name = name.removeprefix(_OPEN_CLIP)
        return OpenClipEncoder(name, device=device, precision=precision, long_text=long_text)
    from topa.features.clip import ClipEncoder

    return ClipEncoder(name, device=device, precision=precision, long_text=long_text)


def _split_options(name: str) -> tuple[str, set[str]]:
    """Return a name without the options at its end, and these.

    Raises:
        ConfigError: Two of them contradict each other.
    """
    options: set[str] = set()
    while (parts := name.rpartition("+"))[2] in ("truncate", *_PRECISIONS) and parts[0]:
        name = parts[0]
        options.add(parts[2])
    if len(options - {"truncate"}) > 1:
        raise ConfigError("one type is needed, not several", where=f"encoder {name}")
    return name, options
