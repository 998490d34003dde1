"""The command line: `topa COMMAND`, each command in the module of its group.

Exit codes: 0 done, 1 the job failed (in part or whole), 2 wrong use, 130 interrupted. A
problem the user can mend is one line on stderr that starts with "error: ".
"""

from __future__ import annotations

import atexit
import gc
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from topa.cli.ablation import ablate
from topa.cli.alignment import align, finetune
from topa.cli.answers import ask, describe
from topa.cli.audit import audit
from topa.cli.batches import export_batch, import_batch
from topa.cli.bench import bench
from topa.cli.benchmarks import check_benchmarks, list_benchmarks, write_lmms_task
from topa.cli.conversion import export_textvid, import_textvid
from topa.cli.evaluation import compare, evaluate
from topa.cli.features import (
    encode_textvid,
    encode_videos,
    export_features,
    import_files,
    show,
    verify,
)
from topa.cli.generation import generate, list_seeds, show_prompt
from topa.cli.machine import DemoCommand, demo, doctor
from topa.cli.memory import build_memory, inspect_memory
from topa.cli.merging import merge
from topa.cli.official import check as check_official
from topa.cli.official import export, import_
from topa.cli.plan import plan
from topa.cli.serving import serve, ui
from topa.cli.terminal import print_error, silence_libraries
from topa.cli.textvid import check, filter_, pack, stats
from topa.errors import TopaError

__all__ = ["app", "main"]

INTERRUPTED = 130


class TopaGroup(TyperGroup):
    """All commands, with one way of telling what went wrong."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run a command and exit with its code; problems the user can mend take one line."""
        try:
            code = super().main(*args, **{**extra, "standalone_mode": False})
        except TopaError as error:
            print_error(str(error))
            code = error.exit_code
        except typer.TyperException as error:  # an unknown option, a missing argument, ...
            context = getattr(error, "ctx", None)
            advice = f". See `{context.command_path} --help`." if context is not None else ""
            print_error(f"{error.format_message().rstrip('.')}{advice}")
            code = error.exit_code
        except OSError as error:  # a folder that cannot be written to, a full disk, ...
            place = f"{error.filename}: " if error.filename else ""
            print_error(f"{place}{error.strerror or error}")
            code = 1
        if code == INTERRUPTED:
            print_error("interrupted")
        sys.exit(code if isinstance(code, int) else 0)


app = typer.Typer(
    name="topa",
    cls=TopaGroup,
    add_completion=False,
    rich_markup_mode=None,  # brackets in a help text are brackets
    pretty_exceptions_enable=False,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        # The package above this one is loaded already, and knows.
        typer.echo(f"topa {sys.modules['topa'].__version__}")
        raise typer.Exit


@app.callback()
def _start(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Teach a text-only LLM to understand video without a single training video.

    \b
    topa demo                                   see everything once
    topa ask clip.mp4 "What is the cat doing?"  ask about a video
    topa doctor                                 see what this machine lacks
    """
    silence_libraries()
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


app.command(cls=DemoCommand)(demo)
for _command in (
    ask,
    describe,
    ui,
    serve,
    evaluate,
    compare,
    ablate,
    align,
    finetune,
    plan,
    bench,
    merge,
    doctor,
):
    app.command()(_command)

_encode = typer.Typer(help="Write features of videos or Tideos into a store.")
_encode.command("videos")(encode_videos)
_encode.command("textvid")(encode_textvid)
app.add_typer(_encode, name="encode")

_features = typer.Typer(help="Feature stores: check, list, and exchange with other programs.")
_features.command("verify")(verify)
_features.command("show")(show)
_features.command("export")(export_features)
_features.command("import")(import_files)
app.add_typer(_features, name="features")

_memory = typer.Typer(help="The text features that image features are projected into.")
_memory.command("build")(build_memory)
_memory.command("inspect")(inspect_memory)
app.add_typer(_memory, name="memory")

_textvid = typer.Typer(help="Write Tideos (textual videos), and see how good they are.")
_textvid.command("check")(check)
_textvid.command("seeds")(list_seeds)
_textvid.command("prompt")(show_prompt)
_textvid.command("generate")(generate)
_textvid.command("filter")(filter_)
_textvid.command("stats")(stats)
_textvid.command("audit")(audit)
_textvid.command("pack")(pack)
_batch = typer.Typer(help="Write Tideos through batch files (OpenAI's format).")
_batch.command("export")(export_batch)
_batch.command("import")(import_batch)
_textvid.add_typer(_batch, name="batch")
_authors = typer.Typer(help="The authors' textvid.json, features and memory: take in, write.")
_authors.command("import")(import_textvid)
_authors.command("export")(export_textvid)
_textvid.add_typer(_authors, name="official")
app.add_typer(_textvid, name="textvid")


_benchmarks = typer.Typer(help="What benchmarks topa reads, and what a folder has of them.")
_benchmarks.command("list")(list_benchmarks)
_benchmarks.command("check")(check_benchmarks)
_benchmarks.command("lmms")(write_lmms_task)
app.add_typer(_benchmarks, name="benchmarks")

_official = typer.Typer(help="The authors' checkpoints: take in, check against, write.")
_official.command("import")(import_)
_official.command("check")(check_official)
_official.command("export")(export)
app.add_typer(_official, name="official")


def main() -> None:
    """Run the command line."""
    # Python's last search for cycles goes through all that torch has made: seconds, for nothing.
    atexit.register(gc.freeze)
    app()
