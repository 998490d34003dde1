"""topa memory: the text features that image features are projected into."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from topa.cli.terminal import EncoderOption, JsonOption, print_json, say, show_progress


def build_memory(
    save: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write.")],
    sources: Annotated[
        list[str] | None,
        typer.Argument(metavar="TIDEOS.jsonl|textvid|everyday", help="Default: textvid."),
    ] = None,
    encoder: EncoderOption = "embedded",
    as_json: JsonOption = False,
) -> None:
    """Write the memory of Tideos.

    It holds the text feature and the caption of every frame.

    \b
    topa memory build textvid mine.jsonl --out memory/
    """
    from topa.features.encoder import load_encoder
    from topa.features.memory import Memory
    from topa.features.store import encode_tideos
    from topa.tideo.textvid import load_tideos

    tideos = [tideo for source in sources or ["textvid"] for tideo in load_tideos(source)]
    save.mkdir(parents=True, exist_ok=True)
    network = load_encoder(encoder)
    say(f"Encoding the frames of {len(tideos)} Tideos.")
    texts = len({text for tideo in tideos for frame in tideo.frames for text in frame.texts})
    with show_progress("texts") as progress:
        features = encode_tideos(
            tideos, network, progress=lambda done: progress("texts", done, texts)
        )
    memory = Memory.build(tideos, features)
    memory.save(save)
    if as_json:
        print_json(
            {
                "out": str(save),
                "rows": len(memory),
                "dim": memory.dim,
                "encoder": memory.fingerprint,
                "fingerprint": memory.fingerprint_of_content,
            }
        )
    else:
        typer.echo(f"Wrote {save}: {len(memory)} rows of size {memory.dim}")
