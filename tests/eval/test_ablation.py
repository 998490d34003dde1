"""Ablations on a tiny model: every setting on the same questions, paired, drawn with errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from topa.data.questions import VideoQuestion
from topa.errors import ConfigError
from topa.eval import ablation
from topa.eval.ablation import run_evaluation_arms, sample_memory, summarise_arms
from topa.eval.charts import tabulate_ablation, write_ablation
from topa.eval.jobs import Job, read_task
from topa.eval.trained_ablation import draw_videos
from topa.features.memory import Memory


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
