"""Writing task files of lmms-eval, for benchmarks that it lacks (STAR, TVQA, MSR-VTT) and others.

A task is a YAML file that lmms-eval reads with `--include_path`, a JSONL file of documents made by
our own checked loaders, and a module that names the functions of `topa.eval.lmms_documents`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from topa.data.questions import VideoQuestion
from topa.errors import DataError, VideoError
from topa.eval.benchmarks import Benchmark, Item
from topa.eval.sources import VideoIndex
from topa.runs import write_text

_MODULE = (
    '"""The functions that the task files here name."""\n\nfrom topa.eval.lmms_documents import *\n'
)


@dataclass(frozen=True)
class LmmsTask:
    """A written task.

    Attributes:
        name: As `lmms-eval --tasks` takes it.
        folder: As `--include_path` takes it.
        documents: Number of documents.
        missing: Videos that are not there; their documents are left out, which changes N.
    """

    name: str
    folder: Path
    documents: int
    missing: list[str]


def write_task(
    benchmark: Benchmark, split: str, items: Sequence[Item], videos: Path, out: Path
) -> LmmsTask:
    """Write the task `topa_<benchmark>_<split>` into a folder.

    lmms-eval ends a run at the first video that is not there; such documents are left out and
    returned, for the caller to say so.

    Args:
        benchmark: The benchmark.
        split: Its split.
        items: Its items, with public answers.
        videos: Folder of the videos.
        out: Where to write.

    Raises:
        DataError: A right answer is not public, or not one video is there.
    """
    index = VideoIndex(videos)
    documents: list[dict[str, Any]] = []
    missing: list[str] = []
    for item in items:
        if isinstance(item, VideoQuestion) and item.answer is None:
            raise DataError("the right answers are not public", where=f"{benchmark.name}, {split}")
        try:
            path = index.find(item.video)
        except VideoError:
            missing.append(item.video)
            continue
        documents.append({**item.model_dump(), "path": str(path.resolve())})
    if not documents:
        raise DataError(
            f"not one of the {len(set(missing))} videos is there, such as {missing[0]!r}",
            where=videos,
            mend="Name the folder of the videos, with --videos.",
        )
    name = f"topa_{benchmark.name}_{split}"
    rows = "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents)
    write_text(out / f"{name}.jsonl", rows)
    write_text(out / "documents.py", _MODULE)
    write_text(out / f"{name}.yaml", _task_text(name, benchmark, out / f"{name}.jsonl"))
    return LmmsTask(name, out, len(documents), sorted(set(missing)))


class _Function(str):
    """Name of a function, written as lmms-eval's own tag."""


class _Dumper(yaml.SafeDumper):
    """Writes `_Function` as `!function name`."""


def _write_function(dumper: yaml.SafeDumper, value: _Function) -> yaml.Node:
    return dumper.represent_scalar("!function", str(value), style="")


_Dumper.add_representer(_Function, _write_function)


def _task_text(name: str, benchmark: Benchmark, documents: Path) -> str:
    """Return the YAML of a task."""
    task: dict[str, Any] = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(documents.resolve())}},
        "test_split": "test",
        "doc_to_visual": _Function("documents.to_visual"),
    }
    if benchmark.task == "choice":
        task |= {
            "output_type": "multiple_choice",
            "doc_to_text": _Function("documents.to_question"),
            "doc_to_choice": _Function("documents.to_options"),
            "doc_to_target": _Function("documents.to_answer"),
            "process_results": _Function("documents.rate_choice"),
            "metric_list": [
                {"metric": "topa_accuracy", "aggregation": "mean", "higher_is_better": True}
            ],
        }
    else:
        task |= {
            "output_type": "generate_until",
            "doc_to_text": _Function("documents.to_description"),
            "doc_to_target": _Function("documents.to_reference"),
            "process_results": _Function("documents.gather_caption"),
            "generation_kwargs": {"max_new_tokens": 40, "do_sample": False},
            "metric_list": [
                {
                    "metric": f"topa_{metric}",
                    "aggregation": _Function(f"documents.{function}"),
                    "higher_is_better": True,
                }
                for metric, function in (
                    ("CIDEr", "cider"),
                    ("BLEU_4", "bleu_4"),
                    ("ROUGE_L", "rouge_l"),
                )
            ],
        }
    task["metadata"] = [{"version": 1.0}]
    return yaml.dump(task, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
