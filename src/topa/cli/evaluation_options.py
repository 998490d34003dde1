"""Options that `topa evaluate`, `topa ablate` and `topa benchmarks` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from topa.eval.names import AblationName, EvalMethod

NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME|FILE",
        help="A benchmark (see `topa benchmarks list`), or a file: questions (.jsonl, .csv) or"
        " Tideos (.jsonl).",
    ),
]
DataOption = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="Folder of the benchmark's files.  [default: .]"),
]
SplitOption = Annotated[str | None, typer.Option("--split", help="Part of the benchmark.")]
VideosOption = Annotated[
    Path | None, typer.Option("--videos", metavar="DIR", help="Folder of the videos.")
]
FeaturesOption = Annotated[
    Path | None,
    typer.Option(
        "--features",
        metavar="PATH",
        help="Instead: image features, one file of all videos or a folder with one each.",
    ),
]
EvalMethodOption = Annotated[
    EvalMethod | None,
    typer.Option("--method", help="How options are scored.  [default: the checkpoint's own]"),
]
ContextOption = Annotated[
    bool,
    typer.Option(
        "--context/--no-context", help="Answer blind and by similarity too, for comparison."
    ),
]
SubtitlesOption = Annotated[bool, typer.Option("--subtitles", help="Read subtitles along (TVQA).")]
CaptionsOption = Annotated[
    bool,
    typer.Option("--captions", help="Describe the videos instead, against captions in the file."),
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, help="Only the first so many, as a trial.")
]
RunOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR|REPORT.json",
        help="Folder for predictions and reports, gone on with after a stop; or one file.",
    ),
]
ProcessesOption = Annotated[
    int, typer.Option("--processes", min=1, help="Processes that share the work.")
]
ShardOption = Annotated[
    str | None,
    typer.Option("--shard", metavar="K/N", help="Do only part K of N, into the same --out."),
]
KindArgument = Annotated[
    AblationName, typer.Argument(metavar="KIND", help="What is changed, or taken away.")
]
TrainSplitOption = Annotated[
    str, typer.Option("--train-split", help="data-size: the part to fine-tune on.")
]
TrainOption = Annotated[
    str | None,
    typer.Option(
        "--train",
        metavar="FILE",
        help="data-size: other questions or Tideos to fine-tune on, instead of a split.",
    ),
]
ValuesOption = Annotated[
    str | None,
    typer.Option(
        "--values", metavar="N,N", help="Numbers of frames, of memory rows, or percent of the data."
    ),
]
AlignConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="YAML", help="tasks: settings of the pre-alignments."),
]
TrainSettingOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A training setting; repeat it."),
]
AblationFolderOption = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Folder of the runs.  [default: runs/ablate-KIND]"),
]
