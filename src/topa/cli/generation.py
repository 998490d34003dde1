"""topa textvid seeds, prompt, generate: have an LLM write Tideos."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from topa.cli.terminal import JsonOption, print_json
from topa.cli.writing import (
    AttemptsOption,
    BudgetOption,
    ConcurrencyOption,
    DryOption,
    EngineOption,
    ExamplesOption,
    ExtraOption,
    KeyOption,
    MaxOption,
    ModelOption,
    OutOption,
    PriceInOption,
    PriceOutOption,
    RequestsOption,
    RetryOption,
    SeedsOption,
    ShuffleOption,
    StepsOption,
    TemperatureOption,
    TimeoutOption,
    TokenRateOption,
    TokensOption,
    UrlOption,
    WordnetOption,
    WorkersOption,
    check_pace,
    choose_style,
    describe_recipe,
    finish_run,
    gather,
    make_backend,
    make_recipe,
    parse_extra,
    show_run,
    write_settings,
)

if TYPE_CHECKING:
    from topa.tideo.backends import EndpointSettings
    from topa.tideo.composition import Recipe
    from topa.tideo.pace import Pace
    from topa.tideo.seeds import SeedList
    from topa.tideo.status import RunStatus


def list_seeds(
    seeds: SeedsOption,
    most: MaxOption = None,
    shuffle: ShuffleOption = 0,
    wordnet: WordnetOption = None,
    show: Annotated[int, typer.Option("--show", min=0, help="Print the first N.")] = 10,
    as_json: JsonOption = False,
) -> None:
    """Count the seeds of files, WordNet and topics.

    And show the first of them.

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
    """Print what a model is told for one seed.

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
    concurrency: ConcurrencyOption = 64,
    budget: BudgetOption = None,
    price_in: PriceInOption = 0.0,
    price_out: PriceOutOption = 0.0,
    rpm: RequestsOption = None,
    tpm: TokenRateOption = None,
    timeout: TimeoutOption = 180.0,
    attempts: AttemptsOption = 12,
    mode: StepsOption = "one",
    examples: ExamplesOption = None,
    max_tokens: TokensOption = 3000,
    temperature: TemperatureOption = 1.0,
    extra: ExtraOption = "{}",
    retry_failed: RetryOption = False,
    engine: EngineOption = "local",
    workers: WorkersOption = 2,
    dry_run: DryOption = False,
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
    from topa.tideo.pace import Pace

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
    settings = {
        "seeds": seeds,
        "shuffle": shuffle,
        "max": most,
        **describe_recipe(recipe, endpoint),
    }
    write_settings(out, settings)
    with show_run(len(found.seeds)) as progress:
        status = _execute(
            found, recipe, endpoint, out, pace, engine, workers, retry_failed, progress
        )
    finish_run(out, status, settings, as_json)


def _execute(
    found: SeedList,
    recipe: Recipe,
    endpoint: EndpointSettings,
    out: Path,
    pace: Pace,
    engine: str,
    workers: int,
    retry_failed: bool,
    progress: Callable[[RunStatus], None],
) -> RunStatus:
    """Run in this process or on a cluster."""
    if engine == "ray":
        from topa.scale.generation import generate_on_ray

        return generate_on_ray(
            found.seeds,
            recipe,
            endpoint,
            out,
            pace,
            workers=workers,
            progress=progress,
            retry_failed=retry_failed,
        )
    from topa.tideo.generate import Run

    backend = make_backend(endpoint)
    run = Run(found.seeds, recipe, backend, out, pace, retry_failed=retry_failed)
    return run.execute(progress)


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
