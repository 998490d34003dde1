"""Pre-alignment as a whole: its run directory, what is kept out, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from topa.errors import ConfigError, FingerprintError
from topa.model.checkpoint import read_config
from topa.model.topa import TopaForConditionalGeneration
from topa.runs import read_json, read_jsonl
from topa.train.align import build_model, choose_dtype, split_validation


def trainables(folder):
    return load_file(folder / "model.safetensors")


def test_the_run_directory_holds_what_the_design_asks_for(settings, run, tmp_path):
    config, said = settings(), []
    result = run(config, say=said.append)
    out = tmp_path / "run"
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert {
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "result.json",
        "best/config.json",
        "best/model.safetensors",
        "best/metrics.json",
        "final/config.json",
        "final/model.safetensors",
    } <= names
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"checkpoint-8"}
    assert result.checkpoint == out / "final"
    assert result.steps == 8
    assert any("10 Tideos to train on and 2 to validate with" in line for line in said)
    assert {"python", "packages"} <= set(read_json(out / "environment.json"))


def test_the_log_has_losses_and_validations(settings, run, tmp_path):
    run(settings())
    rows = [row for _, row in read_jsonl(tmp_path / "run" / "metrics.jsonl")]
    measured = [row["step"] for row in rows if "eval_accuracy" in row]
    assert measured == [2, 4, 6, 8]  # the last step once, not once more at the end
    assert all(0 <= row["eval_blind_accuracy"] <= 1 for row in rows if "eval_accuracy" in row)
    assert any(row.get("train_loss", 0) > 0 for row in rows)


def test_the_best_checkpoint_is_the_one_that_measured_best(settings, run, tmp_path):
    run(settings())
    out = tmp_path / "run"
    rows = [row for _, row in read_jsonl(out / "metrics.jsonl") if "eval_accuracy" in row]
    top = max(rows, key=lambda row: row["eval_accuracy"])  # the first of equals
    best = read_json(out / "best" / "metrics.json")
    assert (best["step"], best["accuracy"]) == (top["step"], top["eval_accuracy"])


def test_a_finished_checkpoint_loads_and_knows_its_parts(settings, run, tmp_path, make_tiny_llm):
    config = settings()
    run(config)
    language = make_tiny_llm()
    for name in ("best", "final"):
        folder = tmp_path / "run" / name
        TopaForConditionalGeneration.from_pretrained(folder, language=make_tiny_llm())
        found = read_config(folder)
        assert found.llm_fingerprint == language.fingerprint
        assert found.encoder_fingerprint == "hash-8"
        assert found.template_version == "topa-1"
        assert found.tideos == [config.data.tideos]


@pytest.mark.parametrize("variant", ["adapter", "lora", "projector"])
def test_training_changes_all_that_is_trained_and_nothing_else(
    variant, settings, run, tmp_path, make_tiny_llm
):
    language = make_tiny_llm()
    frozen = {k: v.clone() for k, v in language.model.state_dict().items()}
    config = settings(f"model.variant={variant}", "train.ridge_start=false")
    run(config, language=language)
    start, _ = build_model(
        config, type("Encoder", (), {"dim": 8, "fingerprint": "hash-8"})(), make_tiny_llm()
    )
    trained = trainables(tmp_path / "run" / "final")
    assert trained.keys() == dict(start.saved_tensors()).keys()
    for name, before in start.saved_tensors():
        assert not torch.equal(trained[name], before.detach()), name
    after = {
        name.replace(".base_layer", ""): tensor
        for name, tensor in language.model.state_dict().items()
    }
    for name, tensor in frozen.items():
        assert torch.equal(after[name], tensor), name


def test_a_finished_run_is_not_repeated(settings, run, tmp_path):
    config, said = settings(), []
    first = run(config)
    weights = tmp_path / "run" / "final" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    again = run(config, say=said.append)
    assert again == first
    assert weights.stat().st_mtime_ns == written
    assert any("finished: 8 steps" in line for line in said)


def test_other_settings_in_the_same_directory_are_refused(settings, run):
    run(settings())
    with pytest.raises(ConfigError, match=r"config\.yaml: .*other settings"):
        run(settings("train.learning_rate=1e-4"))


def test_other_settings_may_follow_a_run_that_never_began(settings, run):
    with pytest.raises(ConfigError, match="12 validation Tideos asked for"):
        run(settings("data.validation=12"))
    assert run(settings("train.max_steps=1")).steps == 1


def test_no_samples_left_is_an_error(settings, run):
    with pytest.raises(ConfigError, match="all 10 samples are longer than 20 tokens"):
        run(settings("data.max_length=20"))


def test_without_validation_nothing_is_measured(settings, run, tmp_path):
    result = run(settings("data.validation=0", "train.max_steps=2"))
    assert result.metrics == {}
    assert not (tmp_path / "run" / "best").exists()


def test_training_goes_on_from_the_weights_of_a_checkpoint(settings, run, tmp_path):
    first = run(settings())
    still = ("train.learning_rate=1e-30", "train.weight_decay=0", "train.ridge_start=true")
    second = run(settings(f"model.start={first.checkpoint}", *still, out="second"))
    before, after = trainables(first.checkpoint), trainables(second.checkpoint)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_start_from_another_encoder_is_refused(settings, run, tmp_path):
    first = run(settings())
    path = first.checkpoint / "config.json"
    path.write_text(path.read_text().replace('"hash-8"', '"another"'))
    with pytest.raises(FingerprintError, match="encoder"):
        run(settings(f"model.start={first.checkpoint}", out="second"))


def test_extra_tideos_are_trained_on_unless_they_validate(settings, run, tideos_path):
    said = []
    run(settings(f"data.extra=[{tideos_path}]", "train.max_steps=1"), say=said.append)
    # 10 of the 12, and all 12 again but for the 2 of validation.
    assert any("20 Tideos to train on and 2 to validate" in line for line in said)


def test_a_run_by_the_clock_takes_the_steps_that_fit(settings, run):
    """Also where an epoch is a single batch, whose first step is all there is to measure."""
    said = []
    config = settings(
        "train.minutes=0.01", "train.max_steps=3", "train.batch_size=16", "train.accumulation=1"
    )
    result = run(config, say=said.append)
    assert any("fit into 0.01 min" in line for line in said)
    assert 1 <= result.steps <= 3


def test_trainables_stay_in_32_bits_beside_an_llm_in_16(settings, run, tmp_path, make_tiny_llm):
    language = make_tiny_llm()
    language.model.to(torch.bfloat16)
    run(settings("model.dtype=bfloat16", "train.max_steps=2"), language=language)
    trained = trainables(tmp_path / "run" / "final")
    assert {tensor.dtype for tensor in trained.values()} == {torch.float32}
    assert all(tensor.isfinite().all() for tensor in trained.values())


def test_the_dictionary_is_built_from_the_training_tideos(settings, run, tmp_path):
    said = []
    run(settings("model.dictionary=true", "train.max_steps=1"), say=said.append)
    [line] = [line for line in said if "dictionary" in line]
    size = read_config(tmp_path / "run" / "final").dictionary_size
    assert f"dictionary of {size}." in line
    assert len(trainables(tmp_path / "run" / "final")["words.tokens"]) == size > 10


@pytest.mark.parametrize("count", [0, 1, 5, 11])
def test_validation_tideos_are_kept_out_of_training(count):
    trained, kept = split_validation(12, count, seed=3)
    assert len(kept) == count
    assert sorted(trained + kept) == list(range(12))
    assert (trained, kept) == split_validation(12, count, seed=3)


def test_fewer_validation_tideos_are_among_more():
    """The split is the end of one shuffle, whatever its size."""
    few, many = (split_validation(12, n, seed=1)[1] for n in (3, 6))
    assert set(few) <= set(many)


def test_validation_must_leave_something():
    with pytest.raises(ConfigError, match="12 validation Tideos asked for, there are 12"):
        split_validation(12, 12, seed=0)


def test_types_by_name():
    assert choose_dtype("float32") is torch.float32
    assert choose_dtype("bfloat16") is torch.bfloat16
    assert choose_dtype("auto") in (torch.float32, torch.bfloat16)


def test_the_result_is_a_record_of_plain_numbers(settings, run, tmp_path):
    result = run(settings("train.max_steps=2"))
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert record == {"steps": 2, "seconds": result.seconds, "metrics": result.metrics}
    assert result.seconds > 0
