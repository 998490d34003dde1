"""Measure a checkpoint on everything at hand and write docs/results.md.

    python benchmarks/results.py --clips CLIPS --nextqa NEXTQA

CLIPS is a folder with videos and qa.jsonl (qid, video, question, options, answer, captions), NEXTQA
one with val.csv of NExT-QA. Every part is kept in --out and gone on with after a stop; nothing is
measured twice for one checkpoint. Parts whose data is not named are left out of the page.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from rich.console import Console

from topa.answer import Topa
from topa.eval.ablation import run_evaluation_arms, summarise_arms
from topa.eval.captions import CaptionReport
from topa.eval.charts import draw_ablation, tabulate_ablation, write_ablation
from topa.eval.jobs import Job, read_task, run_job
from topa.eval.names import AblationName
from topa.eval.pages import write_pages
from topa.eval.provenance import commit_of_code, fingerprint_of_trainables
from topa.eval.results import Report
from topa.eval.trained_ablation import run_data_arms, run_task_arms
from topa.runs import environment, write_text

console = Console(stderr=True)
PARTS = (
    *("heldout", "clips", "captions", "nextqa", "heldout-scoring", "heldout-frames"),
    *("clips-scoring", "clips-frames", "clips-projection", "clips-memory-size"),
    *("tasks", "data-size"),
)
# What both sides of the ablations that train have in common, beside the number of steps.
TRAINING = ["train.batch_size=4", "data.validation=0"]
# The paper's weights; options compete by their texts: this LLM learns letters far later. Plain
# Tideos are kept for fine-tuning, so that no start of it has seen them.
ALIGNING = ["data.tasks={contrast: 0.5, caption: 0.25, open: 0.25}", "data.extra=[]"]

PAPER = """\
## The paper's own numbers

From the paper (arXiv 2405.13911), with OpenAI's CLIP ViT-L/14 and 721,000 Tideos; they are **not**
ours, and another encoder, LLM and set of Tideos stand behind them than behind the tables above.

| benchmark | model | figure |
|---|---|---|
| EgoSchema, full set | TOPA, Llama2-13B | 51.0% |
| MVBench, 20 tasks | TOPA, Llama2-13B | 42.45% |
| MVBench, 20 tasks | TOPA, Llama2-7B | 39.8% |
| MSR-VTT, zero-shot CIDEr, BLEU-4 | TOPA, Llama2-13B | 33.4, 21.1 |
| MSR-VTT, zero-shot METEOR, ROUGE-L | TOPA, Llama2-13B | 21.8, 49.8 |

The authors of NExT-QA give blind baselines on its validation file: 30.6% (GloVe), 43.8% (fine-tuned
BERT). With the checkpoints of TOPA's authors (`topa official import`) and the benchmarks' files the
commands of [benchmarks.md](benchmarks.md) give the figures to hold against these.
"""


@dataclass(frozen=True)
class Part:
    """A part of the page.

    Attributes:
        title: Its heading.
        command: What gives the same figures.
        text: Its Markdown.
    """

    title: str
    command: str
    text: str


def evaluate_part(title: str, command: str, job: Job, out: Path) -> Part:
    """Evaluate, write the run's pages, and return the figures as a part."""
    console.print(title)
    task = read_task(job)
    report = run_job(job, task, out=out)
    assert report is not None
    write_pages(report, out, task.items, job.videos)
    return Part(
        title,
        command,
        _caption_text(report) if isinstance(report, CaptionReport) else _accuracy_text(report),
    )


def _accuracy_text(report: Report) -> str:
    lines = ["| | accuracy | N |", "|---|---|---|"]
    name = f"{report.method}, blind" if report.blind else f"TOPA ({report.method})"
    rows = [(name, report.accuracy, report.stderr)]
    rows += [(key, row["accuracy"], row["stderr"]) for key, row in report.baselines.items()]
    rows.append(("chance", report.chance, None))
    lines += [f"| {key} | {_share(value, error)} | {report.n} |" for key, value, error in rows]
    if report.kinds:
        heads = ["kind", "accuracy", *report.baselines, "N"]
        lines += ["", f"| {' | '.join(heads)} |"]
        lines.append("|---" * (3 + len(report.baselines)) + "|")
        for kind, row in report.kinds.items():
            others = "".join(f"{row[key]:.1%} | " for key in report.baselines)
            lines.append(
                f"| {kind} | {_share(row['accuracy'], row['stderr'])} | {others}{row['n']} |"
            )
    speed = f"{report.questions_per_second:.2f} questions/s in {report.seconds:.0f} s"
    lines += ["", f"{len(report.failures)} failures; {speed}."]
    if report.expected:
        lines.append(f"Not the published set: {report.expected}.")
    return "\n".join(lines)


