"""Which captions of a memory explain the frames of a video: numbers, and a page to look at."""

from __future__ import annotations

import base64
import importlib.util
import io
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2
import torch
from PIL import Image

from topa.errors import ConfigError
from topa.features.encoder import Encoder
from topa.features.memory import Memory
from topa.features.video import Clip
from topa.runs import atomic_path, write_text

__all__ = ["InspectedFrame", "check_picture", "draw_picture", "inspect_clip", "write_page"]

_ENTROPY_ROWS = 1000  # weights that count; what lies beyond is taken as one row
_THUMBNAIL = (192, 144)
_LINES_OF_PAGE, _LINES_OF_PICTURE = 20, 12


@dataclass(frozen=True)
class InspectedFrame:
    """A frame, and what the memory makes of it.

    Attributes:
        time: Seconds from the start of the video.
        captions: Captions of the nearest rows.
        weights: Their weights in Eq. 2, largest first.
        dropped: Share of the softmax that lies beyond these captions.
        rows_in_use: How many equally weighted rows would be as uncertain (exp of the entropy).
        similarity: Cosine of the image feature with what it is projected to.
    """

    time: float
    captions: list[str]
    weights: list[float]
    dropped: float
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
            dropped=max(0.0, 1 - sum(shown[:k])),
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
    rows = _leading_captions(frames, _LINES_OF_PAGE)
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


def check_picture() -> None:
    """Refuse to draw where matplotlib is absent, before the work rather than after it.

    Raises:
        ConfigError: It is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(
            "pictures are drawn with matplotlib, which is not installed",
            where="memory inspect",
            mend="Run `pip install -e '.[eval]'`, or name a page: FILE.html.",
        )


def draw_picture(
    path: str | Path, clip: Clip, memory: Memory, frames: Sequence[InspectedFrame]
) -> None:
    """Draw a PNG, whole or not at all: the frames in a row, captions by time as a heat map."""
    from matplotlib.figure import Figure

    rows = _leading_captions(frames, _LINES_OF_PICTURE)
    columns = len(frames)
    width = 5 + 1.1 * columns
    figure = Figure(figsize=(width, 1.8 + 0.42 * len(rows)), layout="constrained")
    grid = figure.add_gridspec(2, columns, height_ratios=(1, 0.42 * len(rows)))
    for column, (frame, image) in enumerate(zip(frames, clip.images, strict=True)):
        axes = figure.add_subplot(grid[0, column])
        axes.imshow(image)
        axes.set_title(f"{frame.time:.1f} s", fontsize=8)
        axes.axis("off")
    axes = figure.add_subplot(grid[1, :])
    shares = [[100 * weight for weight in weights] for _, weights in rows]
    axes.imshow(shares, cmap="Oranges", vmin=0, vmax=100, aspect="auto")
    for line, weights in enumerate(shares):
        for column, share in enumerate(weights):
            if share >= 0.5:
                colour = "white" if share > 60 else "black"
                axes.text(
                    column,
                    line,
                    f"{share:.0f}%",
                    ha="center",
                    va="center",
                    color=colour,
                    fontsize=7,
                )
    captions = [textwrap.fill(caption, 60) for caption, _ in rows]
    axes.set_yticks(range(len(rows)), captions, fontsize=7)
    axes.set_xticks([])
    figure.suptitle(
        f"{Path(clip.source).name}: share of captions in the projected feature (Eq. 2),"
        f" {len(memory):,} rows, tau {memory.temperature:g}",
        fontsize=9,
    )
    with atomic_path(Path(path)) as temporary:
        figure.savefig(temporary, format="png", dpi=120, metadata={"Software": None})


def _leading_captions(frames: Sequence[InspectedFrame], most: int) -> list[tuple[str, list[float]]]:
    """Return the captions with the largest weights in all, and the weight of each by frame."""
    by_frame: list[dict[str, float]] = []
    totals: dict[str, float] = {}
    for frame in frames:
        found: dict[str, float] = {}
        for caption, weight in zip(frame.captions, frame.weights, strict=True):
            found[caption] = found.get(caption, 0.0) + weight
            totals[caption] = totals.get(caption, 0.0) + weight
        by_frame.append(found)
    leading = sorted(totals, key=lambda caption: -totals[caption])[:most]
    return [(caption, [found.get(caption, 0.0) for found in by_frame]) for caption in leading]


def _embed(image: Image.Image) -> str:
    """Return a thumbnail as a data address."""
    small = image.copy()
    small.thumbnail(_THUMBNAIL)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
