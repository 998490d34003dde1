"""The loss curve of a run, drawn from its log."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from topa.runs import atomic_path, read_jsonl


def draw_curve(log: Path, picture: Path) -> bool:
    """Draw training loss and validation accuracy over steps as a PNG.

    Args:
        log: metrics.jsonl of a run.
        picture: File to write.

    Returns:
        Whether it was drawn: matplotlib (extra `eval`) is not needed for training itself.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    rows = [row for _, row in read_jsonl(log)] if log.is_file() else []
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    axes.plot([step for step, _ in losses], [loss for _, loss in losses], label="training loss")
    axes.set(xlabel="step", ylabel="loss")
    measured = [row for row in rows if "eval_accuracy" in row]
    if measured:
        beside = axes.twinx()
        steps = [row["step"] for row in measured]
        for name, style in (("accuracy", "C1o-"), ("blind_accuracy", "C1o:")):
            beside.plot(
                steps,
                [row[f"eval_{name}"] for row in measured],
                style,
                label=f"validation {name.replace('_', ' ')}",
            )
        beside.set(ylabel="validation accuracy", ylim=(0, 1))
        beside.legend(loc="upper right")
    axes.legend(loc="lower left")
    with atomic_path(picture) as temporary:
        figure.savefig(temporary, dpi=120)
    return True
