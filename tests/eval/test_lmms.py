"""topa inside the installed lmms-eval: found by name, and scoring as `topa evaluate` does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from topa.answer import Topa
from topa.errors import DataError
from topa.eval.benchmarks import find_benchmark
from topa.eval.benchmarks.catalogue import VideoCaption
from topa.eval.caption_metrics import score_captions
from topa.eval.captions import CaptionEvaluation
from topa.eval.lmms_tasks import write_task
from topa.eval.run import evaluate
from topa.eval.sources import VideoFolder

STAR = [
    {
        "question_id": f"Interaction_T1_{i}",
        "question": question,
        "answer": answer,
        "video_id": video,
        "start": 0.0,
        "end": end,
        "choices": [
            {"choice_id": k, "choice": text}
            for k, text in enumerate(["The cup.", "The cat.", "The rocket.", "The broom."])
        ],
    }
    for i, (question, answer, video, end) in enumerate(
        [
            ("Which object was put down by the person?", "The cup.", "AAA", 2.0),
            ("Which animal sat there?", "The cat.", "AAA", 2.0),
            ("Which object was seen?", "The cup.", "BBB", 1.0),
            ("What came then?", "The rocket.", "BBB", 1.0),
        ]
    )
]


class _TaskLoader(yaml.SafeLoader):
    """Reads the tag that lmms-eval gives functions."""


_TaskLoader.add_constructor(
    "!function", lambda loader, node: ("function", loader.construct_scalar(node))
)


@pytest.fixture
def star(tmp_path: Path, video: Path) -> Path:
    """A folder with STAR_val.json of four questions and both videos."""
    (tmp_path / "STAR_val.json").write_text(json.dumps(STAR), encoding="utf-8")
    for name in ("AAA", "BBB"):
        shutil.copy(video, tmp_path / f"{name}.mp4")
    return tmp_path


def test_a_task_file_names_documents_and_functions(star, tmp_path):
    benchmark = find_benchmark("star")
    items = benchmark.read(star, "val", False)
    (star / "BBB.mp4").unlink()
    task = write_task(benchmark, "val", items, star, tmp_path / "tasks")
    assert (task.name, task.documents, task.missing) == ("topa_star_val", 2, ["BBB"])
    text = (tmp_path / "tasks" / "topa_star_val.yaml").read_text(encoding="utf-8")
    loaded = yaml.load(text, Loader=_TaskLoader)
    assert loaded["doc_to_visual"] == ("function", "documents.to_visual")
    assert loaded["output_type"] == "multiple_choice"
    rows = Path(loaded["dataset_kwargs"]["data_files"]["test"]).read_text().splitlines()
    assert [json.loads(row)["answer"] for row in rows] == [0, 1]
    assert (tmp_path / "tasks" / "documents.py").is_file()


def test_a_folder_without_the_videos_makes_no_task(star, tmp_path):
    benchmark = find_benchmark("star")
    items = benchmark.read(star, "val", False)
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(DataError, match=r"2 videos is there, such as 'AAA'.*--videos"):
        write_task(benchmark, "val", items, tmp_path / "elsewhere", tmp_path / "tasks")
    assert not (tmp_path / "tasks").exists()


def test_secret_answers_make_no_task(star, tmp_path):
    benchmark = find_benchmark("star")
    items = [
        item.model_copy(update={"answer": None}) for item in benchmark.read(star, "val", False)
    ]
    with pytest.raises(DataError, match="not public"):
        write_task(benchmark, "val", items, star, tmp_path / "tasks")


def run_lmms(folder: Path, task: str, checkpoint: Path, out: Path) -> dict[str, float]:
    """Run lmms-eval on a task and return its metrics."""
    command = [
        *(sys.executable, "-m", "lmms_eval", "--model", "topa", "--tasks", task),
        *("--model_args", f"checkpoint={checkpoint}", "--batch_size", "8"),
        *("--include_path", str(folder), "--output_path", str(out), "--log_samples"),
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(out / "hf")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    found = list(out.rglob("*_results.json"))
    assert found, done.stdout[-3000:] + done.stderr[-3000:]  # a failed run ends with 0, too
    results = found[0]
    return json.loads(results.read_text(encoding="utf-8"))["results"][task]


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_lmms_eval_gives_our_accuracy(star, checkpoint, tmp_path):
    pytest.importorskip("lmms_eval", reason="lmms-eval wants an environment of its own")
    benchmark = find_benchmark("star")
    items = benchmark.read(star, "val", False)
    task = write_task(benchmark, "val", items, star, tmp_path / "tasks")
    found = run_lmms(task.folder, task.name, checkpoint, tmp_path / "out")
    topa = Topa.from_pretrained(checkpoint)
    ours = evaluate(topa, items, videos=star, method="likelihood-normalised")
    assert found["topa_accuracy,none"] == pytest.approx(ours.accuracy)


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_lmms_eval_reads_dialogue_as_we_do(video, checkpoint, tmp_path):
    """TVQA with subtitles; --log_samples shows the loss of every option."""
    pytest.importorskip("lmms_eval", reason="lmms-eval wants an environment of its own")
    benchmark = find_benchmark("tvqa")
    items = benchmark.read(Path(__file__).parent / "benchmarks" / "published" / "tvqa", "val", True)
    for item in items:
        assert item.subtitles
        shutil.copy(video, tmp_path / f"{item.video}.mp4")
    task = write_task(benchmark, "val", items, tmp_path, tmp_path / "tasks")
    run_lmms(task.folder, task.name, checkpoint, tmp_path / "out")
    (log,) = (tmp_path / "out").rglob(f"*samples_{task.name}.jsonl")
    samples = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    topa = Topa.from_pretrained(checkpoint)
    ours = evaluate(topa, items, videos=tmp_path, method="likelihood-normalised")
    for sample, row in zip(samples, ours.predictions, strict=True):
        losses = [float(value) for value, _ in sample["filtered_resps"]]
        assert losses == pytest.approx([-x for x in row["measures"]["likelihood"]], abs=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_lmms_eval_gives_our_caption_scores(video, checkpoint, tmp_path):
    pytest.importorskip("lmms_eval", reason="lmms-eval wants an environment of its own")
    for name in ("video0", "video1"):
        shutil.copy(video, tmp_path / f"{name}.mp4")
    items = [
        VideoCaption(video="video0", captions=["a cup of coffee on a table", "a red cup"]),
        VideoCaption(video="video1", captions=["a cat looks up", "a cat on a sofa"]),
    ]
    task = write_task(find_benchmark("msrvtt"), "test", items, tmp_path, tmp_path / "tasks")
    found = run_lmms(task.folder, task.name, checkpoint, tmp_path / "out")
    topa = Topa.from_pretrained(checkpoint)
    job = CaptionEvaluation(topa, items, VideoFolder(topa, tmp_path, 10), 10)
    rows, _ = job.answer()
    captions = {row["id"]: row["caption"] or "" for row in rows}
    ours = score_captions(captions, {item.video: item.captions for item in items}, meteor=False)
    assert found["topa_CIDEr,none"] == pytest.approx(100 * ours["CIDEr"]["score"], abs=1e-6)
    assert found["topa_BLEU_4,none"] == pytest.approx(100 * ours["BLEU-4"]["score"], abs=1e-6)
