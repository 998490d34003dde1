"""What the commands that write Tideos share: options, seeds, backends, progress, the end."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from topa.cli.terminal import err, print_error, print_json, say

if TYPE_CHECKING:
    from topa.tideo.backends import Backend, EndpointSettings
    from topa.tideo.composition import Recipe
    from topa.tideo.pace import Pace
    from topa.tideo.prompts import PromptStyle
    from topa.tideo.seeds import SeedList
    from topa.tideo.status import RunStatus

SeedsOption = Annotated[
    list[str],
    typer.Option(
        "--seeds",
        metavar="wordnet|topic:TEXT|FILE[,column=C][,source=S][,weight=W]",
        help="A source of seeds; give it several times for a mix. Files: txt, csv, tsv, jsonl,"
        " parquet. WordNet also takes ,pos=n|v|nv and ,min_count=N.",
    ),
]
MaxOption = Annotated[int | None, typer.Option("--max", min=1, help="Use at most N seeds.")]
ShuffleOption = Annotated[int, typer.Option("--shuffle", help="Seed of the shuffle of seeds.")]
WordnetOption = Annotated[
    Path | None,
    typer.Option("--wordnet", metavar="DIR", help="Folder of WordNet's files (data.noun, ...)."),
]
ModelOption = Annotated[
    str,
    typer.Option("--model", help="Name at the endpoint; `embedded` is SmolLM2-135M, slow."),
]
UrlOption = Annotated[
    str | None,
    typer.Option("--base-url", help="OpenAI-compatible endpoint.  [default: OpenAI's own]"),
]
KeyOption = Annotated[
    str, typer.Option("--key-variable", help="Environment variable that holds the key.")
]
TimeoutOption = Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds per request.")]
StepsOption = Annotated[
    Literal["one", "two"],
    typer.Option("--mode", help="JSON at once, or a free story first and then its structure."),
]
ExamplesOption = Annotated[
    int | None,
    typer.Option("--examples", min=0, help="Tideos shown as examples.  [default: 2]"),
]
OutOption = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the run.")]
PriceInOption = Annotated[
    float, typer.Option("--price-in", min=0, help="USD per million prompt tokens.")
]
PriceOutOption = Annotated[
    float, typer.Option("--price-out", min=0, help="USD per million completion tokens.")
]
TokensOption = Annotated[int, typer.Option("--max-tokens", min=16, help="Of one reply.")]
TemperatureOption = Annotated[float, typer.Option("--temperature", min=0)]
ConcurrencyOption = Annotated[
    int, typer.Option("--concurrency", min=1, help="Most requests at once.")
]
BudgetOption = Annotated[
    float | None, typer.Option("--budget", min=0, help="USD, never exceeded; needs prices.")
]
RequestsOption = Annotated[float | None, typer.Option("--rpm", help="Most requests a minute.")]
TokenRateOption = Annotated[float | None, typer.Option("--tpm", help="Most tokens a minute.")]
AttemptsOption = Annotated[int, typer.Option("--attempts", min=1, help="Of one request.")]
ExtraOption = Annotated[
    str, typer.Option("--extra", metavar="JSON", help="Further fields of the request body.")
]
RetryOption = Annotated[bool, typer.Option("--retry-failed", help="Take up failed seeds again.")]
EngineOption = Annotated[
    Literal["local", "ray"], typer.Option("--engine", help="One process, or a Ray cluster.")
]
WorkersOption = Annotated[int, typer.Option("--workers", min=1, help="Of the Ray engine.")]
DryOption = Annotated[
    bool, typer.Option("--dry-run", help="Count seeds, tokens and cost; send nothing.")
]


def gather(seeds: list[str], most: int | None, shuffle: int, wordnet: Path | None) -> SeedList:
    """Return the seeds of the options.

    Raises:
        DataError: There are none.
    """
    from topa.errors import DataError
    from topa.tideo.seeds import gather_seeds, parse_spec

    specs = [parse_spec(spec) for spec in seeds]
    found = gather_seeds(specs, shuffle=shuffle, limit=most, wordnet=wordnet)
    if not found.seeds:
        raise DataError("no seeds", where=", ".join(seeds))
    return found


def choose_style(
    model: str, mode: Literal["one", "two"] = "one", examples: int | None = None
) -> PromptStyle:
    """Return the prompts for a model: small ones for the embedded LLM."""
    from dataclasses import replace

    from topa.tideo.prompts import COMPACT, PromptStyle

    style = COMPACT if model == "embedded" else PromptStyle()
    return replace(style, mode=mode, examples=style.examples if examples is None else examples)


def make_recipe(
    model: str,
    mode: Literal["one", "two"],
    examples: int | None,
    max_tokens: int,
    temperature: float,
) -> Recipe:
    """Return what is asked for; the embedded LLM is asked afresh instead of being corrected."""
    from topa.tideo.composition import Recipe

    style = choose_style(model, mode, examples)
    if model == "embedded":
        limit = min(max_tokens, 1500)
        return Recipe(model, style, limit, temperature, corrections=9, fresh=True)
    return Recipe(model, style, max_tokens, temperature)


def make_backend(endpoint: EndpointSettings) -> Backend:
    """Return the backend of a model's name."""
    if endpoint.model == "embedded":
        from topa.model.writer import LanguageWriter

        say("The embedded LLM writes on this machine: slow and simple, minutes for a few Tideos.")
        return LanguageWriter()
    if endpoint.model.startswith("vllm:"):
        from topa.tideo.offline import VllmBackend

        return VllmBackend(endpoint.model.removeprefix("vllm:"))
    from topa.tideo.backends import EndpointBackend

    return EndpointBackend(endpoint)


