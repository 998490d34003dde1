"""The report of the demonstration: one page that needs no other file, and the same as JSON."""

from __future__ import annotations

import base64
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from topa.answer import Topa
from topa.demo.video import spell_share
from topa.eval.run import fingerprints_of
from topa.runs import environment, write_json, write_text

TEMPLATE = "report.html.jinja"


def describe_parts(topa: Topa, checkpoint: str | Path) -> dict[str, Any]:
    """Return names, fingerprints and versions of everything that took part.

    Args:
        topa: The model with encoder and memory.
        checkpoint: Where its trained weights came from: "embedded" or a folder.
    """
    config, memory = topa.model.config, topa.memory
    prints = fingerprints_of(topa)
    parts = {
        "checkpoint": f"{checkpoint} ({prints['checkpoint']})",
        "llm": f"{config.llm} ({prints['llm']})",
        "encoder": f"{config.encoder} ({prints['encoder']})",
        "variant": config.variant,
        "frames": config.num_frames,
        "prompts": config.template_version,
        "scoring": name_method(topa),
    }
    if memory is not None:
        parts["memory"] = (
            f"{len(memory):,} rows of {memory.dim} from {' + '.join(config.tideos)},"
            f" temperature {memory.temperature:g} ({prints['memory']})"
        )
    return {**parts, "environment": environment()}


def name_method(topa: Topa) -> str:
    """Return in words how the checkpoint scores options by default."""
    config = topa.model.config
    less = config.scoring == "likelihood" and config.subtract_blind
    return f"{config.scoring}, less that without the video" if less else str(config.scoring)


def write_report(report: dict[str, Any], out: Path) -> Path:
    """Write report.json and report.html to `out`, each whole or not at all.

    Args:
        report: What `run_demo` gathered; thumbnails are files below `out`.
        out: Folder of the report.

    Returns:
        The page.
    """
    write_json(out / "report.json", report)
    page = out / "report.html"
    write_text(page, render_report(report, out))
    return page


def render_report(report: dict[str, Any], out: Path) -> str:
    """Return the page; every text is escaped, every picture is inside."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["share"] = spell_share
    environment.filters["percent"] = lambda share, digits=0: f"{share:.{digits}%}"
    source = (resources.files("topa.demo") / TEMPLATE).read_text(encoding="utf-8")
    pictures = [_data_uri(out / frame["image"]) for frame in report["frames"]]
    return environment.from_string(source).render(**report, pictures=pictures)


def _data_uri(path: Path) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
