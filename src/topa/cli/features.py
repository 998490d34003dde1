"""topa encode and topa features: stores of the features of videos and Tideos."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from topa.cli.terminal import (
    EncoderOption,
    JsonOption,
    check_folder_of,
    print_failures,
    print_json,
    show_progress,
)

if TYPE_CHECKING:
    from topa.features.extraction import Extraction
    from topa.features.writer import StoreWriter

# As topa.features has them, here without loading anything.
RuleName = Literal["middle", "paper", "linspace", "vlmevalkit", "mvbench"]
FormatName = Literal["safetensors", "pth", "npy", "pkl"]
TypeName = Literal["float32", "float16", "bfloat16"]
EngineName = Literal["local", "ray"]
DecoderName = Literal["auto", "pyav", "torchcodec"]

StoreArgument = Annotated[Path, typer.Argument(metavar="STORE", help="Folder of `topa encode`.")]
StoreOption = Annotated[
    Path, typer.Option("--out", metavar="STORE", help="Folder of the feature store.")
]
TypeOption = Annotated[TypeName, typer.Option("--dtype", help="Type of a new store.")]
TimeLimitOption = Annotated[
    float, typer.Option("--time-limit", min=0.1, help="Most seconds to read one video.")
]
MaxPixelsOption = Annotated[
    int, typer.Option("--max-pixels", min=1, help="Most pixels (width * height) of a frame.")
]
MaxFramesOption = Annotated[
    int, typer.Option("--max-frames", min=1, help="Most frames of one video, with --fps.")
]
DecoderOption = Annotated[
    DecoderName, typer.Option("--decoder", help="auto: torchcodec where it loads, else PyAV.")
]


def encode_videos(
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="DIR|LIST|VIDEO", help="Folders, lists of paths (.txt), videos."),
    ],
    save: StoreOption,
    frames: Annotated[int, typer.Option("--frames", min=1, help="Frames per video.")] = 10,
    rule: Annotated[RuleName, typer.Option("--rule", help="Which frames.")] = "middle",
    fps: Annotated[
        float | None, typer.Option("--fps", min=0.001, help="So many frames a second instead.")
    ] = None,
    encoder: EncoderOption = "embedded",
    dtype: TypeOption = "float32",
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Decoding processes.  [default: cores]")
    ] = None,
    time_limit: TimeLimitOption = 60.0,
    max_pixels: MaxPixelsOption = 2**26,
    max_frames: MaxFramesOption = 1024,
    decoder: DecoderOption = "pyav",
    engine: Annotated[
        EngineName, typer.Option("--engine", help="This machine's processes, or a Ray cluster.")
    ] = "local",
    device: Annotated[str, typer.Option("--device", help="Where the encoder runs.")] = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Encode the frames of videos into a feature store.

    A folder gives all videos in it. Videos that are in the store already are skipped, so a
    stopped job goes on where it was. A video that cannot be read is named at the end and in
    STORE/errors.jsonl, never replaced, and the exit code is 1.

    \b
    topa encode videos clips/ --out store/
    """
    from topa.features.encoder import load_encoder
    from topa.features.extraction import extract_videos, write_errors
    from topa.features.sources import Sampling, find_sources
    from topa.features.writer import StoreWriter

    sampling = Sampling(frames, rule, fps, max_pixels, max_frames, time_limit, decoder)
    sources = find_sources(inputs)
    network = load_encoder(encoder, device=device)
    writer = StoreWriter(save, network.fingerprint, network.dim, sampling.choice(), dtype)
    with writer, show_progress("videos") as show:
        progress = partial(show, "videos")
        if engine == "ray":
            from topa.scale.extraction import extract_with_ray

            result = extract_with_ray(
                sources, encoder, writer, sampling, device, decoders=workers, progress=progress
            )
        else:
            result = extract_videos(
                sources,
                network,
                writer,
                sampling,
                workers=workers,
                encoders=2 if device.startswith("cuda") else None,
                progress=progress,
            )
        errors = write_errors(save, result.failures)
    _report(result, writer, "videos", as_json)
    if result.failures:
        typer.echo(f"Errors: {errors}", err=True)
        raise typer.Exit(1)


