"""Ablations on a tiny model: every setting on the same questions, paired, drawn with errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from topa.data.questions import VideoQuestion
from topa.errors import ConfigError
from topa.eval import ablation
from topa.eval.ablation import run_evaluation_arms, sample_memory, summarise_arms
from topa.eval.charts import tabulate_ablation, write_ablation
from topa.eval.jobs import Job, read_task
from topa.eval.trained_ablation import draw_videos, run_data_arms, run_task_arms
from topa.features.memory import Memory
from topa.tideo.schema import write_tideos
from topa.tideo.textvid import load_textvid


@pytest.fixture(scope="module")
def job(checkpoint: Path, tideos_path: Path) -> Job:
    return Job(str(tideos_path), limit=8, checkpoint=str(checkpoint))


def test_every_way_of_choosing_from_three_passes(job, tmp_path):
    task = read_task(job)
    arms = run_evaluation_arms("scoring", job, task, out=tmp_path, say=lambda _: None)
    assert [arm.name for arm in arms] == [
        *("likelihood-raw", "likelihood-normalised", "likelihood-pmi"),
        *("selection", "similarity", "combined", "generation"),
    ]
    assert {arm.report.n for arm in arms} == {8}
    summary = summarise_arms("scoring", arms)
    assert summary["reference"] == "selection"
    assert [row["difference"] is None for row in summary["rows"]].index(True) == 3
    alone = run_evaluation_arms(
        "frames",
        Job(job.name, limit=8, checkpoint=job.checkpoint, method="likelihood-raw"),
        task,
        values=[10],
        out=tmp_path / "alone",
        say=lambda _: None,
    )
    answers = [row["predicted"] for row in alone[0].report.predictions]
    assert answers == [row["predicted"] for row in arms[0].report.predictions]


def test_frames_are_paired_with_the_most_and_written(job, tmp_path):
    pytest.importorskip("matplotlib")
    task = read_task(job)
    arms = run_evaluation_arms("frames", job, task, values=[1, 4], out=tmp_path, say=lambda _: None)
    summary = summarise_arms("frames", arms)
    write_ablation(summary, tmp_path)
    assert [row["setting"] for row in summary["rows"]] == ["1 frame", "4 frames"]
    assert summary["rows"][0]["difference"]["n"] == 8
    assert summary["rows"][1]["difference"] is None
    text = (tmp_path / "ablation.md").read_text(encoding="utf-8")
    assert text == tabulate_ablation(json.loads((tmp_path / "ablation.json").read_text()))
    assert "only the first 8 of" in text
    assert (tmp_path / "ablation.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_compared_is_refused(job, tmp_path):
    task = read_task(job)
    for name in ("projection", "memory-size"):
        with pytest.raises(ConfigError, match="text features are not projected"):
            run_evaluation_arms(name, job, task, out=tmp_path, say=lambda _: None)


def test_a_part_of_a_memory_is_drawn_once_and_for_all(checkpoint):
    memory = ablation.Topa.from_pretrained(checkpoint).memory
    assert isinstance(memory, Memory)
    part = sample_memory(memory, 5)
    assert len(part) == 5
    assert part.features.equal(sample_memory(memory, 5).features)
    for row, caption in zip(part.features, part.captions, strict=True):
        assert any(
            row.equal(memory.features[i]) and caption == memory.captions[i]
            for i in range(len(memory))
        )


def test_a_mean_shift_is_one_more_arm_of_the_projection(job, checkpoint):
    """On Tideos nothing is projected; the arms are what is looked at here."""
    topa = ablation.Topa.from_pretrained(checkpoint)
    memory = topa.memory
    assert isinstance(memory, Memory)
    rows = torch.arange(len(memory))
    shifted = ablation.take_rows(memory, rows, torch.full((memory.dim,), 0.01))
    model = ablation.replace_memory(topa, shifted)
    arms = list(ablation._variants("projection", job, model, None))
    assert [label for label, _, _ in arms] == ["with projection", "mean shift", "without"]
    assert [job.use_memory for _, job, _ in arms] == [True, True, False]
    kinds = [used.memory.projection for _, _, used in arms]
    assert kinds == ["memory", "mean-shift", "mean-shift"]
    assert arms[0][2].memory.fingerprint_of_content == memory.fingerprint_of_content
    assert len(list(ablation._variants("projection", job, topa, None))) == 2


def test_smaller_shares_of_the_data_lie_within_larger_ones():
    questions = [
        VideoQuestion(qid=str(i), video=str(i // 2), question="?", options=["a", "b"], answer=0)
        for i in range(400)
    ]
    parts = {share: {q.video for q in draw_videos(questions, share)} for share in (1, 10, 100)}
    assert [len(parts[share]) for share in (1, 10, 100)] == [2, 20, 200]
    assert parts[1] < parts[10] < parts[100]
    assert len(draw_videos(questions, 10)) == 40
    with pytest.raises(ConfigError, match="0% of the data"):
        draw_videos(questions, 0)


@pytest.mark.slow
def test_ablations_that_train_evaluate_what_they_trained(
    job, align_config, checkpoint, tiny_llm_folder, tmp_path
):
    task = read_task(job)
    settings = [
        f"model.llm={tiny_llm_folder}",
        "model.lora_rank=2",
        "model.dtype=float32",
        f"data.tideos={align_config.data.tideos}",
        "data.validation=2",
        "train.max_steps=3",
        "train.batch_size=2",
    ]
    arms = run_task_arms(
        job, task, config=None, settings=settings, out=tmp_path / "tasks", say=lambda _: None
    )
    assert [arm.name for arm in arms] == ["with multiple choice", "without"]
    marks = {arm.report.fingerprints["checkpoint"] for arm in arms}
    assert len(marks) == 2
    heldout = Job("heldout", limit=4, checkpoint=str(checkpoint))
    plain = tmp_path / "plain.jsonl"
    write_tideos(plain, load_textvid("everyday")[:6])
    training = Job(str(plain), checkpoint=str(checkpoint))
    arms = run_data_arms(
        heldout,
        read_task(heldout),
        read_task(training),
        training,
        settings=["train.max_steps=3", "train.batch_size=2", "data.validation=0"],
        shares=[50],
        out=tmp_path / "data",
        say=lambda _: None,
    )
    assert [arm.name for arm in arms] == [
        "50% of the data, pre-aligned",
        "50% of the data, from scratch",
    ]
    # The fixture is untrained, so that its weights are those from scratch: ask the settings.
    for name, scratch in (("50-pre-aligned", "false"), ("50-from-scratch", "true")):
        text = (tmp_path / "data" / name / "run" / "config.yaml").read_text(encoding="utf-8")
        assert f"from_scratch: {scratch}" in text
    first, second = (row["difference"] for row in summarise_arms("data-size", arms)["rows"])
    assert (first["n"], second) == (4, None)


def test_a_comparison_of_what_was_seen_before_is_refused(job, tmp_path):
    """A question to be evaluated, or a Tideo of the pre-alignment, tells nothing once seen."""
    heldout = Job("heldout", limit=4, checkpoint=job.checkpoint)
    for asked, message in ((job, "both trained on and evaluated"), (heldout, "was pre-aligned on")):
        with pytest.raises(ConfigError, match=message):
            run_data_arms(
                asked, read_task(asked), read_task(job), job, out=tmp_path, say=lambda _: None
            )


def test_what_is_left_out_must_be_there_and_something_else_too(job, tmp_path):
    for tasks in ("{caption: 1, open: 1}", "{choice: 1, contrast: 1}"):
        with pytest.raises(ConfigError, match="multiple choice cannot be left out"):
            run_task_arms(
                job,
                read_task(job),
                config=None,
                settings=[f"data.tasks={tasks}"],
                out=tmp_path,
                say=lambda _: None,
            )
