"""Measure a checkpoint on everything at hand and write docs/results.md.

    python benchmarks/results.py --clips CLIPS --nextqa NEXTQA

CLIPS is a folder with videos and qa.jsonl (qid, video, question, options, answer, captions), NEXTQA
one with val.csv of NExT-QA. Every part is kept in --out and gone on with after a stop; nothing is
measured twice for one checkpoint. --only measures one part; the page shows all that are kept. Parts
whose data is not named are not measured, nor are the ablations that train without --train-steps.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path

from rich.console import Console

from topa.answer import Topa
from topa.eval.ablation import Arm, run_evaluation_arms, summarise_arms
from topa.eval.captions import CaptionReport
from topa.eval.charts import draw_ablation, tabulate_ablation, write_ablation
from topa.eval.jobs import Job, read_task, run_job
from topa.eval.names import AblationName
from topa.eval.pages import write_pages
from topa.eval.provenance import commit_of_code, fingerprint_of_trainables
from topa.eval.results import Report
from topa.eval.trained_ablation import run_data_arms, run_task_arms
from topa.runs import environment, read_json, write_json, write_text

console = Console(stderr=True)
PARTS = (
    *("heldout", "clips", "captions", "nextqa-blind", "heldout-scoring", "heldout-frames"),
    *("clips-scoring", "clips-frames", "clips-projection", "clips-memory-size"),
    *("tasks", "data-size"),
)
# What both sides of the ablations that train have in common, beside the number of steps.
TRAINING = ["train.batch_size=4", "data.validation=0"]
# The paper's weights; options compete by their texts: this LLM learns letters far later. Plain
# Tideos are kept for fine-tuning, so that no start of it has seen them.
ALIGNING = ["data.tasks={contrast: 0.5, caption: 0.25, open: 0.25}", "data.extra=[]"]
SCRATCH = """
From scratch keeps the word slots, which tell the LLM of each frame in words before any training
(embedded-results.md). Every arm takes as many steps: of 1% of the data they are several passes, of
10% and 100% a part of one. With so few steps and questions the table shows the way to measure it,
not what pre-alignment is worth.
"""

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
| VATEX validation, zero-shot CIDEr, BLEU-4 (the authors' notebook) | TOPA, Llama2-7B | 31.0, 14.0 |
| VATEX validation, zero-shot METEOR, ROUGE-L (the same) | TOPA, Llama2-7B | 16.6, 37.1 |

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
        commit: Of the code that computed it from the predictions.
        date: When.
    """

    title: str
    command: str
    text: str
    commit: str | None
    date: str


def keep_part(folder: Path, title: str, command: str, text: str) -> None:
    """Keep a part with its predictions."""
    part = Part(title, command, text, commit_of_code(), date.today().isoformat())
    write_json(folder / "part.json", asdict(part))


def measure_questions(title: str, command: str, job: Job, out: Path) -> None:
    """Evaluate, write the run's pages, and keep the figures as a part."""
    console.print(title)
    task = read_task(job)
    report = run_job(job, task, out=out)
    assert report is not None
    write_pages(report, out, task.items, job.videos)
    if isinstance(report, CaptionReport):
        text = _caption_text(report)
    else:
        text = _accuracy_text(report)
    keep_part(out, title, command, text)


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


def measure_ablation(name: AblationName, command: str, job: Job, out: Path, plots: Path) -> None:
    """Run an ablation that needs no training, and keep its table and plot as a part."""
    arms = run_evaluation_arms(name, job, read_task(job), out=out, say=console.print)
    _keep_ablation(name, command, arms, out, plots)


def _keep_ablation(
    name: AblationName, command: str, arms: Sequence[Arm], out: Path, plots: Path, note: str = ""
) -> None:
    summary = summarise_arms(name, arms)
    write_ablation(summary, out)
    plot = plots / f"{out.name}.png"
    draw_ablation(summary, plot)
    text = f"{tabulate_ablation(summary)}{note}\n![{summary['question']}]({plots.name}/{plot.name})"
    keep_part(out, f"Ablation: {name}, {summary['title']}", command, text)


