"""Runs that are gone on with, losses that are no numbers, and disks that are full."""

from __future__ import annotations

import os
import subprocess

import pytest
import torch

from topa.config import AlignConfig, FinetuneConfig, dump_config, load_config
from topa.errors import ConfigError, TopaError
from topa.runs import write_json
from topa.train.curve import draw_curve
from topa.train.guard import LossGuard
from topa.train.run import find_unfinished, open_run


def make_run(folder, config, moment):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(config))
    os.utime(folder, (moment, moment))


def test_the_last_unfinished_run_of_its_kind_is_found(tmp_path):
    make_run(tmp_path / "a", AlignConfig(), 10)
    make_run(tmp_path / "deep" / "b", AlignConfig(), 20)
    make_run(tmp_path / "tuned", FinetuneConfig(), 30)
    make_run(tmp_path / "done", AlignConfig(), 40)
    write_json(tmp_path / "done" / "result.json", {})
    assert find_unfinished(tmp_path, AlignConfig) == tmp_path / "deep" / "b"
    assert find_unfinished(tmp_path, FinetuneConfig) == tmp_path / "tuned"
    with pytest.raises(ConfigError, match="no run that is not finished"):
        find_unfinished(tmp_path / "a" / "none", AlignConfig)


def test_settings_that_are_new_do_not_part_a_run_from_its_folder(tmp_path):
    config = AlignConfig(out=str(tmp_path))
    lines = [line for line in dump_config(config).splitlines() if "workers" not in line]
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    (tmp_path / "metrics.jsonl").touch()  # it has begun
    open_run(tmp_path, config)
    with pytest.raises(ConfigError, match="other settings"):
        open_run(tmp_path, config.model_copy(update={"out": "elsewhere"}))


def test_a_run_that_never_began_takes_other_settings(tmp_path):
    open_run(tmp_path, AlignConfig(out=str(tmp_path)))
    other = AlignConfig(out=str(tmp_path), train={"max_steps": 7})
    open_run(tmp_path, other)
    assert load_config(AlignConfig, tmp_path / "config.yaml") == other


def test_a_loss_left_unseen_is_found_before_anything_is_saved(tmp_path):
    """As on a GPU, where it is looked at one micro-batch later."""
    guard = LossGuard(tmp_path / "bad.pt")
    guard.pending = (torch.tensor(float("inf")), {"input_ids": torch.arange(3)}, 7)
    with pytest.raises(TopaError, match="the loss is inf at step 7"):
        guard.flush()
    assert torch.equal(torch.load(tmp_path / "bad.pt")["input_ids"], torch.arange(3))
    guard.flush()  # once is enough
    guard.watch(torch.tensor(1.0), {}, 8)


def test_the_curve_is_drawn_from_the_log(tmp_path):
    pytest.importorskip("matplotlib", reason="needs the extra eval")
    log = tmp_path / "metrics.jsonl"
    log.write_text(
        '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n'
        '{"step": 2, "eval_accuracy": 0.5, "eval_blind_accuracy": 0.2}\n'
    )
    assert draw_curve(log, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_full_disk_leaves_the_last_checkpoint_to_go_on_from(settings, run, tmp_path):
    """A file system of 400 kB: it holds a checkpoint, and not two."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs rights that this user does not have")
    few = (
        "data.validation=0",
        "train.save_every=1",
        "train.max_steps=4",
        "model.lora_rank=16",
    )
    try:
        with pytest.raises(TopaError, match=r"checkpoint of step \d cannot be written"):
            run(settings(*few, out="disk/run"))
        kept = sorted(path.name for path in (disk / "run" / "checkpoints").iterdir())
        assert "checkpoint-1" in kept
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        said: list[str] = []
        assert run(settings(*few, out="disk/run"), say=said.append).steps == 4
        assert any(line.startswith("Going on from step ") for line in said)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
