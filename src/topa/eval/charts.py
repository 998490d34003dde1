"""An ablation as a table and as a plot with error bars."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from topa.errors import ConfigError
from topa.runs import atomic_path, write_json, write_text


def check_charts() -> None:
    """Refuse to start what could not be drawn in the end.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(
            "plots need matplotlib", where="topa ablate", mend="Run pip install -e '.[eval]'."
        )


def write_ablation(summary: Mapping[str, Any], out: Path) -> None:
    """Write ablation.json, ablation.md and ablation.png, each whole or not at all."""
    write_json(out / "ablation.json", dict(summary))
    write_text(out / "ablation.md", tabulate_ablation(summary))
    draw_ablation(summary, out / "ablation.png")


def tabulate_ablation(summary: Mapping[str, Any]) -> str:
    """Return the Markdown of an ablation: a row per setting, with its baselines."""
    rows = summary["rows"]
    baselines = sorted({name for row in rows for name in row["baselines"]})
    head = ["setting", "accuracy", "N", "chance", *baselines, "difference", "p", "failures"]
    lines = [
        f"**{summary['question']}** {summary['title']}; {summary['method']}.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    if summary["expected"]:
        lines.insert(1, f"\nNot the published set: {summary['expected']}.")
    for row in rows:
        found = row["difference"]
        difference, p = "", ""
        if found is not None:
            difference = f"{100 * found['difference']:+.1f}{_points(found['stderr'])}"
            p = "" if found["p"] is None else f"{found['p']:.2g}"
        cells = [
            row["setting"],
            _share(row),
            str(row["n"]),
            "" if row["chance"] is None else f"{row['chance']:.1%}",
            *(_share(row["baselines"].get(name)) for name in baselines),
            difference,
            p,
            str(row["failures"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        f"± one standard error, clustered by video; differences are paired, to"
        f' "{summary["reference"]}".',
        "",
    ]
    return "\n".join(lines)


def _share(row: Mapping[str, Any] | None) -> str:
    if row is None or row["accuracy"] is None:
        return ""
    return f"{row['accuracy']:.1%}{_points(row['stderr'])}"


def _points(stderr: float | None) -> str:
    return "" if stderr is None else f" ± {100 * stderr:.1f}"


def draw_ablation(summary: Mapping[str, Any], path: Path) -> None:
    """Draw accuracy with one standard error for every setting, chance as a line."""
    from matplotlib.figure import Figure

    rows = summary["rows"]
    figure = Figure(figsize=(7, 0.55 * len(rows) + 1.6), layout="constrained")
    axes = figure.add_subplot()
    places = list(range(len(rows)))[::-1]
    values = [100 * (row["accuracy"] or 0) for row in rows]
    errors = [100 * (row["stderr"] or 0) for row in rows]
    axes.barh(places, values, xerr=errors, color="#4f7cac", ecolor="#1d1f21", capsize=3, height=0.6)
    blind = [
        (place, 100 * row["baselines"]["blind"]["accuracy"])
        for place, row in zip(places, rows, strict=True)
        if "blind" in row["baselines"]
    ]
    if blind:
        axes.scatter(
            [x for _, x in blind],
            [y for y, _ in blind],
            marker="D",
            color="#b3362b",
            zorder=3,
            label="blind",
        )
    chance = rows[0]["chance"]
    if chance is not None:
        axes.axvline(100 * chance, color="#5f6670", linestyle="--", label="chance")
    axes.set_yticks(places, [row["setting"] for row in rows])
    axes.set_xlim(0, 100)
    axes.set_xlabel("accuracy, % (bars: one standard error, clustered by video)")
    axes.set_title(f"{summary['question']}\n{summary['title']}, N = {rows[0]['n']}", fontsize=10)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right", fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, metadata={"Software": None})
