"""The model card of a checkpoint: what it is, what it was trained on, and how it measured."""

from __future__ import annotations

from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import yaml

from topa.errors import DataError
from topa.runs import read_json, write_text

if TYPE_CHECKING:
    from topa.model.pretrained import TopaPreTrainedModel

CARD_NAME = "README.md"


def write_card(
    model: TopaPreTrainedModel,
    folder: str | Path,
    run: str | Path | None = None,
    *,
    repo_id: str | None = None,
) -> Path:
    """Write the model card of a checkpoint.

    Args:
        model: The model.
        folder: Of the checkpoint.
        run: Run directory of the training; by default the one above the folder that the model
            was loaded from, if that is one.
        repo_id: Name on the hub, for the card's example.

    Raises:
        DataError: `run` is not a run directory.
    """
    source = (resources.files("topa.model") / "card.md.jinja").read_text(encoding="utf-8")
    template = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    ).from_string(source)
    config = model.config
    text = template.render(
        config=config,
        header=yaml.safe_dump(_header(config), sort_keys=False, allow_unicode=True).strip(),
        name=repo_id or str(folder),
        trained=sum(tensor.numel() for _, tensor in model.trainable_parameters()),
        frozen=sum(p.numel() for p in model.language_model.parameters() if not p.requires_grad),
        run=_read_run(_find_run(model, run)),
        version=metadata.version("topa"),
    )
    path = Path(folder) / CARD_NAME
    write_text(path, text)
    return path


def _header(config: Any) -> dict[str, Any]:
    """Return the fields that the hub reads; an LLM that is no model of the hub is left out."""
    header: dict[str, Any] = {
        "library_name": "topa",
        "pipeline_tag": "video-text-to-text",
        "tags": ["topa", "video-understanding", "text-only-training"],
    }
    if config.llm.count("/") == 1 and not Path(config.llm).exists():
        header["base_model"] = config.llm
    return header


def _find_run(model: TopaPreTrainedModel, run: str | Path | None) -> Path | None:
    if run is not None:
        if not (Path(run) / "config.yaml").is_file():
            raise DataError(
                "no config.yaml there", where=run, mend="Give the run directory of a training."
            )
        return Path(run)
    above = model.checkpoint.parent if model.checkpoint is not None else None
    return above if above is not None and (above / "config.yaml").is_file() else None


def _read_run(run: Path | None) -> dict[str, Any] | None:
    """Return settings, result and environment of a run; None where nothing is known of one."""
    if run is None:
        return None
    result, environment = run / "result.json", run / "environment.json"
    return {
        "settings": (run / "config.yaml").read_text(encoding="utf-8").strip(),
        "result": read_json(result) if result.is_file() else None,
        "environment": read_json(environment) if environment.is_file() else None,
    }
