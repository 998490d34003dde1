"""topa plan: does a training fit, how to share it, how long it lasts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from topa.cli.terminal import JsonOption, print_json

if TYPE_CHECKING:
    from topa.train.plan import Plan


def plan(
    llm: Annotated[
        str,
        typer.Option(
            "--llm", metavar="NAME|ID|DIR", help="embedded, llama2-7b, ..., a hub id or a folder."
        ),
    ],
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="How many.")] = 1,
    gpu_memory: Annotated[
        float, typer.Option("--gpu-memory", min=0.1, help="Of each, in GB.")
    ] = 80.0,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Samples of one GPU per forward pass.")
    ] = 18,
    variant: Annotated[
        Literal["adapter", "lora", "projector"], typer.Option("--variant", help="What is trained.")
    ] = "adapter",
    tideos: Annotated[int, typer.Option("--tideos", min=1, help="How many.")] = 721_000,
    epochs: Annotated[float, typer.Option("--epochs", min=0.01, help="Passes over them.")] = 20,
    tflops: Annotated[
        float, typer.Option("--tflops", min=0.001, help="Peak of one GPU, in 1e12 operations/s.")
    ] = 312.0,
    mfu: Annotated[
        float, typer.Option("--mfu", min=0.01, max=1.0, help="Share of the peak that is reached.")
    ] = 0.4,
    check: Annotated[
        bool, typer.Option("--check", help="Also compare the count with a real small model.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Tell whether a training fits on GPUs, and how long it lasts.

    Names the parallelism to take. It is an estimate: no GPU and no weights are needed.

    \b
    topa plan --llm llama2-7b --gpus 4 --gpu-memory 40
    topa plan --llm llama2-13b --gpus 8 --gpu-memory 24 --batch-size 4 --check
    """
    from topa.train.plan import check_plan
    from topa.train.plan import plan as make_plan

    found = make_plan(
        llm,
        gpus=gpus,
        gpu_memory=gpu_memory,
        batch_size=batch_size,
        variant=variant,
        tideos=tideos,
        epochs=epochs,
        tflops=tflops,
        mfu=mfu,
    )
    checked = check_plan() if check else []
    if as_json:
        print_json({**found.as_dict(), "check": checked})
        return
    _print_plan(found, f"{llm}, {variant}", gpu_memory, batch_size)
    typer.echo(
        f"{tideos:,} Tideos x {epochs:g} epochs: {found.operations:.2g} operations,"
        f" {found.hours:.1f} hours on {gpus} x {tflops:g} TFLOP/s at {mfu:.0%} of the peak."
    )
    _print_check(checked)


def _print_plan(found: Plan, title: str, gpu_memory: float, batch_size: int) -> None:
    """Print what fits, and what to take."""
    from topa.train.plan import GB

    typer.echo(
        f"{title}: {found.frozen_weights / 1e9:.2f}B frozen weights,"
        f" {found.trained_weights / 1e6:.1f}M trained."
    )
    for name, size in found.ways.items():
        verdict = "fits" if size <= gpu_memory * GB else "does not fit"
        typer.echo(f"  {name:16} {size / GB:6.1f} GB of {gpu_memory:g}: {verdict}")
    settings = f"train.parallel={found.parallel} train.recompute={str(found.recompute).lower()}"
    memory = found.memory
    if found.fits:
        typer.echo(f"Take {settings} train.batch_size={batch_size}.")
    else:
        typer.echo(f"Nothing fits; nearest is {settings}. Lower --batch-size or add GPUs.")
    typer.echo(
        f"  of it the LLM {memory.frozen / GB:.1f} GB, trainables with optimizer"
        f" {memory.trained / GB:.1f} GB, activations {memory.activations / GB:.1f} GB"
    )


def _print_check(rows: list[dict[str, Any]]) -> None:
    """Print how near the count is to a real run."""
    for row in rows:
        typer.echo(
            f"Checked with a small model, batch of {row['batch']:g}: counted"
            f" {row['counted'] / 1e6:.1f} MB of activations, really {row['real'] / 1e6:.1f} MB."
        )
