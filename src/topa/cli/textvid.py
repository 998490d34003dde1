"""topa textvid check, filter, stats, audit, pack: how good Tideos are, and handing them on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from topa.cli.terminal import (
    EncoderOption,
    JsonOption,
    check_folder_of,
    out,
    print_error,
    print_json,
    say,
    show_progress,
)

if TYPE_CHECKING:
    from topa.features.store import TideoFeatures
    from topa.tideo.duplicates import Duplicate
    from topa.tideo.quality import Finding, Summary
    from topa.tideo.schema import Tideo

_SHOWN = 20

TideosArgument = Annotated[
    str,
    typer.Argument(
        metavar="TIDEOS",
        help="JSONL or Parquet, a folder of `generate` or `pack`, or a bundled set's name.",
    ),
]
NearOption = Annotated[
    Literal["words", "features", "none"],
    typer.Option("--near", help="Look for near-duplicates by MinHash of words, or by features."),
]


def check(
    file: TideosArgument,
    near: NearOption = "words",
    encoder: EncoderOption = "embedded",
    save: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.jsonl", help="Write every finding.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check Tideos, and count what gives their answers away.

    Invalid lines are listed with number and reason, and the exit code is 1. Findings (leaked
    answers, time words, near-duplicates, ...) are counted; --out writes each of them.

    \b
    topa textvid check tideos.jsonl
    """
    check_folder_of(save)
    from topa.tideo.quality import summarise
    from topa.tideo.textvid import inspect_tideos

    tideos, problems = inspect_tideos(file)
    summary, findings = summarise(tideos)
    duplicates = look_for_near(tideos, near, encoder)
    for path, line, reason in problems:
        print_error(f"{path}, line {line}: {reason}")
    if save is not None:
        _write_findings(save, findings, duplicates)
    captions = _repeated_captions(tideos)
    if as_json:
        invalid = [{"file": p, "line": line, "reason": reason} for p, line, reason in problems]
        near_ones = [asdict(duplicate) for duplicate in duplicates]
        print_json(
            {
                "file": file,
                "valid": len(tideos),
                "invalid": invalid,
                **summary.to_dict(),
                "duplicate_captions": captions,
                "near_duplicates": near_ones,
            }
        )
    else:
        _print_summary(summary, len(problems), captions, duplicates)
    if problems:
        raise typer.Exit(1)