def encode_textvid(
    source: Annotated[
        str, typer.Argument(metavar="TIDEOS.jsonl|textvid|everyday", help="Textual videos.")
    ],
    save: StoreOption,
    encoder: EncoderOption = "embedded",
    dtype: TypeOption = "float32",
    device: Annotated[str, typer.Option("--device", help="Where the encoder runs.")] = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Encode the frames of Tideos into a feature store.

    Captions are kept with them. Tideos that are in the store already are skipped.

    \b
    topa encode textvid mine.jsonl --out store/
    """
    from topa.features.encoder import load_encoder
    from topa.features.extraction import extract_tideos
    from topa.features.writer import StoreWriter
    from topa.tideo.textvid import load_tideos

    tideos = load_tideos(source)
    network = load_encoder(encoder, device=device)
    settings = {"frames": "of Tideos, all"}
    writer = StoreWriter(save, network.fingerprint, network.dim, settings, dtype)
    with writer, show_progress("Tideos") as show:
        result = extract_tideos(
            tideos,
            source,
            network,
            writer,
            progress=lambda done, total: show("Tideos", done, total),
        )
    _report(result, writer, "Tideos", as_json)


def _report(result: Extraction, writer: StoreWriter, kind: str, as_json: bool) -> None:
    """Print what a bulk job did, failures on stderr."""
    print_failures([(failure.id, failure.reason) for failure in result.failures])
    if as_json:
        print_json(
            {
                "store": str(writer.folder),
                "fingerprint": writer.store.fingerprint,
                **asdict(result),
            }
        )
        return
    typer.echo(
        f"{writer.folder}: {result.encoded} of {result.total} {kind} encoded"
        f" ({result.frames} frames, {result.seconds:.1f} s), {result.skipped} were there,"
        f" {len(result.failures)} failed."
    )


def verify(
    folder: StoreArgument,
    sources: Annotated[
        bool, typer.Option("--sources", help="Also compare every source file with its sha256.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check a feature store, file by file and row by row.

    \b
    topa features verify store/
    """
    from topa.features.verification import verify_store

    with show_progress("shards") as show:
        found = verify_store(
            folder, sources=sources, progress=lambda done, total: show("shards", done, total)
        )
    if as_json:
        print_json({"store": str(folder), "whole": not found.problems, **asdict(found)})
    else:
        print_failures([(str(folder), problem) for problem in found.problems])
        state = f"{len(found.problems)} problems" if found.problems else "whole"
        typer.echo(
            f"{folder}: {state}. {found.entries} videos or Tideos, {found.rows} rows,"
            f" {found.shards} shards."
        )
    if found.problems:
        raise typer.Exit(1)


def show(folder: StoreArgument, as_json: JsonOption = False) -> None:
    """List what is in a feature store.

    \b
    topa features show store/
    """
    from topa.features.shards import FeatureStore

    store = FeatureStore(folder)
    if as_json:
        rows: list[dict[str, Any]] = [asdict(entry) for entry in store.entries.values()]
        print_json({**store.header, "entries": rows})
        return
    typer.echo(f"{folder}: {len(store)} entries, {store.rows} rows of {store.fingerprint}")
    for entry in store.entries.values():
        length = "" if entry.duration is None else f", {entry.duration:.2f} s"
        typer.echo(f"  {entry.id}: {entry.rows} rows{length}")


def export_features(
    folder: StoreArgument,
    save: Annotated[Path, typer.Option("--out", metavar="PATH", help="File or folder to write.")],
    kind: Annotated[
        FormatName,
        typer.Option("--format", help="One file (safetensors, pth), or one per id (npy, pkl)."),
    ] = "safetensors",
) -> None:
    """Write a feature store in the form that another program reads.

    \b
    topa features export store/ --out features.safetensors
    topa features export store/ --out features/ --format npy
    """
    from topa.features.conversion import export_store
    from topa.features.shards import FeatureStore

    if kind in ("safetensors", "pth"):
        check_folder_of(save)
    store = FeatureStore(folder)
    with show_progress("entries") as progress:
        export_store(store, save, kind, lambda done, total: progress("entries", done, total))
    typer.echo(f"Wrote {save}: {len(store)} entries of {store.fingerprint}")


def import_files(
    source: Annotated[
        Path,
        typer.Argument(metavar="FILE|DIR", help=".pth, .pkl or .safetensors of many; or a folder."),
    ],
    save: StoreOption,
    name: Annotated[
        str, typer.Option("--encoder-name", help="Names the encoder that made the features.")
    ],
    rate: Annotated[float, typer.Option("--rate", min=0.001, help="Features per second.")] = 1.0,
    as_json: JsonOption = False,
) -> None:
    """Put features that another program wrote into a feature store.

    Pickles are read as data: none of the code in them is run. What cannot be read is named,
    and the exit code is 1.

    \b
    topa features import clipvitl14.pth --out store/ --encoder-name openai-vit-l-14
    """
    from topa.features.conversion import import_features

    with show_progress("files") as show:
        added, failures = import_features(
            source, save, name, rate=rate, progress=lambda done, total: show("files", done, total)
        )
    print_failures([(failure.id, failure.reason) for failure in failures])
    if as_json:
        print_json(
            {"store": str(save), "added": added, "failures": [asdict(item) for item in failures]}
        )
    else:
        typer.echo(f"{save}: {added} added, {len(failures)} failed.")
    if failures:
        raise typer.Exit(1)
