"""topa encode and topa memory build: features of videos and Tideos, kept in files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from topa.cli.terminal import (
    EncoderOption,
    JsonOption,
    check_folder_of,
    print_error,
    print_json,
    say,
    show_progress,
)

if TYPE_CHECKING:
    from torch import Tensor

    from topa.features.encoder import Encoder


def encode(
    inputs: Annotated[
        list[Path], typer.Argument(metavar="INPUT", help="Videos, or .jsonl files of Tideos.")
    ],
    save: Annotated[Path, typer.Option("--out", metavar="FILE.safetensors", help="File to write.")],
    frames: Annotated[int, typer.Option("--frames", min=1, help="Frames per video.")] = 10,
    encoder: EncoderOption = "embedded",
    as_json: JsonOption = False,
) -> None:
    """Encode the frames of videos and of Tideos.

    Writes one tensor [frames, d] for each video, by file name, or Tideo, by id. Image
    features are as the encoder gives them, not projected through a memory. An input that
    fails is listed, the others are written, and the exit code is 1.

    \b
    topa encode clips/a.mp4 clips/b.mp4 --out features.safetensors
    """
    check_folder_of(save)
    from topa.errors import ConfigError, DataError, VideoError
    from topa.features.encoder import load_encoder
    from topa.features.store import write_features

    network = load_encoder(encoder)
    features: dict[str, Tensor] = {}
    failures: list[tuple[str, str]] = []
    with show_progress("inputs") as progress:
        for done, path in enumerate(inputs, start=1):
            try:
                found = _encode_input(path, network, frames)
            except (VideoError, DataError) as error:
                failures.append((str(path), str(error)))
                found = {}
            if twice := sorted(set(found) & set(features)):
                raise ConfigError(
                    f"the name {twice[0]!r} occurs twice",
                    where=path,
                    mend="Features are kept by file name or id; encode the two apart.",
                )
            features.update(found)
            progress("inputs", done, len(inputs))
    if features:
        write_features(save, features, network.fingerprint)
    for _, reason in failures:
        print_error(reason)
    if as_json:
        print_json(
            {
                "out": str(save) if features else None,
                "fingerprint": network.fingerprint,
                "features": {name: list(rows.shape) for name, rows in features.items()},
                "failures": [{"input": name, "reason": reason} for name, reason in failures],
            }
        )
    elif features:
        typer.echo(f"Wrote {save}: {len(features)} of {network.fingerprint}")
    if failures:
        raise typer.Exit(1)


def _encode_input(path: Path, encoder: Encoder, num_frames: int) -> dict[str, Tensor]:
    """Return the features of one input by name.

    Raises:
        DataError: The file of Tideos is missing or wrong.
        VideoError: The video cannot be read.
    """
    from topa.features.store import encode_tideos
    from topa.features.video import read_clip
    from topa.tideo.schema import read_tideos

    if path.suffix == ".jsonl":
        tideos = read_tideos(path)
        rows = encode_tideos(tideos, encoder)
        return {tideo.id: rows.of(i) for i, tideo in enumerate(tideos)}
    clip = read_clip(path, num_frames=num_frames)
    return {path.name: encoder.encode_frames(clip.images)}


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
