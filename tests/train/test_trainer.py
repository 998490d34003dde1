"""Steps, losses and checkpoints: what is resumed ends as what was never stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerControl, TrainerState

from topa.config import dump_config
from topa.data.dataset import TideoDataset
from topa.errors import TopaError
from topa.features.store import encode_tideos
from topa.runs import read_json, read_jsonl, write_json
from topa.train.align import build_model
from topa.train.run import RunLog, find_resume
from topa.train.session import make_arguments
from topa.train.trainer import SampleCollator, TopaTrainer

STEPS = 8


class Stop(Exception):
    """Ends a run from within."""


def final(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "final" / "model.safetensors")


def assert_equal_to_the_bit(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.fixture
def stop_at(monkeypatch):
    """Makes the runs that follow stop after a number of steps; None lets them go on."""
    plain = RunLog.on_step_end

    def stop_at(step):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == step:
                raise Stop
            return plain(self, args, state, control, **kwargs)

        monkeypatch.setattr(RunLog, "on_step_end", plain if step is None else on_step_end)

    return stop_at


# Resuming ---------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 3, 5, 8], ids="stopped at {}".format)
def test_a_resumed_run_ends_as_one_never_stopped(step, settings, run, stop_at, tmp_path):
    """Stopped before the first checkpoint, at the end of an epoch, within one, at the end."""
    whole = run(settings(out="whole"))
    stop_at(step)
    with pytest.raises(Stop):
        run(settings(out="parts"))
    stop_at(None)
    said: list[str] = []
    resumed = run(settings(out="parts"), say=said.append)
    assert any("Going on from step" in line for line in said) == (step > 2)
    assert resumed.steps == whole.steps == STEPS
    assert resumed.metrics == whole.metrics
    assert_equal_to_the_bit(final(tmp_path / "whole"), final(tmp_path / "parts"))
    best = [read_json(tmp_path / name / "best" / "metrics.json") for name in ("whole", "parts")]
    assert best[0] == best[1]
    logs = [
        [
            (row["step"], row.get("eval_accuracy"), row.get("loss"))
            for _, row in read_jsonl(tmp_path / name / "metrics.jsonl")
        ]
        for name in ("whole", "parts")
    ]
    assert logs[0] == logs[1]  # steps done twice are logged once


def test_the_epoch_is_right_after_resuming_within_one(settings, run, stop_at, monkeypatch):
    """Samples of a resumed run are drawn from the epoch it stopped in."""
    drawn: list[tuple[int, int]] = []
    plain = TideoDataset.__getitem__

    def note(self, index):
        if len(self) == 10:  # those of training, not the 2 of validation
            drawn.append((self.epoch, index))
        return plain(self, index)

    monkeypatch.setattr(TideoDataset, "__getitem__", note)
    run(settings(out="whole"))
    whole, drawn[:] = list(drawn), []
    stop_at(5)
    with pytest.raises(Stop):
        run(settings(out="parts"))
    stop_at(None)
    drawn.clear()
    run(settings(out="parts"))
    # Step 4 was saved: epoch 0 had 10 samples, step 4 was 4 of epoch 1. One batch is read ahead.
    assert drawn == whole[14:]
    assert drawn[0][0] == 1


def test_a_checkpoint_cut_off_while_written_is_not_gone_on_from(settings, run, stop_at, tmp_path):
    run(settings(out="whole"))
    stop_at(5)
    with pytest.raises(Stop):
        run(settings(out="parts"))
    stop_at(None)
    checkpoints = tmp_path / "parts" / "checkpoints"
    whole = (checkpoints / "checkpoint-4" / "model.safetensors").read_bytes()
    for number, state in ((6, None), (7, '{"global_step": 7, ')):
        broken = checkpoints / f"checkpoint-{number}"
        broken.mkdir()
        (broken / "model.safetensors").write_bytes(whole)
        if state:
            (broken / "trainer_state.json").write_text(state)
    run(settings(out="parts"))
    assert_equal_to_the_bit(final(tmp_path / "whole"), final(tmp_path / "parts"))


def test_a_run_that_lost_only_its_end_takes_no_more_steps(settings, run, tmp_path):
    first = run(settings())
    before = final(tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    (tmp_path / "run" / "final" / "model.safetensors").unlink()
    again = run(settings())
    assert (again.steps, again.metrics) == (first.steps, first.metrics)
    assert_equal_to_the_bit(before, final(tmp_path / "run"))


def test_resuming_does_not_forget_the_best(settings, run, stop_at, tmp_path):
    stop_at(5)
    with pytest.raises(Stop):
        run(settings())
    stop_at(None)
    best = tmp_path / "run" / "best"
    write_json(best / "metrics.json", {"step": 2, "accuracy": 2.0})  # no later one is better
    kept = (best / "model.safetensors").read_bytes()
    run(settings())
    assert (best / "model.safetensors").read_bytes() == kept
    assert read_json(best / "metrics.json")["step"] == 2


def test_nothing_to_go_on_from(tmp_path):
    assert find_resume(tmp_path / "none") is None
    (tmp_path / "checkpoint-3").mkdir()
    assert find_resume(tmp_path) is None
    assert not (tmp_path / "checkpoint-3").exists()


SCRIPT = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from pathlib import Path
from topa.config import AlignConfig, load_config
from topa.train.run import RunLog
from conftest import HashEncoder
from topa.train import align as alignment

alignment.load_encoder = lambda name, **_: HashEncoder()
plain, last = RunLog.on_step_end, int(sys.argv[2])

def on_step_end(self, args, state, control, **kwargs):
    if state.global_step == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(self, args, state, control, **kwargs)

RunLog.on_step_end = on_step_end
for path in sys.argv[3:]:
    alignment.align(load_config(AlignConfig, Path(path)))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_process_goes_on_to_the_same_end(settings, tiny_llm_folder, tmp_path):
    """SIGKILL leaves no time to tidy up. Every run is a process of its own."""
    paths = {}
    for name in ("whole", "parts"):
        config = settings(f"model.llm={tiny_llm_folder}", out=name)
        paths[name] = tmp_path / f"{name}.yaml"
        paths[name].write_text(dump_config(config))
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)

    def start(last, *names):
        command = [sys.executable, str(script), str(Path(__file__).parents[1]), str(last)]
        environment = {**os.environ, "TOPA_CACHE": str(tmp_path / "cache")}
        return subprocess.run(
            [*command, *(str(paths[name]) for name in names)],
            env=environment,
            capture_output=True,
            text=True,
        )

    killed = start(5, "parts")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "parts" / "result.json").exists()
    done = start(-1, "parts", "whole")
    assert done.returncode == 0, done.stderr
    assert_equal_to_the_bit(final(tmp_path / "whole"), final(tmp_path / "parts"))


# Steps ------------------------------------------------------------------------------------


@pytest.fixture
def make_trainer(settings, tideos, hash_encoder, make_tiny_llm, tmp_path):
    """Makes a trainer of 12 Tideos around a fresh model."""

    def make(*overrides):
        config = settings(*overrides)
        model, builder = build_model(config, hash_encoder, make_tiny_llm())
        dataset = TideoDataset(
            tideos,
            encode_tideos(tideos, hash_encoder, cache=False),
            builder,
            num_frames=4,
            tasks=config.data.tasks,
            blind=0.3,
        )
        arguments = make_arguments(
            config.train, tmp_path / "checkpoints", config.train.max_steps, False, False, model
        )
        return TopaTrainer(
            model,
            arguments,
            dataset,
            None,
            best=tmp_path / "best",
            projector_learning_rate=0.5,
            contrast_weight=2.0,
        )

    return make


def loss_of(trainer, parts):
    """Return the loss and gradients of one step made of micro-batches of given samples."""
    trainer.topa.train()
    collator = SampleCollator(4)
    batches = [collator([trainer.train_dataset[i] for i in part]) for part in parts]
    batches, counts = trainer.get_batch_samples(iter(batches), len(parts), torch.device("cpu"))
    losses = [trainer.compute_loss(trainer.model, x, num_items_in_batch=counts) for x in batches]
    trainer.topa.zero_grad()
    sum(losses).backward()
    gradients = {name: p.grad.clone() for name, p in trainer.topa.trainable_parameters()}
    return float(sum(losses)), gradients


def test_micro_batches_weigh_every_token_the_same(make_trainer):
    """Sum over tokens / number of tokens in the whole step, not a mean of means."""
    trainer = make_trainer()
    one, gradients = loss_of(trainer, [[0, 1, 2, 3, 4, 5]])
    for parts in ([[0, 1], [2, 3], [4, 5]], [[5], [4, 3, 2, 1, 0]]):
        several, others = loss_of(trainer, parts)
        assert several == pytest.approx(one, rel=1e-5)
        for name, gradient in gradients.items():
            torch.testing.assert_close(others[name], gradient, rtol=1e-3, atol=1e-6)


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_batch(make_trainer, tmp_path):
    trainer = make_trainer("data.tasks={contrast: 1.0}")
    trainer.topa.visual_proj.weight.data.fill_(float("nan"))
    with pytest.raises(TopaError, match=r"bad_batch\.pt: the loss is nan at step 0") as caught:
        trainer.train()
    assert caught.value.where == tmp_path / "bad_batch.pt"
    kept = torch.load(tmp_path / "bad_batch.pt", weights_only=True)
    assert {"input_ids", "features", "blind"} <= set(kept)
    assert kept["features"].isfinite().all()


def test_the_projector_has_its_own_rate_and_no_decay(make_trainer):
    trainer = make_trainer()
    projector, others = trainer.create_optimizer().param_groups
    names = {parameter: name for name, parameter in trainer.topa.named_parameters()}
    assert {names[p] for p in projector["params"]} == {
        "visual_proj.weight",
        "temporal_emb.weight",
    }
    assert (projector["lr"], projector["weight_decay"]) == (0.5, 0.0)
    assert all("lora_" in names[p] for p in others["params"])
    assert (others["lr"], others["weight_decay"]) == (1e-3, 0.1)
    assert projector["betas"] == others["betas"] == (0.9, 0.95)


def test_blind_samples_have_no_frames(make_trainer):
    trainer = make_trainer("data.tasks={contrast: 1.0}")
    samples = [trainer.train_dataset[i] for i in range(12)]
    inputs = SampleCollator(4)(samples)
    assert inputs["blind"].tolist() == [sample.blind for sample in samples]
    assert 0 < inputs["blind"].sum() < 12
    assert inputs["frame_mask"].any(1).tolist() == [not sample.blind for sample in samples]


def test_the_log_stops_a_run_at_its_deadline(tmp_path):
    for seconds, stops in ((None, False), (1000.0, False), (-1.0, True)):
        log = RunLog(tmp_path / "metrics.jsonl", seconds)
        control = log.on_step_end(None, TrainerState(), TrainerControl())
        assert control.should_training_stop is stops


def test_time_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "seconds": 50.0}\n{"step": 4, "seconds": 90.0}\n{"step": 6, "sec')
    log = RunLog(path, seconds=60.0)
    log.on_train_begin(None, TrainerState(global_step=2), TrainerControl())
    assert 50.0 <= log.elapsed < 55.0
    assert path.read_text() == '{"step": 2, "seconds": 50.0}\n'
