"""topa textvid official import and export: the authors' textvid.json, features and memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from topa.cli.terminal import (
    EncoderOption,
    JsonOption,
    check_folder_of,
    print_error,
    print_failures,
    print_json,
)
from topa.cli.textvid import TideosArgument, encode_all

if TYPE_CHECKING:
    from topa.tideo.official import OfficialRecords


def import_textvid(
    file: Annotated[Path, typer.Argument(metavar="textvid.json", help="The authors' file.")],
    save: Annotated[Path, typer.Option("--out", metavar="FILE.jsonl", help="Tideos to write.")],
    source: Annotated[
        str, typer.Option("--source", help="Style to record, as the file does not say.")
    ] = "unknown",
    features: Annotated[
        Path | None, typer.Option("--features", metavar="DIR", help="Folder of <idx>.pkl files.")
    ] = None,
    memory: Annotated[
        Path | None, typer.Option("--memory", metavar="memory.pkl", help="Their memory.")
    ] = None,
    name: Annotated[
        str, typer.Option("--encoder-name", help="Names the encoder that made the features.")
    ] = "openai/clip-vit-large-patch14",
    as_json: JsonOption = False,
) -> None:
    """Convert the authors' Tideos, features and memory.

    Features go to FILE.safetensors beside the Tideos, the memory to the folder FILE.memory.
    Records that are no Tideos are listed by index, and the exit code is 1.

    \b
    topa textvid official import textvid.json --out textvid.jsonl --features feats/
    """
    check_folder_of(save)
    from typing import get_args

    from topa.errors import ConfigError
    from topa.tideo.official import read_official
    from topa.tideo.schema import Source, write_tideos

    if source not in get_args(Source):
        known = ", ".join(get_args(Source))
        raise ConfigError(f"unknown source {source!r}", where="--source", mend=f"Use {known}.")
    records = read_official(file, source=source)  # type: ignore[arg-type]
    write_tideos(save, records.tideos)
    failures = _import_features(records, features, save, name)
    if memory is not None:
        from topa.features.official import read_memory

        read_memory(memory, name).save(save.with_suffix(".memory"))
    for index, idx, reason in records.problems:
        print_error(f"{file}, record {index} (idx {idx or 'missing'}): {reason}")
    print_failures(failures)
    if as_json:
        problems = [{"index": i, "idx": n, "reason": why} for i, n, why in records.problems]
        print_json(
            {
                "tideos": len(records.tideos),
                "problems": problems,
                "features_failed": [{"idx": n, "reason": why} for n, why in failures],
            }
        )
    else:
        typer.echo(
            f"{len(records.tideos):,} Tideos, {len(records.problems):,} records that do not fit,"
            f" {len(failures):,} without features; wrote {save}"
        )
    if records.problems or failures:
        raise typer.Exit(1)


def _import_features(
    records: OfficialRecords, folder: Path | None, save: Path, name: str
) -> list[tuple[str, str]]:
    """Write the frame features beside the Tideos; return id and reason of what failed."""
    if folder is None:
        return []
    from topa.features.official import read_tideo_features
    from topa.features.store import write_features

    found, failures = read_tideo_features(records, folder)
    write_features(save.with_suffix(".safetensors"), found, name)
    return failures


def export_textvid(
    file: TideosArgument,
    save: Annotated[Path, typer.Option("--out", metavar="textvid.json", help="File to write.")],
    features: Annotated[
        Path | None,
        typer.Option("--features", metavar="DIR", help="Encode too: <idx>.pkl and memory.pkl."),
    ] = None,
    encoder: EncoderOption = "embedded",
    as_json: JsonOption = False,
) -> None:
    """Write Tideos in the authors' format, for their training code.

    \b
    topa textvid official export good.jsonl --out textvid.json --features feats/
    """
    check_folder_of(save)
    from topa.tideo.official import write_official
    from topa.tideo.textvid import load_tideos

    tideos = load_tideos(file)
    count = write_official(save, tideos)
    if features is not None:
        from topa.features.memory import Memory
        from topa.features.official import write_memory, write_tideo_features

        rows = encode_all(tideos, encoder)
        write_tideo_features(features, tideos, rows)
        write_memory(features / "memory.pkl", Memory.build(tideos, rows))
    if as_json:
        print_json({"out": str(save), "records": count, "features": str(features or "") or None})
    else:
        typer.echo(f"{save}: {count:,} records")