def _caption_text(report: CaptionReport) -> str:
    lines = ["| metric (x 100) | score | N |", "|---|---|---|"]
    for name, row in report.scores.items():
        score = f"none ({row['reason']})" if row["score"] is None else f"{100 * row['score']:.1f}"
        error = "" if not row.get("stderr") else f" ± {100 * row['stderr']:.1f}"
        lines.append(f"| {name} | {score}{error} | {row['n']} |")
    return "\n".join([*lines, "", f"{len(report.failures)} failures."])


def _share(value: float | None, error: float | None) -> str:
    text = "" if value is None else f"{value:.1%}"
    return text if error is None else f"{text} ± {100 * error:.1f}"


def ablation_part(name: Any, command: str, job: Job, out: Path, plots: Path) -> Part:
    """Run an ablation that needs no training, write its table and plot, return it as a part."""
    arms = run_evaluation_arms(name, job, read_task(job), out=out, say=console.print)
    return _ablation_text(name, command, arms, out, plots)


def _ablation_text(name: Any, command: str, arms: Any, out: Path, plots: Path) -> Part:
    summary = summarise_arms(name, arms)
    write_ablation(summary, out)
    plot = plots / f"{out.name}.png"
    draw_ablation(summary, plot)
    text = f"{tabulate_ablation(summary)}\n![{summary['question']}]({plots.name}/{plot.name})"
    return Part(f"Ablation: {name}, {summary['title']}", command, text)


def measure(settings: argparse.Namespace, out: Path) -> Iterator[Part]:
    """Yield every part of the page that is wanted."""
    checkpoint, limit, plots = settings.checkpoint, settings.limit, settings.page.parent / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    only = set(settings.only or PARTS)
    heldout = Job("heldout", checkpoint=checkpoint, limit=limit)
    if "heldout" in only:
        title = "Held-out Tideos (text features)"
        yield evaluate_part(title, "topa evaluate heldout", heldout, out / "heldout")
    if settings.clips is not None:
        yield from _measure_clips(settings, only, out, plots)
    if settings.nextqa is not None and "nextqa" in only:
        job = replace(heldout, name="nextqa", data=settings.nextqa, blind=True, context=False)
        command = "topa evaluate nextqa --data NEXTQA --blind"
        yield evaluate_part("NExT-QA validation, blind", command, job, out / "nextqa-blind")
    for name in ("scoring", "frames"):
        if f"heldout-{name}" in only:
            yield ablation_part(
                name, f"topa ablate {name}", heldout, out / f"heldout-{name}", plots
            )
    if settings.train_steps is not None:
        job = replace(heldout, limit=settings.train_limit or limit)
        yield from _measure_training(settings, only, job, out, plots)


def _measure_training(
    settings: argparse.Namespace, only: set[str], job: Job, out: Path, plots: Path
) -> Iterator[Part]:
    """Yield the ablations that train; the second fine-tunes what the first pre-aligned."""
    task, steps = read_task(job), [f"train.max_steps={settings.train_steps}", *TRAINING]
    limit = "" if job.limit is None else f" --limit {job.limit}"
    folder = out / f"tasks-{settings.train_steps}"
    if "tasks" in only:
        arms = run_task_arms(
            job,
            task,
            config=settings.config,
            settings=[*steps, *ALIGNING],
            out=folder,
            say=console.print,
        )
        command = f"topa ablate tasks --config {settings.config}{limit} --out runs/tasks"
        yield _ablation_text("tasks", command + _told([*steps, *ALIGNING]), arms, folder, plots)
    if "data-size" in only:
        start = replace(job, checkpoint=str(folder / "with-multiple-choice" / "run" / "final"))
        training = replace(start, name="everyday", limit=None)
        folder = out / f"data-size-{settings.train_steps}"
        arms = run_data_arms(
            start,
            task,
            read_task(training),
            training,
            settings=steps,
            out=folder,
            say=console.print,
        )
        command = (
            f"topa ablate data-size heldout --train everyday{limit}"
            " --checkpoint runs/tasks/with-multiple-choice/run/final"
        )
        yield _ablation_text("data-size", command + _told(steps), arms, folder, plots)


