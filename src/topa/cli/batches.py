"""topa textvid batch export and import: writing Tideos through batch files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from topa.cli.terminal import JsonOption, check_folder_of, print_error, print_json, say
from topa.cli.writing import (
    ExamplesOption,
    MaxOption,
    ModelOption,
    OutOption,
    PriceInOption,
    PriceOutOption,
    SeedsOption,
    ShuffleOption,
    StepsOption,
    TemperatureOption,
    TokensOption,
    WordnetOption,
    gather,
    make_recipe,
    parse_extra,
)


def export_batch(
    requests: Annotated[Path, typer.Argument(metavar="REQUESTS.jsonl", help="File to write.")],
    seeds: SeedsOption,
    out: OutOption,
    model: ModelOption,
    most: MaxOption = None,
    shuffle: ShuffleOption = 0,
    wordnet: WordnetOption = None,
    mode: StepsOption = "one",
    examples: ExamplesOption = None,
    max_tokens: TokensOption = 3000,
    temperature: TemperatureOption = 1.0,
    extra: Annotated[
        str, typer.Option("--extra", metavar="JSON", help="Further fields of each body.")
    ] = "{}",
    as_json: JsonOption = False,
) -> None:
    """Write the next request of every unfinished seed.

    For the batch endpoints of hosted services (about half the price) and `vllm run-batch`. Take
    the results in with `topa textvid batch import` and the same options; then export again
    for what needs another step, until nothing is left.

    \b
    topa textvid batch export requests.jsonl --seeds wordnet --model MODEL --out runs/textvid
    """
    check_folder_of(requests)
    from topa.tideo.offline import export_requests

    recipe = make_recipe(model, mode, examples, max_tokens, temperature)
    found = gather(seeds, most, shuffle, wordnet)
    count = export_requests(found.seeds, recipe, out, requests, extra=parse_extra(extra))
    if as_json:
        print_json({"requests": count, "seeds": len(found.seeds), "file": str(requests)})
    else:
        typer.echo(f"{requests}: {count:,} requests for {len(found.seeds):,} seeds")


def import_batch(
    results: Annotated[Path, typer.Argument(metavar="RESULTS.jsonl", help="What came back.")],
    seeds: SeedsOption,
    out: OutOption,
    model: ModelOption,
    most: MaxOption = None,
    shuffle: ShuffleOption = 0,
    wordnet: WordnetOption = None,
    mode: StepsOption = "one",
    examples: ExamplesOption = None,
    max_tokens: TokensOption = 3000,
    temperature: TemperatureOption = 1.0,
    price_in: PriceInOption = 0.0,
    price_out: PriceOutOption = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Take the results of a batch file into a run. A file taken in twice counts once.

    The exit code is 1 if a line holds an error or belongs to no seed.

    \b
    topa textvid batch import results.jsonl --seeds wordnet --model MODEL --out runs/textvid
    """
    from topa.tideo.journal import read_state
    from topa.tideo.offline import import_results
    from topa.tideo.pace import Pace
    from topa.tideo.results import write_results

    recipe = make_recipe(model, mode, examples, max_tokens, temperature)
    found = gather(seeds, most, shuffle, wordnet)
    pace = Pace(price_in=price_in, price_out=price_out)
    report = import_results(found.seeds, recipe, out, results, pace)
    state = read_state(out)
    outcome = {"import": vars(report), "ledger": state.ledger.to_dict(), "total": len(found.seeds)}
    write_results(out, outcome)
    for name, problem in list(report.errors.items())[:20]:
        print_error(f"{results}, {name}: {problem}")
    for name in report.unknown[:20]:
        print_error(f"{results}, {name}: belongs to no seed of these options")
    if as_json:
        print_json(outcome)
    else:
        typer.echo(
            f"{report.done:,} Tideos, {report.failed:,} failed, {report.waiting:,} need another"
            f" step, {report.repeated:,} known before, {len(report.errors):,} errors,"
            f" {len(report.unknown):,} of no seed"
        )
        if report.waiting or report.errors:
            say("Export again for what is left.")
    if report.errors or report.unknown:
        raise typer.Exit(1)