def check_pace(pace: Pace) -> None:
    """Refuse limits that cannot be kept.

    Raises:
        ConfigError: A budget without prices, or a rate that is not above 0.
    """
    from topa.errors import ConfigError

    if pace.budget is not None and not (pace.price_in or pace.price_out):
        raise ConfigError(
            "a budget needs prices",
            where="--budget",
            mend="Add --price-in and --price-out, USD per million tokens.",
        )
    for name, rate in (("--rpm", pace.requests_per_minute), ("--tpm", pace.tokens_per_minute)):
        if rate is not None and rate <= 0:
            raise ConfigError("must be above 0", where=name)


def parse_extra(text: str) -> dict[str, Any]:
    """Return the JSON object of --extra.

    Raises:
        ConfigError: It is none.
    """
    from topa.errors import ConfigError

    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"not JSON ({error.msg})", where="--extra") from None
    if not isinstance(value, dict):
        raise ConfigError("a JSON object is needed", where="--extra")
    return value


def write_settings(out: Path, settings: dict[str, Any]) -> None:
    """Record what a run was started with; the key is never part of it."""
    from topa.runs import environment, write_json

    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "settings.json", {**settings, "environment": environment()})


def describe_recipe(recipe: Recipe, endpoint: EndpointSettings) -> dict[str, Any]:
    return {
        "model": recipe.model,
        "base_url": endpoint.base_url,
        "prompt_version": recipe.style.version,
        "mode": recipe.style.mode,
        "examples": recipe.style.examples,
        "max_tokens": recipe.max_tokens,
        "temperature": recipe.temperature,
        "extra": endpoint.extra,
    }


@contextlib.contextmanager
def show_run(total: int) -> Iterator[Callable[[RunStatus], None]]:
    """Show done, failed, tokens, cost, rate and time left on stderr, if that is a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bars:
        task = bars.add_task("Tideos", total=total, state="")

        def report(status: RunStatus) -> None:
            ledger = status.ledger
            tokens = (ledger.prompt_tokens + ledger.completion_tokens) / 1e6
            state = (
                f"{status.failed} failed, {tokens:.2f}M tokens, ${ledger.cost:.2f},"
                f" {status.rate:.1f}/s, {status.at_once} at once"
            )
            bars.update(task, completed=status.done + status.failed, state=state)

        yield report


def finish_run(out: Path, status: RunStatus, settings: dict[str, Any], as_json: bool) -> None:
    """Write the results of a run, print what came of it, and set the exit code."""
    from topa.tideo.results import FAILURES, write_results

    report = {**status.to_dict(), "settings": settings}
    written = write_results(out, report)
    ledger = status.ledger
    if as_json:
        print_json({"out": str(out), **report})
    else:
        typer.echo(
            f"{out}: {status.done:,} Tideos, {status.failed:,} failed,"
            f" {report['left']:,} left of {status.total:,}"
        )
        if written != status.done:
            typer.echo(f"tideos.jsonl holds {written:,}, those of other settings included.")
        faults = ", ".join(f"{kind} {count}" for kind, count in sorted(ledger.faults.items()))
        typer.echo(
            f"{ledger.requests:,} requests ({faults or 'no faults'}), {ledger.prompt_tokens:,}"
            f" + {ledger.completion_tokens:,} tokens, ${ledger.cost:.4f}"
        )
        if ledger.unknown:
            typer.echo(
                f"{ledger.unknown} requests were on their way when a run was killed; they may"
                f" have cost up to ${ledger.open_cost:.4f} more."
            )
    if status.failed:
        _tell_failures(out / FAILURES)
    if status.stopped:
        say(f"Stopped: {status.stopped}. Run the same command again to go on.")
    if status.stopped == "interrupted":
        raise typer.Exit(130)
    if report["left"] or status.failed:
        raise typer.Exit(1)


def _tell_failures(path: Path) -> None:
    """Print the three most frequent reasons on stderr, and where all of them are."""
    from topa.runs import read_jsonl

    reasons = Counter(row["reason"] for _, row in read_jsonl(path))
    for reason, count in reasons.most_common(3):
        print_error(f"{count:,} failed: {reason}")
    say(
        f"Failures: {path}. Those that no reply came for are taken up by the same command, the"
        " others with --retry-failed."
    )
