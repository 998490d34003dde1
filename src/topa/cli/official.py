"""topa official: the authors' checkpoints, taken in, checked and written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from topa.cli.terminal import (
    JsonOption,
    check_folder_of,
    out,
    print_error,
    print_json,
    say,
    show_progress,
)

if TYPE_CHECKING:
    from topa.model.official.conversion import Import
    from topa.model.official.golden import Difference


def import_(
    save: Annotated[Path, typer.Argument(metavar="OUT", help="Checkpoint folder to write.")],
    llm: Annotated[
        str,
        typer.Option(
            "--llm",
            metavar="DIR|HF_ID",
            help="The LLM of the training: Meta's folder, or Hugging Face's folder or id.",
        ),
    ],
    checkpoint: Annotated[
        Path,
        typer.Option("--checkpoint", metavar="FILE.pth", help="The authors' checkpoint_N.pth."),
    ],
    memory: Annotated[
        Path | None,
        typer.Option(
            "--memory", metavar="memory.pkl", help="The authors' memory of text features."
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            "--tokenizer",
            metavar="tokenizer.model",
            help="Of an LLM in Meta's layout.  [default: in its folder or the one above]",
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder",
            metavar="NAME|DIR",
            help="The CLIP model of the features, loaded and recorded.  "
            "[default: OpenAI's ViT-L/14, by name alone]",
        ),
    ] = None,
    adapter_length: Annotated[
        int | None,
        typer.Option("--adapter-length", min=1, help="Prompts per layer, if not all layers have."),
    ] = None,
    rope_theta: Annotated[
        float, typer.Option("--rope-theta", help="Base of the rotary positions of the training.")
    ] = 10000.0,
    as_json: JsonOption = False,
) -> None:
    """Make a checkpoint folder of topa from the authors' files.

    An LLM in Meta's layout is converted into the folder; one in Hugging Face's is used where
    it is. Pickles are read as data: one that asks for code is refused.

    \b
    topa official import --llm llama2/7B --checkpoint checkpoint_19.pth --memory memory.pkl topa-7b
    """
    from topa.model.official.conversion import import_checkpoint

    with show_progress("layers") as progress:
        done = import_checkpoint(
            checkpoint,
            llm,
            save,
            memory=memory,
            tokenizer=tokenizer,
            encoder=encoder,
            adapter_length=adapter_length,
            rope_theta=rope_theta,
            progress=progress,
        )
    _print_import(done, as_json)


def _print_import(done: Import, as_json: bool) -> None:
    """Print what was made of the authors' files."""
    config = done.config
    if as_json:
        print_json(
            {
                "out": str(done.out),
                "llm": done.llm,
                "encoder": config.encoder,
                "num_frames": config.num_frames,
                "adapter_length": config.adapter_length,
                "skipped_layers": config.skipped_layers,
                "rope_theta": config.rope_theta,
                "memory_rows": done.memory_rows,
                "notes": done.notes,
            }
        )
        return
    for note in done.notes:
        say(f"Note: {note}.")
    rows = f", a memory of {done.memory_rows:,} rows" if done.memory_rows else ""
    typer.echo(
        f"Wrote {done.out}: {config.adapter_length} prompts a layer, {config.num_frames} frames"
        f"{rows}. LLM: {done.llm}. Encoder: {config.encoder}."
    )


def check(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="DIR", help="Folders with golden.safetensors. Default: bundled."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare topa with recorded outputs of the authors' code.

    Prints the largest absolute difference of the logits, log-likelihoods, loss and of every
    gradient; the exit code is 1 if one is above 1e-5 (of the largest value, where values are
    below 1), or if a tensor does not come back from import and export bit by bit.

    \b
    topa official check
    """
    from topa.model.official.golden import BUNDLED, TOLERANCE, check_golden

    reports: dict[str, list[Difference]] = {}
    for folder in folders or sorted(BUNDLED.iterdir()):
        reports[str(folder) if folders else folder.name] = check_golden(folder)
    fits = all(difference.fits for found in reports.values() for difference in found)
    if as_json:
        print_json(
            {
                "fits": fits,
                "tolerance": TOLERANCE,
                "folders": {
                    name: {
                        d.name: {"largest_difference": d.largest, "scale": d.scale, "fits": d.fits}
                        for d in found
                    }
                    for name, found in reports.items()
                },
            }
        )
    else:
        for name, found in reports.items():
            _print_differences(name, found)
    if not fits:
        print_error("topa differs from the authors' code; see the table")
        raise typer.Exit(1)


def _print_differences(name: str, found: list[Difference]) -> None:
    """Print one folder: a line for each computed tensor, one for all exported ones."""
    exported = [difference for difference in found if difference.name.startswith("export.")]
    table = Table(title=name, title_justify="left")
    table.add_column("compared", no_wrap=True)
    table.add_column("difference", justify="right")
    table.add_column("of at most", justify="right")
    table.add_column("values", justify="right")
    table.add_column("")
    for difference in found:
        if difference not in exported or not difference.fits:
            table.add_row(
                difference.name,
                f"{difference.largest:.1e}",
                f"{difference.scale:.1e}",
                f"{difference.values:,}",
                "ok" if difference.fits else "WRONG",
            )
    equal = sum(difference.fits for difference in exported)
    table.add_row("imported and exported", f"{equal} of {len(exported)}", "equal", "", "")
    out.print(table)


def export(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="Checkpoint folder of topa.")
    ],
    save: Annotated[Path, typer.Argument(metavar="OUT.pth", help="File to write.")],
    as_json: JsonOption = False,
) -> None:
    """Write a checkpoint as the authors' code loads it.

    \b
    topa official export topa-7b checkpoint_0.pth
    """
    from topa.model.official.conversion import export_checkpoint

    check_folder_of(save)
    tensors = export_checkpoint(checkpoint, save)
    if as_json:
        print_json({"out": str(save), "tensors": {n: list(t.shape) for n, t in tensors.items()}})
    else:
        typer.echo(f"Wrote {save}: {len(tensors)} tensors.")