def measure(settings: argparse.Namespace, out: Path) -> None:
    """Measure every part that is wanted and whose data is named."""
    checkpoint, limit, plots = settings.checkpoint, settings.limit, settings.page.parent / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    only = set(settings.only or PARTS)
    heldout = Job("heldout", checkpoint=checkpoint, limit=limit)
    if "heldout" in only:
        title = "Held-out Tideos (text features)"
        measure_questions(title, "topa evaluate heldout", heldout, out / "heldout")
    if settings.clips is not None:
        _measure_clips(settings, only, out, plots)
    if settings.nextqa is not None and "nextqa-blind" in only:
        job = replace(heldout, name="nextqa", data=settings.nextqa, blind=True, context=False)
        command = "topa evaluate nextqa --data NEXTQA --blind"
        measure_questions("NExT-QA validation, blind", command, job, out / "nextqa-blind")
    kinds: tuple[AblationName, ...] = ("scoring", "frames")
    for kind in kinds:
        if (name := f"heldout-{kind}") in only:
            measure_ablation(kind, f"topa ablate {kind}", heldout, out / name, plots)
    if settings.train_steps is not None:
        job = replace(heldout, limit=settings.train_limit or limit)
        if "tasks" in only:
            _measure_tasks(settings, job, out / "tasks", plots)
        if "data-size" in only:
            _measure_data_size(settings, job, out, plots)


def _measure_clips(settings: argparse.Namespace, only: set[str], out: Path, plots: Path) -> None:
    """Measure the parts on real videos."""
    clips = Job(
        str(settings.clips / "qa.jsonl"), videos=settings.clips, checkpoint=settings.checkpoint
    )
    command = "topa evaluate CLIPS/qa.jsonl --videos CLIPS"
    if "clips" in only:
        measure_questions("Ten real clips, zero-shot", command, clips, out / "clips")
    if "captions" in only:
        title = "Descriptions of the real clips"
        job = replace(clips, captions=True)
        measure_questions(title, f"{command} --captions", job, out / "captions")
    kinds: tuple[AblationName, ...] = ("scoring", "frames", "projection", "memory-size")
    for kind in kinds:
        if (name := f"clips-{kind}") in only:
            command = f"topa ablate {kind} CLIPS/qa.jsonl --videos CLIPS"
            measure_ablation(kind, command, clips, out / name, plots)


def _measure_tasks(settings: argparse.Namespace, job: Job, out: Path, plots: Path) -> None:
    """Pre-align with and without multiple choice, for the same number of steps."""
    changes = [f"train.max_steps={settings.train_steps}", *TRAINING, *ALIGNING]
    task = read_task(job)
    arms = run_task_arms(
        job, task, config=settings.config, settings=changes, out=out, say=console.print
    )
    command = f"topa ablate tasks --config {settings.config} --out runs/tasks"
    _keep_ablation("tasks", command + _told(job, changes), arms, out, plots)


def _measure_data_size(settings: argparse.Namespace, job: Job, out: Path, plots: Path) -> None:
    """Fine-tune what the tasks ablation pre-aligned, and its shape, on plain Tideos."""
    changes = [f"train.max_steps={settings.train_steps}", *TRAINING]
    start = out / "tasks" / "with-multiple-choice" / "run" / "final"
    job = replace(job, checkpoint=str(start))
    training = replace(job, name="everyday", limit=None)
    arms = run_data_arms(
        job,
        read_task(job),
        read_task(training),
        training,
        settings=changes,
        out=out / "data-size",
        say=console.print,
    )
    command = (
        "topa ablate data-size --train everyday"
        " --checkpoint runs/tasks/with-multiple-choice/run/final"
    )
    _keep_ablation(
        "data-size", command + _told(job, changes), arms, out / "data-size", plots, SCRATCH
    )


def _told(job: Job, changes: Sequence[str]) -> str:
    """Return a limit and settings as a command line has them."""
    limit = "" if job.limit is None else f" --limit {job.limit}"
    return limit + "".join(f" --set {shlex.quote(change)}" for change in changes)


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
    measure(settings, out)
    parts = [
        Part(**read_json(path)) for name in PARTS if (path := out / name / "part.json").is_file()
    ]
    machine = environment()
    head = [
        "# Results\n",
        "Written by `python benchmarks/results.py` from the predictions that it keeps: do not edit"
        " by hand, run it again.",
        f"LLM {config.llm}, encoder {config.encoder}, memory of"
        f" {len(memory) if memory else 0:,} rows; `{mark}`,"
        f" {machine['gpu'] or str(machine['cpu_count']) + ' CPU cores'} shared with other work:"
        " speeds are what they were then, no more.",
        "\n± is one standard error, clustered by video. A question that could not be answered is"
        " wrong and counted. Nothing here was used to choose anything.\n",
    ]
    if settings.limit is not None:
        head.append(f"**A trial on the first {settings.limit} questions of each set.**\n")
    body = [
        f"## {part.title}\n\n`{part.command}`\n\n{part.text}\n\n({part.date}, `{part.commit}`)\n"
        for part in parts
    ]
    write_text(settings.page, "\n".join([*head, *body, PAPER]))
    console.print(f"Written: {settings.page}")


if __name__ == "__main__":
    main()
