"""topa align and topa finetune: train with Tideos, or with videos."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from topa.cli.terminal import JsonOption, out, print_json, say, show_progress

if TYPE_CHECKING:
    from torch import Tensor

    from topa.config import AlignConfig, FinetuneConfig
    from topa.data.questions import VideoQuestion
    from topa.train.session import TrainResult

    Config = TypeVar("Config", AlignConfig, FinetuneConfig)

SettingsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings that override the file's."),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE.yaml", help="Settings; the defaults without it."),
]
ResumeOption = Annotated[
    bool,
    typer.Option(
        "--resume", help="Go on with the last unfinished run below runs/, or with out=DIR."
    ),
]


def align(
    settings: SettingsArgument = None,
    config: ConfigOption = None,
    resume: ResumeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Pre-align an LLM with Tideos.

    Run it again, with the same settings, to go on where it stopped.

    \b
    topa align --config configs/embedded.yaml train.minutes=20 out=runs/first
    topa align --resume
    """
    from topa.config import AlignConfig

    resolved = _resolve(AlignConfig, config, settings or [], resume)
    from topa.train.align import align as run_align

    def run() -> TrainResult:
        with show_progress("steps") as progress:
            return run_align(resolved, say=say, progress=progress)

    _report(resolved.out, run, as_json)


def finetune(
    questions: Annotated[
        str | None,
        typer.Argument(metavar="BENCHMARK|FILE", help="What to train on; see topa evaluate."),
    ] = None,
    settings: SettingsArgument = None,
    config: ConfigOption = None,
    videos: Annotated[
        Path | None, typer.Option("--videos", metavar="DIR", help="Folder of the videos.")
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option("--features", metavar="FILE|DIR", help="Image features instead of videos."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="Folder of a benchmark's files.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--checkpoint", metavar="embedded|DIR", help="What training starts from."),
    ] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Without pre-alignment: the paper's baseline.")
    ] = False,
    resume: ResumeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune a checkpoint on questions about videos.

    A line of FILE.jsonl holds qid, video, question, options and answer (the index of the
    right option). Videos that cannot be read are listed and left out.

    \b
    topa finetune questions.jsonl --videos clips/ train.epochs=5 out=runs/mine
    topa finetune nextqa --data nextqa/ --videos nextqa/videos --config configs/finetune.yaml
    """
    from topa.config import FinetuneConfig

    changes = list(settings or [])
    if questions is not None and "=" in questions:
        changes.insert(0, questions)
        questions = None
    given = {
        "data.questions": questions,
        "data.videos": videos,
        "data.features": features,
        "data.root": data,
        "start": start,
    }
    changes = [f"{name}={value}" for name, value in given.items() if value is not None] + changes
    if from_scratch:
        changes.append("from_scratch=true")
    resolved = _resolve(FinetuneConfig, config, changes, resume)

    def run() -> TrainResult:
        from topa.train.finetune import finetune as run_finetune

        asked, load = _read_questions(resolved)
        with show_progress("videos") as progress:
            return run_finetune(resolved, asked, load, say=say, progress=progress)

    _report(resolved.out, run, as_json)


def _resolve(kind: type[Config], config: Path | None, settings: list[str], resume: bool) -> Config:
    """Return the settings of a job, or those of the run that is gone on with."""
    from topa.config import load_config

    if not resume:
        return load_config(kind, config, settings)
    from topa.errors import ConfigError

    named = [text for text in settings if text.startswith("out=")]
    if config is not None or len(named) < len(settings):
        raise ConfigError(
            "a run goes on with its own settings", where="--resume", mend="Give only out=DIR."
        )
    from topa.train.run import find_unfinished

    where = Path(named[-1].removeprefix("out=")) if named else Path("runs")
    path = where / "config.yaml"
    if not path.is_file():
        path = find_unfinished(where, kind) / "config.yaml"
    return load_config(kind, path)


def _read_questions(
    config: FinetuneConfig,
) -> tuple[list[VideoQuestion], Callable[[VideoQuestion], Tensor]]:
    """Return the questions, and what gives the features of their videos.

    Raises:
        ConfigError: An unknown benchmark, one of captions, or neither videos nor features.
    """
    from topa.answer import Topa
    from topa.data.questions import VideoQuestion
    from topa.errors import ConfigError
    from topa.eval.benchmarks import find_benchmark, read_own
    from topa.eval.sources import FeatureFiles, VideoFolder

    data, rate, frame_rate = config.data, 1.0, 3.0
    if Path(data.questions).is_file():
        found = read_own(Path(data.questions))
    else:
        benchmark = find_benchmark(data.questions)
        if benchmark.task != "choice":
            raise ConfigError("only questions with options can be trained on", where=data.questions)
        rate, frame_rate = benchmark.feature_rate, benchmark.frame_rate
        split = data.split or ("train" if "train" in benchmark.splits else None)
        name = benchmark.default_split if split is None else split
        benchmark.split(name)  # refuse an unknown one
        items = benchmark.read(Path(data.root or "."), name, False)
        found = [item for item in items if isinstance(item, VideoQuestion)]
    if (data.videos is None) == (data.features is None):
        raise ConfigError(
            "either videos or features are needed",
            where="data",
            mend="Name one with --videos or --features.",
        )
    say("Loading the encoder and the memory.")
    topa = Topa.from_pretrained(config.start, llm=config.llm)
    count = topa.model.config.num_frames
    if data.videos is not None:
        videos = VideoFolder(
            topa, data.videos, count, use_memory=data.use_memory, frame_rate=frame_rate
        )
        return found, videos.load
    assert data.features is not None
    files = FeatureFiles(topa, data.features, count, rate=rate, use_memory=data.use_memory)
    return found, files.load


def _report(folder: str, run: Callable[[], TrainResult], as_json: bool) -> None:
    """Run a training and print what came of it, on the first process alone."""
    first = os.environ.get("RANK", "0") == "0"
    if first:
        say(f"Run directory: {folder}")
    # stdout is for the result, whatever libraries print there.
    with contextlib.redirect_stdout(sys.stderr):
        result = run()
    if not first:
        return
    metrics = {name.removeprefix("eval_"): value for name, value in result.metrics.items()}
    if as_json:
        print_json(
            {
                "run": folder,
                "checkpoint": str(result.checkpoint),
                "steps": result.steps,
                "seconds": result.seconds,
                "metrics": metrics,
            }
        )
        return
    typer.echo(f"Checkpoint: {result.checkpoint} ({result.steps} steps, {result.seconds:.0f} s)")
    for name, value in metrics.items():
        figure = f"{value:.1%}" if name.endswith("accuracy") else f"{value:.3f}"
        out.print(f"  validation {name.replace('_', ' ')}: {figure}", markup=False)
