"""topa textvid seeds, prompt, generate: have an LLM write Tideos."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from topa.cli.terminal import JsonOption, err, print_json, say

if TYPE_CHECKING:
    from topa.tideo.backends import Backend
    from topa.tideo.composition import Recipe
    from topa.tideo.generate import Pace, RunStatus
    from topa.tideo.prompts import PromptStyle
    from topa.tideo.seeds import SeedList

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
    typer.Option("--examples", min=0, help="Tideos shown as examples.  [default: 2; embedded: 0]"),
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


def list_seeds(
    seeds: SeedsOption,
    most: MaxOption = None,
    shuffle: ShuffleOption = 0,
    wordnet: WordnetOption = None,
    show: Annotated[int, typer.Option("--show", min=0, help="Print the first N.")] = 10,
    as_json: JsonOption = False,
) -> None:
    """Count the seeds of files, WordNet and topics, and show the first ones.

    \b
    topa textvid seeds --seeds wordnet,weight=1 --seeds titles.csv,column=title,weight=3
    """
    found = gather(seeds, most, shuffle, wordnet)
    if as_json:
        counts = {name: vars(count) for name, count in found.counts.items()}
        first = [{"source": seed.source, "text": seed.text} for seed in found.seeds[:show]]
        print_json(
            {"seeds": len(found.seeds), "sources": found.sources, "read": counts, "first": first}
        )
        return
    for name, count in found.counts.items():
        typer.echo(
            f"{name}: {count.kept:,} of {count.read:,}"
            f" ({count.duplicates:,} occur before, {count.empty:,} empty)"
        )
    styles = ", ".join(f"{style} {number:,}" for style, number in found.sources.items())
    typer.echo(f"{len(found.seeds):,} seeds: {styles}")
    for seed in found.seeds[:show]:
        typer.echo(f"  {seed.source:<8} {seed.text}")


def show_prompt(
    seed: Annotated[str, typer.Argument(help="Text of the seed.")] = "how to bake bread",
    source: Annotated[
        Literal["howto", "ego4d", "webvid", "wordnet", "topic"], typer.Option("--source")
    ] = "howto",
    mode: StepsOption = "one",
    examples: ExamplesOption = None,
    model: ModelOption = "MODEL",
    as_json: JsonOption = False,
) -> None:
    """Print what a model is told for one seed, with the version of the prompt.

    \b
    topa textvid prompt "how to bake bread" --source howto
    """
    from topa.tideo.prompts import build_messages, build_story_messages
    from topa.tideo.seeds import Seed

    style = choose_style(model, mode, examples)
    start = Seed(source, seed)
    steps = []
    if mode == "two":
        steps.append(build_story_messages(start, style))
    story = "(the model's reply to the first step)" if mode == "two" else None
    steps.append(build_messages(start, style, story=story))
    if as_json:
        print_json({"version": style.version, "steps": steps, "schema": style.schema})
        return
    typer.echo(f"# prompt version {style.version}")
    for number, messages in enumerate(steps, start=1):
        for message in messages:
            typer.echo(f"\n## step {number}, {message['role']}\n{message['content']}")


def generate(
    seeds: SeedsOption,
    out: OutOption,
    model: ModelOption = "embedded",
    base_url: UrlOption = None,
    key_variable: KeyOption = "OPENAI_API_KEY",
    most: MaxOption = None,
    shuffle: ShuffleOption = 0,
    wordnet: WordnetOption = None,
    concurrency: Annotated[
        int, typer.Option("--concurrency", min=1, help="Most requests at once.")
    ] = 64,
    budget: Annotated[
        float | None, typer.Option("--budget", min=0, help="USD, never exceeded; needs prices.")
    ] = None,
    price_in: PriceInOption = 0.0,
    price_out: PriceOutOption = 0.0,
    rpm: Annotated[float | None, typer.Option("--rpm", help="Most requests a minute.")] = None,
    tpm: Annotated[float | None, typer.Option("--tpm", help="Most tokens a minute.")] = None,
    timeout: TimeoutOption = 180.0,
    attempts: Annotated[int, typer.Option("--attempts", min=1, help="Of one request.")] = 12,
    mode: StepsOption = "one",
    examples: ExamplesOption = None,
    max_tokens: TokensOption = 3000,
    temperature: TemperatureOption = 1.0,
    extra: Annotated[
        str, typer.Option("--extra", metavar="JSON", help="Further fields of the request body.")
    ] = "{}",
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Take up failed seeds again.")
    ] = False,
    engine: Annotated[
        Literal["local", "ray"], typer.Option("--engine", help="One process, or a Ray cluster.")
    ] = "local",
    workers: Annotated[int, typer.Option("--workers", min=1, help="Of the Ray engine.")] = 2,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count seeds, tokens and cost; send nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Have an LLM write Tideos. Stop it any way and run it again: it goes on where it was.

    Writes DIR/journal (everything that was sent and received), and from it tideos.jsonl,
    failures.jsonl and report.json. The exit code is 1 if seeds are left or failed.

    \b
    topa textvid generate --seeds wordnet --model qwen3 \\
      --base-url http://localhost:8000/v1 --max 1000 --out runs/textvid
    """
    from topa.tideo.backends import EndpointSettings
    from topa.tideo.generate import Pace

    recipe = make_recipe(model, mode, examples, max_tokens, temperature)
    pace = Pace(
        concurrency=concurrency,
        attempts=attempts,
        budget=budget,
        price_in=price_in,
        price_out=price_out,
        requests_per_minute=rpm,
        tokens_per_minute=tpm,
    )
    check_pace(pace)
    found = gather(seeds, most, shuffle, wordnet)
    if dry_run:
        _print_estimate(found, recipe, pace, as_json)
        return
    endpoint = EndpointSettings(model, base_url, key_variable, timeout, parse_extra(extra))
    settings = {"seeds": seeds, "shuffle": shuffle, "max": most, **_describe(recipe, endpoint)}
    write_settings(out, settings)
    with show_run(len(found.seeds)) as progress:
        if engine == "ray":
            from topa.scale.generation import generate_on_ray

            status = generate_on_ray(
                found.seeds,
                recipe,
                endpoint,
                out,
                pace,
                workers=workers,
                progress=progress,
                retry_failed=retry_failed,
            )
        else:
            from topa.tideo.generate import Run

            backend = make_backend(endpoint)
            status = Run(
                found.seeds, recipe, backend, out, pace, retry_failed=retry_failed
            ).execute(progress)
    finish_run(out, status, settings, as_json)


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


def make_backend(endpoint: Any) -> Backend:
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


def _describe(recipe: Recipe, endpoint: Any) -> dict[str, Any]:
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
    from topa.tideo.results import write_results

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
    if status.stopped:
        say(f"Stopped: {status.stopped}. Run the same command again to go on.")
    if status.stopped == "interrupted":
        raise typer.Exit(130)
    if report["left"] or status.failed:
        raise typer.Exit(1)


def _print_estimate(found: SeedList, recipe: Recipe, pace: Pace, as_json: bool) -> None:
    """Print tokens and cost of a run: characters over four, and TextVid-mini's mean length."""
    from topa.tideo.estimate import estimate_run

    estimate = estimate_run(found.seeds, recipe, pace)
    if as_json:
        print_json({"seeds": len(found.seeds), "sources": found.sources, **estimate})
        return
    typer.echo(f"{len(found.seeds):,} seeds: {found.sources}")
    typer.echo(
        f"about {estimate['prompt_tokens']:,} prompt and {estimate['completion_tokens']:,}"
        f" completion tokens, ${estimate['cost']:.2f}; at most ${estimate['most']:.2f} without"
        " repetitions and corrections"
    )
