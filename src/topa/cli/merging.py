"""topa merge: a checkpoint as a plain LLM and a front, for engines that take embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from topa.cli.terminal import JsonOption, print_json, say


def merge(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help='Folder, hub id or "embedded".')
    ],
    save: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
    llm: Annotated[
        str | None,
        typer.Option("--llm", metavar="DIR|HF_ID", help="The LLM, if not where it was trained."),
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"],
        typer.Option("--dtype", help="Type of the LLM's weights on disk."),
    ] = "bfloat16",
    as_json: JsonOption = False,
) -> None:
    """Merge LoRA into plain weights, for engines without topa.

    OUT is then an LLM that transformers, vLLM and others load without topa; OUT/front makes the
    prompt embeddings that it is given. For the variants lora and projector.

    \b
    topa merge runs/align/final merged/
    """
    import torch

    from topa.model.export import FRONT_NAME, export_plain
    from topa.model.loading import load_model

    # Merged in 32 bits, and rounded once.
    model, builder = load_model(checkpoint, llm=llm, device="cpu", dtype=torch.float32)
    export_plain(model, builder.tokenizer, save, getattr(torch, dtype))
    front = save / "front" / FRONT_NAME
    if as_json:
        print_json({"llm": str(save), "front": str(front), "dtype": dtype})
    else:
        say(f"The LLM is in {save}, its front in {front}.")
