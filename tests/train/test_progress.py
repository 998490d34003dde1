"""What a training tells: lines, steps, TensorBoard's files and those of Weights & Biases."""

from __future__ import annotations

import pytest

from topa.errors import ConfigError
from topa.runs import read_jsonl
from topa.train.progress import describe

SHORT = ("train.max_steps=2", "train.log_every=1", "data.validation=2")


def test_a_row_of_the_log_is_a_line():
    speed = {
        "samples_per_second": 12.345,
        "tokens_per_second": 1061.0,
        "padded_tokens_per_second": 1200.0,
        "mfu": 0.417,
        "data_wait": 0.002,
    }
    assert describe({"loss": 0.123456, "grad_norm": 1.0, **speed}) == (
        "loss 0.1235; 12.3 samples/s, 1061 tokens/s (1200 with padding), MFU 41.7%, data wait 0.2%"
    )
    assert describe({"eval_raw_accuracy": 0.5, "eval_nll_open": 2.0}) == (
        "validation raw accuracy 50.0%, nll open 2.000"
    )
    assert describe({"train_loss": 1.0, "train_runtime": 3.0}) == ""


def test_steps_and_figures_are_told(settings, run):
    said, steps = [], []
    run(settings(*SHORT), say=said.append, progress=lambda *row: steps.append(row))
    assert [row for row in steps if row[0] == "steps"] == [("steps", n, 2) for n in range(3)]
    lines = [line for line in said if line.startswith("step ")]
    assert [line.split(": ")[0] for line in lines] == ["step 1 of 2"] + ["step 2 of 2"] * 2
    assert "samples/s" in lines[0]
    assert "validation accuracy" in lines[2]


def test_tensorboard_gets_what_the_log_has(settings, run, tmp_path):
    pytest.importorskip("tensorboard", reason="needs the extra `track`")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(settings(*SHORT, "train.report_to=[tensorboard]"))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    rows = [row for _, row in read_jsonl(tmp_path / "run" / "metrics.jsonl")]
    for tag, name in (
        ("train/loss", "loss"),
        ("train/mfu", "mfu"),
        ("eval/accuracy", "eval_accuracy"),
    ):
        expected = [(row["step"], pytest.approx(row[name])) for row in rows if name in row]
        assert [(event.step, event.value) for event in events.Scalars(tag)] == expected, tag


def test_weights_and_biases_keeps_its_files_in_the_run_directory(
    settings, run, tmp_path, monkeypatch
):
    pytest.importorskip("wandb", reason="needs wandb")
    for name in ("WANDB_PROJECT", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run(settings(*SHORT, "train.report_to=[wandb]"))
    [record] = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"eval/accuracy" in record.read_bytes()


@pytest.mark.parametrize(
    ("setting", "package", "advice"),
    [
        ("train.report_to=[tensorboard]", "tensorboard", r"pip install -e '\.\[track\]'"),
        ("train.report_to=[wandb]", "wandb", "pip install wandb"),
        ("train.deepspeed={path}", "deepspeed", "pip install deepspeed"),
    ],
)
def test_an_absent_library_is_named_before_anything_starts(
    setting, package, advice, settings, run, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "topa.train.session.importlib.util.find_spec",
        lambda name: None if name == package else object(),
    )
    path = tmp_path / "zero.json"
    path.write_text("{}")
    with pytest.raises(ConfigError, match=f"{package} is not installed.*{advice}"):
        run(settings(setting.format(path=path)))
    assert not (tmp_path / "run").exists()
