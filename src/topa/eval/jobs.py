"""An evaluation as asked for on a command line: from names and paths to a report."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from topa.answer import Topa
from topa.data.questions import VideoQuestion, from_tideos
from topa.errors import ConfigError, DataError
from topa.eval.benchmarks import BENCHMARKS, Benchmark, Item, VideoCaption, name_count, read_own
from topa.eval.captions import CaptionEvaluation, CaptionReport
from topa.eval.log import WHOLE, PredictionLog, Progress, Shard
from topa.eval.names import EvalMethod
from topa.eval.run import Evaluation, Report, check_frames, tideo_features
from topa.eval.sources import FeatureFiles, Nothing, Source, TextFeatures, VideoFolder
from topa.runs import append_jsonl, read_jsonl
from topa.tideo.schema import Tideo
from topa.tideo.textvid import BUNDLED, load_textvid, load_tideos


@dataclass(frozen=True)
class Job:
    """What to evaluate, on what, and how; made of names and paths, so that processes can share it.

    Attributes:
        name: Of a benchmark, of a bundled set of Tideos, or a file of questions or Tideos.
        data: Folder of the benchmark's files.
        split: Of the benchmark; its default if None.
        subtitles: Read subtitles along, where the benchmark has them.
        videos: Folder of the videos.
        features: File or folder of image features.
        method: How options are scored; the checkpoint's own by default.
        blind: Answer without the video.
        context: Also answer without the video and by similarity.
        use_memory: Project image features through the memory.
        num_frames: Frames of each video; the model's T if None.
        captions: Describe the videos of questions, against the captions that stand with them.
        limit: Only the first so many items.
        checkpoint: "embedded" or a folder.
        memory: Folder of a memory; the checkpoint's own by default.
    """

    name: str
    data: Path | None = None
    split: str | None = None
    subtitles: bool = False
    videos: Path | None = None
    features: Path | None = None
    method: EvalMethod | None = None
    blind: bool = False
    context: bool = True
    use_memory: bool = True
    num_frames: int | None = None
    captions: bool = False
    limit: int | None = None
    checkpoint: str = "embedded"
    memory: Path | None = None


@dataclass(frozen=True)
class Task:
    """What a job asks, read and checked.

    Attributes:
        title: In words.
        items: Questions, or videos to describe.
        expected: How they differ from the published ones; None if they do not.
        tideos: The Tideos that the questions are about, if they are.
        benchmark: The benchmark, if it is one.
    """

    title: str
    items: Sequence[Item]
    expected: str | None = None
    tideos: Sequence[Tideo] = ()
    benchmark: Benchmark | None = field(default=None, compare=False)


def read_task(job: Job) -> Task:
    """Read what a job asks, before any model is loaded.

    Raises:
        ConfigError: Settings that cannot be used together.
        DataError: A file is missing, or a line of it is wrong.
    """
    if job.videos is not None and job.features is not None:
        raise ConfigError("name either videos or features, not both", where="evaluate")
    if job.videos is not None and not job.videos.is_dir():
        raise ConfigError("no such folder of videos", where=job.videos, mend="Check the path.")
    if job.features is not None and not job.features.exists():
        raise ConfigError("no such features", where=job.features, mend="Check the path.")
    benchmark = BENCHMARKS.get(job.name)
    task = _read_own(job) if benchmark is None else _read_benchmark(job, benchmark)
    if job.captions:
        task = replace(task, title=f"{task.title}, captions", items=_captions_of(task, job))
    if job.limit is not None:
        task = replace(
            task,
            items=task.items[: job.limit],
            expected=f"only the first {min(job.limit, len(task.items))} of {len(task.items)}",
        )
    seen = job.videos or job.features or task.tideos
    if not seen and not job.blind:
        raise ConfigError(
            "these are questions about videos",
            where=job.name,
            mend="Name the folder of the videos with --videos, or features with --features;"
            " --blind needs neither.",
        )
    return task


def _captions_of(task: Task, job: Job) -> list[Item]:
    """Return each video once, with the captions that stand with its questions.

    Raises:
        ConfigError: Settings that captions do not have.
        DataError: A video has no captions.
    """
    if job.method is not None or job.blind:
        raise ConfigError("captions are generated, neither chosen nor blind", where="--captions")
    captions: dict[str, Item] = {}
    for item in task.items:
        if not item.captions:
            raise DataError("no captions stand with its questions", where=item.video)
        captions.setdefault(item.video, VideoCaption(video=item.video, captions=item.captions))
    return list(captions.values())


def _read_benchmark(job: Job, benchmark: Benchmark) -> Task:
    split = benchmark.split(job.split)
    name = job.split or benchmark.default_split
    if benchmark.name == "heldout":
        tideos = load_textvid("heldout")
        return Task(benchmark.title, from_tideos(tideos), None, tideos, benchmark)
    if benchmark.task == "caption" and (job.method is not None or job.blind):
        raise ConfigError("captions are generated, neither chosen nor blind", where=benchmark.name)
    root = job.data or Path()
    if not root.is_dir():
        raise ConfigError("no such folder", where=root, mend="Check --data.")
    items = benchmark.read(root, name, job.subtitles)
    return Task(
        f"{benchmark.title}, {name}{', with subtitles' if job.subtitles else ''}",
        items,
        name_count(split, items),
        benchmark=benchmark,
    )


def _read_own(job: Job) -> Task:
    if job.name in BUNDLED:
        tideos = load_tideos(job.name)
        return Task(f"{job.name}, Tideos to train on", from_tideos(tideos), tideos=tideos)
    path = Path(job.name)
    known = f"Benchmarks are {', '.join(BENCHMARKS)}; files end in .jsonl or .csv."
    if not path.is_file():
        raise DataError("no such file, and no such benchmark", where=job.name, mend=known)
    if path.suffix.lower() == ".jsonl":
        _, first = next(read_jsonl(path), (0, {}))
        if "frames" in first:
            tideos = load_tideos(job.name)
            return Task(path.name, from_tideos(tideos), tideos=tideos)
    return Task(path.name, read_own(path))


Result = Report | CaptionReport


@dataclass
class Opened:
    """A job with its model loaded."""

    evaluation: Evaluation | CaptionEvaluation
    ids: list[str]


def open_job(job: Job, task: Task, topa: Topa | None = None) -> Opened:
    """Load the model and the source of a job.

    Args:
        job: The job.
        task: What it asks.
        topa: The model, where it is already loaded.

    Raises:
        TopaError: Something is missing or does not belong together.
    """
    topa = Topa.from_pretrained(job.checkpoint, memory=job.memory) if topa is None else topa
    frames = check_frames(topa, job.num_frames)
    source: Source
    rates = task.benchmark
    if job.videos is not None:
        rate = rates.frame_rate if rates else 3.0
        source = VideoFolder(topa, job.videos, frames, use_memory=job.use_memory, frame_rate=rate)
    elif job.features is not None:
        rate = rates.feature_rate if rates else 1.0
        source = FeatureFiles(topa, job.features, frames, rate=rate, use_memory=job.use_memory)
    elif task.tideos:
        source = TextFeatures(tideo_features(task.tideos, topa), frames)
    else:
        source = Nothing(topa.encoder.dim)
    captions = [item for item in task.items if isinstance(item, VideoCaption)]
    if captions:
        job_captions = CaptionEvaluation(topa, captions, source, frames, task.title, task.expected)
        return Opened(job_captions, [item.video for item in captions])
    questions = [item for item in task.items if isinstance(item, VideoQuestion)]
    evaluation = Evaluation(
        topa,
        questions,
        source,
        job.method,
        job.blind,
        job.context,
        frames,
        task.title,
        task.expected,
    )
    return Opened(evaluation, [item.qid for item in questions])


def run_job(
    job: Job,
    task: Task,
    *,
    out: Path | None = None,
    shard: Shard = WHOLE,
    processes: int = 1,
    progress: Progress | None = None,
) -> Result | None:
    """Run a job, in one process or several, and return its report.

    Args:
        job: The job.
        task: What it asks.
        out: Folder of the run: its predictions are gone on with.
        shard: The part that is done here; with `processes` all are.
        processes: How many processes share the work; needs `out`.
        progress: Called as the work of this process goes on.

    Returns:
        The report; None where other shards are not done yet.

    Raises:
        ConfigError: Several processes without a folder, or with a shard.
        DataError: Another process failed.
    """
    if (processes > 1 or shard.count > 1) and out is None:
        raise ConfigError("several processes need a folder to write to", mend="Name one: --out.")
    if processes > 1:
        if shard.count > 1:
            raise ConfigError("either shards or processes, not both", where="--shard")
        shard = Shard(0, processes)
    opened = open_job(job, task)
    start = time.monotonic()
    log = None if out is None else PredictionLog(out, opened.evaluation.settings, shard)
    others = [_start(job, out, Shard(i, processes)) for i in range(1, processes)]
    rows, answered = opened.evaluation.answer(log, shard, progress)
    for other in others:
        other.join()
    if failed := [other for other in others if other.exitcode != 0]:
        raise DataError(f"{len(failed)} of {processes} processes failed", where=str(out))
    if log is not None:
        gathered = log.gather(opened.ids)
        if gathered is None:
            return None
        answered = len(gathered) - (len(rows) - answered) if processes > 1 else answered
        seconds, answered = _add_time(log.folder, time.monotonic() - start, answered)
        return opened.evaluation.report(gathered, seconds, answered)
    by_id = {row["id"]: row for row in rows}
    ordered = [by_id[name] for name in opened.ids]
    return opened.evaluation.report(ordered, time.monotonic() - start, answered)


def _add_time(folder: Path, seconds: float, answered: int) -> tuple[float, int]:
    """Note how long this process took for how many rows; return the sums over all of them."""
    path = folder / "timing.jsonl"
    if answered:
        append_jsonl(path, {"seconds": round(seconds, 3), "answered": answered})
    rows = [row for _, row in read_jsonl(path)] if path.is_file() else []
    return sum(row["seconds"] for row in rows), sum(row["answered"] for row in rows)


def _start(job: Job, out: Path | None, shard: Shard) -> Any:
    context = multiprocessing.get_context("spawn")  # a fork would share torch's threads
    process = context.Process(target=_run_shard, args=(job, out, shard))
    process.start()
    return process


def _run_shard(job: Job, out: Path, shard: Shard) -> None:
    opened = open_job(job, read_task(job))
    opened.evaluation.answer(PredictionLog(out, opened.evaluation.settings, shard), shard, None)
