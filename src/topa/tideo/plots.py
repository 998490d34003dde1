"""Figures of a set of Tideos, and the page that shows them."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from topa.errors import ConfigError
from topa.runs import atomic_path, write_json, write_text

TEMPLATE = "quality.html.jinja"
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")


def _start_figure(width: float = 6.0, height: float = 3.2) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError(
            "figures are drawn with matplotlib, which is not installed",
            where="stats",
            mend="Run `pip install -e '.[eval]'`.",
        ) from None
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def draw_bars(path: Path, counts: Mapping[Any, float], title: str, ylabel: str) -> None:
    """Draw named numbers as bars into a PNG."""
    figure, axes = _start_figure()
    names = [str(name) for name in counts]
    axes.bar(names, list(counts.values()), color=COLOURS[0])
    axes.set_title(title)
    axes.set_ylabel(ylabel)
    if sum(map(len, names)) > 60:
        axes.tick_params(axis="x", labelrotation=45)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def draw_map(path: Path, points: Sequence[tuple[float, float]], groups: Sequence[str]) -> None:
    """Draw points in the plane, coloured by group, into a PNG."""
    figure, axes = _start_figure(7.0, 6.0)
    for colour, name in zip(COLOURS, sorted(set(groups)), strict=False):
        chosen = [point for point, group in zip(points, groups, strict=True) if group == name]
        axes.scatter(*zip(*chosen, strict=True), s=9, alpha=0.7, color=colour, label=name)
    axes.legend(markerscale=2, frameon=False)
    axes.set_xticks([])
    axes.set_yticks([])
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)


def write_page(
    out: Path,
    found: dict[str, Any],
    points: Sequence[dict[str, Any]] | None = None,
    *,
    name: str,
) -> Path:
    """Write stats.json, the figures and index.html, which needs no other file.

    Args:
        out: Folder.
        found: As `measure_tideos` returns it.
        points: Of the map: id, source, seed, x, y.
        name: Of the set.

    Returns:
        The page.
    """
    out.mkdir(parents=True, exist_ok=True)
    letters = {chr(ord("A") + i): n for i, n in found["answer_positions"].items()}
    vocabulary = found["vocabulary"]
    words = {k: v["different_words"] for k, v in vocabulary["sources"].items()}
    figures = {
        "sources": (found["sources"], "Tideos by source", "Tideos"),
        "frames": (found["frames_per_tideo"], "Frames per Tideo", "Tideos"),
        "kinds": (found["kinds"], "Kinds of questions", "questions"),
        "starts": (found["question_starts"], "How questions begin", "questions"),
        "positions": (letters, "Place of the right option", "questions"),
        "vocabulary": (
            words,
            f"Different words in {vocabulary['tideos_per_source']} Tideos of each source",
            "words",
        ),
    }
    for file, (counts, title, label) in figures.items():
        draw_bars(out / f"{file}.png", counts, title, label)
    files = [f"{file}.png" for file in figures]
    if points:
        draw_map(
            out / "map.png",
            [(point["x"], point["y"]) for point in points],
            [point["source"] for point in points],
        )
    write_json(out / "stats.json", {"name": name, **found})
    page = out / "index.html"
    write_text(page, _render(out, found, files, points or [], name))
    return page


def _render(
    out: Path, found: dict[str, Any], files: list[str], points: Sequence[dict], name: str
) -> str:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = (resources.files("topa.tideo") / TEMPLATE).read_text(encoding="utf-8")
    groups = sorted({point["source"] for point in points})
    colours = dict(zip(groups, COLOURS, strict=False))
    pictures = [base64.b64encode((out / file).read_bytes()).decode() for file in files]
    return environment.from_string(source).render(
        name=name, found=found, pictures=pictures, points=points, colours=colours
    )
