"""topa memory: the text features that image features are projected into."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from topa.cli.terminal import (
    EncoderOption,
    JsonOption,
    VideoArgument,
    check_folder_of,
    print_json,
    say,
    show_progress,
)

# The names of topa.features.reduction.REDUCTIONS and attention.STORAGES.
ReductionName = Literal["sample", "kmeans", "farthest"]
StorageName = Literal["float32", "float16", "bfloat16", "int8"]


SourcesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="STORE|TIDEOS.jsonl|textvid|everyday",
        help="Stores of `topa encode textvid`, or Tideos to encode.  [default: textvid]",
    ),
]
MeanShiftOption = Annotated[
    Path | None,
    typer.Option(
        "--mean-shift",
        metavar="STORE",
        help="Store of `topa encode videos`: move image features by the difference of its mean and"
        " the memory's, instead of projecting them.",
    ),
]


def build_memory(
    save: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write.")],
    sources: SourcesArgument = None,
    rows: Annotated[int | None, typer.Option("--rows", min=1, help="Most rows to keep.")] = None,
    reduction: Annotated[
        ReductionName, typer.Option("--reduction", help="How --rows are chosen.")
    ] = "sample",
    distinct: Annotated[
        float | None,
        typer.Option("--distinct", max=1.0, help="Leave out rows as similar to one before."),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", min=0.1, help="tau.  [default: what suits the encoder]"),
    ] = None,
    storage: Annotated[StorageName, typer.Option("--storage", help="Type of rows.")] = "float32",
    mean_shift: MeanShiftOption = None,
    encoder: EncoderOption = "embedded",
    as_json: JsonOption = False,
) -> None:
    """Write the memory of Tideos.

    It holds the text feature and the caption of every frame, or of a choice of them. Use it
    with --memory of `topa ask` and `topa evaluate`.

    \b
    topa memory build textvid mine.jsonl --out memory/
    topa memory build store/ --rows 100000 --reduction kmeans --storage float16 --out memory/
    """
    import tempfile

    from topa.features.reduction import memory_of_stores
    from topa.features.shards import FeatureStore

    names = sources or ["textvid"]
    images = None if mean_shift is None else FeatureStore(mean_shift)
    with tempfile.TemporaryDirectory() as scratch:
        folders = [
            Path(name) if Path(name).is_dir() else _encode(name, Path(scratch) / str(i), encoder)
            for i, name in enumerate(names)
        ]
        with show_progress("rows") as progress:
            memory = memory_of_stores(
                [FeatureStore(folder) for folder in folders],
                rows=rows,
                method=reduction,
                distinct=distinct,
                temperature=temperature,
                storage=storage,
                images=images,
                progress=progress,
            )
        memory.save(save)
    if as_json:
        print_json(
            {
                "out": str(save),
                "rows": len(memory),
                "dim": memory.dim,
                "storage": memory.storage,
                "temperature": memory.temperature,
                "projection": memory.projection,
                "encoder": memory.fingerprint,
                "fingerprint": memory.fingerprint_of_content,
            }
        )
    else:
        typer.echo(f"Wrote {save}: {len(memory)} rows of size {memory.dim}")


def _encode(source: str, folder: Path, encoder: str) -> Path:
    """Write the features of Tideos into a store, and return it."""
    from topa.features.encoder import load_encoder
    from topa.features.extraction import extract_tideos
    from topa.features.writer import StoreWriter
    from topa.tideo.textvid import load_tideos

    tideos = load_tideos(source)
    network = load_encoder(encoder)
    say(f"Encoding the frames of {len(tideos)} Tideos.")
    with (
        StoreWriter(folder, network.fingerprint, network.dim, {}) as writer,
        show_progress("Tideos") as show,
    ):
        extract_tideos(
            tideos,
            source,
            network,
            writer,
            progress=lambda done, total: show("Tideos", done, total),
        )
    return folder


def inspect_memory(
    video: VideoArgument,
    save: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE.html|FILE.png", help="Page or picture to write."),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--memory", metavar="DIR", help="A memory.  [default: the one that `topa ask` takes]"
        ),
    ] = None,
    frames: Annotated[int, typer.Option("--frames", min=1, help="Frames to look at.")] = 10,
    captions: Annotated[int, typer.Option("--captions", min=1, help="Captions per frame.")] = 5,
    encoder: EncoderOption = "embedded",
    as_json: JsonOption = False,
) -> None:
    """Show which captions of the memory explain each frame of a video.

    \b
    topa memory inspect clip.mp4 --out clip.html
    topa memory inspect clip.mp4 --out clip.png
    """
    from topa.features.encoder import load_encoder
    from topa.features.inspection import check_picture, draw_picture, inspect_clip, write_page
    from topa.features.memory import Memory, build_memory
    from topa.features.video import read_clip
    from topa.model.checkpoint import read_config

    as_picture = save is not None and save.suffix.lower() == ".png"
    check_folder_of(save)
    if as_picture:
        check_picture()
    network = load_encoder(encoder)
    clip = read_clip(video, num_frames=frames)
    if folder is None:  # what the embedded checkpoint was trained with, and is in the cache
        memory = build_memory(read_config("embedded").tideos, network)
    else:
        memory = Memory.load(folder, network.fingerprint)
    found = inspect_clip(clip, network, memory, captions)
    if save is not None:
        write = draw_picture if as_picture else write_page
        write(save, clip, memory, found)
    if as_json:
        print_json([frame.row() for frame in found])
        return
    for frame in found:
        typer.echo(
            f"{frame.time:8.2f} s  {frame.rows_in_use:.1f} rows in use,"
            f" {frame.dropped:.0%} of the weight beyond these captions"
        )
        for weight, caption in zip(frame.weights, frame.captions, strict=True):
            typer.echo(f"    {weight:4.0%}  {caption}")
    if save is not None:
        typer.echo(f"Wrote {save}")
