"""Which captions of a memory explain the frames of a video: numbers, and a page to look at."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2
import torch
from PIL import Image

from topa.features.encoder import Encoder
from topa.features.memory import Memory
from topa.features.video import Clip
from topa.runs import write_text

__all__ = ["InspectedFrame", "inspect_clip", "write_page"]

_ENTROPY_ROWS = 1000  # weights that count; what lies beyond is taken as one row
_THUMBNAIL = (192, 144)


@dataclass(frozen=True)
class InspectedFrame:
    """A frame, and what the memory makes of it.

    Attributes:
        time: Seconds from the start of the video.
        captions: Captions of the nearest rows.
        weights: Their weights in Eq. 2, largest first.
        rows_in_use: How many equally weighted rows would be as uncertain (exp of the entropy).
        similarity: Cosine of the image feature with what it is projected to.
    """

    time: float
    captions: list[str]
    weights: list[float]
    rows_in_use: float
    similarity: float

    def row(self) -> dict[str, Any]:
        """Return the frame as data."""
        return asdict(self)


def inspect_clip(clip: Clip, encoder: Encoder, memory: Memory, k: int = 5) -> list[InspectedFrame]:
    """Return what the memory makes of every frame of a clip (paper, Eq. 2).

    Raises:
        FingerprintError: Another encoder made the memory.
    """
    features = encoder.encode_frames(clip.images)
    projected = memory.project(features, fingerprint=encoder.fingerprint)
    weights, rows = memory.nearest(features, min(_ENTROPY_ROWS, len(memory)))
    rest = (1 - weights.sum(1, keepdim=True)).clamp(min=0)
    shares = torch.cat([weights, rest], 1)
    entropy = -(shares * shares.clamp(min=1e-12).log()).sum(1)
    cosines = (features * projected).sum(1)
    return [
        InspectedFrame(
            time=time,
            captions=[memory.captions[row] for row in near[:k]],
            weights=shown[:k],
            rows_in_use=used,
            similarity=cosine,
        )
        for time, near, shown, used, cosine in zip(
            clip.times,
            rows.tolist(),
            weights.tolist(),
            entropy.exp().tolist(),
            cosines.tolist(),
            strict=True,
        )
    ]


def write_page(
    path: str | Path, clip: Clip, memory: Memory, frames: Sequence[InspectedFrame]
) -> None:
    """Write an HTML page, whole or not at all: the frames, and captions by time as a heat map."""
    totals: dict[str, float] = {}
    for frame in frames:
        for caption, weight in zip(frame.captions, frame.weights, strict=True):
            totals[caption] = totals.get(caption, 0.0) + weight
    leading = sorted(totals, key=lambda caption: -totals[caption])[:20]
    rows = [
        (
            caption,
            [dict(zip(f.captions, f.weights, strict=True)).get(caption, 0.0) for f in frames],
        )
        for caption in leading
    ]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("topa.features", "pages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("inspection.html.jinja").render(
        name=Path(clip.source).name,
        duration=clip.duration,
        memory=memory,
        shown=[(frame, _embed(image)) for frame, image in zip(frames, clip.images, strict=True)],
        rows=rows,
    )
    write_text(path, page)


def _embed(image: Image.Image) -> str:
    """Return a thumbnail as a data address."""
    small = image.copy()
    small.thumbnail(_THUMBNAIL)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