def filter_(
    file: TideosArgument,
    save: Annotated[Path, typer.Option("--out", metavar="FILE.jsonl", help="What is kept.")],
    near: NearOption = "words",
    encoder: EncoderOption = "embedded",
    drop: Annotated[
        list[str] | None,
        typer.Option("--drop", help="Rules of `check` whose Tideos go whole, e.g. time-word."),
    ] = None,
    audit_file: Annotated[
        Path | None,
        typer.Option("--audit", help="answers.jsonl of an audit: drop what was answered blind."),
    ] = None,
    balance: Annotated[
        bool, typer.Option("--rebalance", help="Even out place and length of right options.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Leave out near-duplicates and doubtful questions.

    The account is written beside the result, as FILE.report.json. A Tideo that keeps fewer
    than three questions goes whole.

    \b
    topa textvid filter runs/textvid --out good.jsonl --drop time-word --rebalance
    """
    check_folder_of(save)
    from topa.errors import ConfigError
    from topa.runs import write_json
    from topa.tideo.filters import FilterReport, drop_questions, drop_tideos, rebalance
    from topa.tideo.quality import RULES, find_faults
    from topa.tideo.schema import write_tideos
    from topa.tideo.textvid import load_tideos

    if unknown := sorted(set(drop or ()) - set(RULES)):
        raise ConfigError(
            f"no rule {unknown[0]!r}", where="--drop", mend=f"Known: {', '.join(RULES)}."
        )
    tideos = load_tideos(file)
    near_ones = look_for_near(tideos, near, encoder)
    reasons = {item.id: f"near-duplicate: {item.of}" for item in near_ones}
    for tideo in tideos:
        for finding in find_faults(tideo):
            if finding.rule in (drop or ()):
                reasons.setdefault(tideo.id, f"{finding.rule}: {finding.detail}")
    report = FilterReport()
    kept = drop_tideos(tideos, reasons, report)
    guessed = _guessed(audit_file) if audit_file is not None else []
    kept = drop_questions(kept, report, guessed=guessed)
    if balance:
        kept = rebalance(kept, report)
    write_tideos(save, kept)
    account = save.with_suffix(".report.json")
    write_json(account, report.to_dict())
    if as_json:
        print_json({"out": str(save), **report.to_dict()})
        return
    typer.echo(f"{save}: {report.kept:,} of {report.read:,} Tideos; account in {account}")
    for reason, count in sorted(report.tideos.items()):
        typer.echo(f"  Tideos left out, {reason}: {count:,}")
    for reason, count in sorted(report.questions.items()):
        typer.echo(f"  questions left out, {reason}: {count:,}")
    if balance:
        typer.echo(f"  right options moved: {report.moved:,}")


def stats(
    file: TideosArgument,
    folder: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the page.")],
    with_map: Annotated[
        bool, typer.Option("--map", help="Encode the Tideos, and lay them out in the plane.")
    ] = False,
    encoder: EncoderOption = "embedded",
    as_json: JsonOption = False,
) -> None:
    """Measure Tideos source by source, as figures and a page.

    \b
    topa textvid stats runs/textvid --out runs/textvid/stats --map
    """
    from topa.tideo.plots import write_page
    from topa.tideo.statistics import measure_tideos
    from topa.tideo.textvid import load_tideos

    tideos = load_tideos(file)
    found = measure_tideos(tideos)
    points = None
    if with_map:
        from topa.features.layout import lay_out

        points = lay_out(tideos, encode_all(tideos, encoder))
    page = write_page(folder, found, points, name=file)
    if as_json:
        print_json({"page": str(page), **found})
        return
    typer.echo(
        f"{found['tideos']:,} Tideos, {found['frames']:,} frames, {found['questions']:,} questions"
    )
    vocabulary = found["vocabulary"]
    for source, row in vocabulary["sources"].items():
        typer.echo(
            f"  {source:<8} {row['different_words']:,} different words in"
            f" {vocabulary['tideos_per_source']:,} Tideos"
        )
    typer.echo(f"Page: {page}")


def pack(
    file: TideosArgument,
    folder: Annotated[Path, typer.Option("--to", metavar="DIR", help="Dataset folder to make.")],
    form: Annotated[Literal["parquet", "jsonl"], typer.Option("--format")] = "parquet",
    shard: Annotated[int, typer.Option("--shard-size", min=1, help="Tideos in a shard.")] = 10_000,
    licence: Annotated[
        str, typer.Option("--license", help="For the card; your model's terms decide.")
    ] = "other",
    as_json: JsonOption = False,
) -> None:
    """Write Tideos as a dataset folder with a card.

    Hugging Face's `datasets` reads it, and so does `topa align data.tideos=DIR`.

    \b
    topa textvid pack runs/textvid --to datasets/textvid
    """
    from topa.runs import read_json
    from topa.tideo.pack import pack_dataset
    from topa.tideo.results import read_results
    from topa.tideo.textvid import load_tideos

    run = Path(file)
    about: dict[str, Any] = {"name": folder.name}
    tideos = read_results(run) if (run / "journal").is_dir() else load_tideos(file)
    if (run / "settings.json").is_file():
        settings = read_json(run / "settings.json")
        names = ("model", "prompt_version", "mode", "examples", "temperature", "seeds")
        about |= {name: settings[name] for name in names if name in settings}
    summary = pack_dataset(tideos, folder, form=form, shard=shard, about=about, licence=licence)
    if as_json:
        print_json({"to": str(folder), "tideos": summary.tideos, **summary.to_dict()})
    else:
        typer.echo(f"{folder}: {summary.tideos:,} Tideos, with README.md and summary.json")


def look_for_near(
    tideos: list[Tideo], near: Literal["words", "features", "none"], encoder: str
) -> list[Duplicate]:
    """Return the Tideos that are near an earlier one, by words or by features."""
    if near == "words":
        from topa.tideo.duplicates import find_duplicates

        return find_duplicates(tideos)
    if near == "features" and tideos:
        from topa.features.layout import find_near

        return find_near(tideos, encode_all(tideos, encoder))
    return []


def encode_all(tideos: list[Tideo], encoder: str) -> TideoFeatures:
    """Return the features of Tideos, with a bar."""
    from topa.features.encoder import load_encoder
    from topa.features.store import encode_tideos

    network = load_encoder(encoder)
    texts = len({text for tideo in tideos for frame in tideo.frames for text in frame.texts})
    say(f"Encoding {texts:,} texts.")
    with show_progress("texts") as progress:
        return encode_tideos(tideos, network, progress=lambda done: progress("texts", done, texts))


def _guessed(path: Path) -> list[tuple[str, int]]:
    from topa.errors import DataError
    from topa.runs import read_jsonl

    found = []
    for number, row in read_jsonl(path):
        if not {"tideo", "question", "view", "right"} <= row.keys():
            raise DataError("not an answer of `topa textvid audit`", where=f"{path}, line {number}")
        if row["view"] == "blind" and row["right"]:
            found.append((row["tideo"], row["question"]))
    return found


def _write_findings(
    path: Path, findings: Sequence[Finding], duplicates: Sequence[Duplicate]
) -> None:
    from topa.tideo.results import write_lines

    rows = [asdict(finding) for finding in findings]
    rows += [{"rule": "near-duplicate", **asdict(item)} for item in duplicates]
    write_lines(path, (json.dumps(row, ensure_ascii=False) for row in rows))


def _repeated_captions(tideos: Sequence[Tideo]) -> list[str]:
    from collections import Counter

    counts = Counter(tideo.caption.casefold() for tideo in tideos)
    return [tideo.id for tideo in tideos if counts[tideo.caption.casefold()] > 1]


def _print_summary(
    summary: Summary, invalid: int, captions: list[str], duplicates: Sequence[Duplicate]
) -> None:
    def row(name: str, text: str) -> None:
        out.print(f"{name + ':':<28}{text}", markup=False, soft_wrap=True)

    def shares(counts: dict[Any, int]) -> str:
        return ", ".join(f"{name} {count}" for name, count in counts.items())

    found, valid = summary.to_dict(), summary.tideos
    row("Tideos", f"{valid} valid, {invalid} invalid lines")
    if not valid:
        return
    row("sources", shares(found["sources"]))
    row("frames", f"{found['frames']} ({found['frames'] / valid:.1f} per Tideo)")
    row("questions", f"{found['questions']} ({shares(found['kinds'])})")
    letters = {chr(ord("A") + i): count for i, count in found["answer_positions"].items()}
    excess = found["position_excess"]
    beyond = f" (the most frequent: {excess:+.1f} standard errors)" if excess is not None else ""
    row("right option", f"{shares(letters)}{beyond}")
    chance = f"(chance {found['chance']:.1%})"
    row("right option alone longest", f"{found['right_is_longest']:.1%} {chance}")
    row("right option alone shortest", f"{found['right_is_shortest']:.1%} {chance}")
    row("captions that occur twice", ", ".join(captions[:_SHOWN]) if captions else "none")
    near = ", ".join(f"{item.id} like {item.of}" for item in duplicates[:_SHOWN])
    row("near-duplicates", f"{len(duplicates)}{': ' + near if near else ''}")
    rules = {rule: count for rule, count in found["findings"].items() if count}
    row("doubtful", shares(rules) if rules else "nothing")