def _told(settings: list[str]) -> str:
    """Return settings as a command line has them."""
    return "".join(f" --set {shlex.quote(setting)}" for setting in settings)


def _measure_clips(
    settings: argparse.Namespace, only: set[str], out: Path, plots: Path
) -> Iterator[Part]:
    """Yield the parts on real videos."""
    name = str(settings.clips / "qa.jsonl")
    clips = Job(name, videos=settings.clips, checkpoint=settings.checkpoint)
    command = "topa evaluate CLIPS/qa.jsonl --videos CLIPS"
    if "clips" in only:
        yield evaluate_part("Ten real clips, zero-shot", command, clips, out / "clips")
    if "captions" in only:
        title = "Descriptions of the real clips"
        job = replace(clips, captions=True)
        yield evaluate_part(title, f"{command} --captions", job, out / "captions")
    kinds: tuple[AblationName, ...] = ("scoring", "frames", "projection", "memory-size")
    for kind in kinds:
        if f"clips-{kind}" in only:
            ablation = f"topa ablate {kind} CLIPS/qa.jsonl --videos CLIPS"
            yield ablation_part(kind, ablation, clips, out / f"clips-{kind}", plots)


def _chosen(settings: argparse.Namespace) -> str:
    """Return the options that chose the parts of the page; folders by their names in its help."""
    named = (("CLIPS", settings.clips), ("NEXTQA", settings.nextqa))
    folders = [f" --{name.lower()} {name}" for name, folder in named if folder is not None]
    return "".join([*folders, *(f" --only {part}" for part in settings.only or ())])


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", default="embedded")
    parser.add_argument("--clips", type=Path, help="folder of clips with qa.jsonl")
    parser.add_argument("--nextqa", type=Path, help="folder with val.csv")
    parser.add_argument("--only", action="append", choices=PARTS, help="this part; repeat it")
    parser.add_argument("--limit", type=int, help="only so many questions of each, as a trial")
    parser.add_argument("--train-steps", type=int, help="also the ablations that train, so long")
    parser.add_argument("--train-limit", type=int, help="ask those only so many questions")
    parser.add_argument("--config", type=Path, default=Path("configs/embedded.yaml"))
    parser.add_argument("--out", type=Path, default=Path("runs/results"))
    parser.add_argument("--page", type=Path, default=Path("docs/results.md"))
    settings = parser.parse_args()
    topa = Topa.from_pretrained(settings.checkpoint)
    mark = fingerprint_of_trainables(topa.model)
    config, memory = topa.model.config, topa.memory
    del topa
    # A folder for each checkpoint: figures of another one are never taken for its own.
    out = settings.out / (mark if settings.limit is None else f"{mark}-{settings.limit}")
    parts = list(measure(settings, out))
    machine = environment()
    head = [
        "# Results\n",
        f"Written by `python benchmarks/results.py{_chosen(settings)}` on {date.today()}:"
        " do not edit by hand, run it again.",
        f"LLM {config.llm}, encoder {config.encoder}, memory of"
        f" {len(memory) if memory else 0:,} rows; `{mark}`, commit `{commit_of_code()}`,"
        f" {machine['gpu'] or str(machine['cpu_count']) + ' CPU cores'} shared with other work:"
        " speeds are what they were then, no more.",
        "\n± is one standard error, clustered by video. A question that could not be answered is"
        " wrong and counted. Nothing here was used to choose anything.\n",
    ]
    if settings.limit is not None:
        head.append(f"**A trial on the first {settings.limit} questions of each set.**\n")
    body = [f"## {part.title}\n\n`{part.command}`\n\n{part.text}\n" for part in parts]
    write_text(settings.page, "\n".join([*head, *body, PAPER]))
    console.print(f"Written: {settings.page}")


if __name__ == "__main__":
    main()
