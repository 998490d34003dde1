"""Two processes do what one does: DDP and FSDP2 over gloo on the CPU."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from topa.config import dump_config
from topa.runs import read_jsonl

# Runs pre-alignments one after the other, in the processes that torchrun would start. A name
# given twice is stopped after its second step, then goes on from the checkpoint of that step.
SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import torch
torch.set_num_threads(1)
from accelerate.state import AcceleratorState
from topa.config import AlignConfig, load_config
from topa.train import align as alignment
from topa.train.run import RunLog
from conftest import HashEncoder

alignment.load_encoder = lambda name, **_: HashEncoder()
plain = RunLog.on_step_end
paths = sys.argv[2:]

class Stop(Exception):
    pass

def stop(self, args, state, control, **kwargs):
    if state.global_step == 3:
        raise Stop
    return plain(self, args, state, control, **kwargs)

for place, path in enumerate(paths):
    RunLog.on_step_end = stop if path in paths[place + 1:] else plain
    try:
        alignment.align(load_config(AlignConfig, Path(path)))
    except Stop:
        pass
    AcceleratorState._reset_state(reset_partial_state=True)
torch.distributed.destroy_process_group()
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start_two(script: Path, cache: Path, *paths: Path) -> None:
    """Run the script in two processes, as torchrun does."""
    shared = {
        **os.environ,
        "TOPA_CACHE": str(cache),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(script), str(Path(__file__).parents[1]), *map(str, paths)]
    processes = [
        subprocess.Popen(
            command,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=280)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)


def steps(out: Path) -> list[tuple[int, float, float]]:
    rows = [row for _, row in read_jsonl(out / "metrics.jsonl")]
    return [(row["step"], row["loss"], row["grad_norm"]) for row in rows if "loss" in row]


def assert_same_training(one: Path, other: Path) -> None:
    first, second = steps(one), steps(other)
    assert [step for step, *_ in first] == [step for step, *_ in second] == [1, 2, 3, 4, 5, 6]
    for a, b in zip(first, second, strict=True):
        assert b == pytest.approx(a, rel=1e-3), f"step {a[0]}"
    before, after = (load_file(out / "final" / "model.safetensors") for out in (one, other))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        error = (after[name] - tensor).norm() / tensor.norm()
        assert error < 1e-2, f"{name}: {float(error)}"


@pytest.mark.timeout(290)
def test_two_processes_train_as_one_and_shards_are_gone_on_from(
    settings, run, tiny_llm_folder, tmp_path
):
    """9 Tideos in steps of 4: in the last of an epoch one process has nothing left.

    The batches of two processes are halves of those of one. A sample that came twice, a mean
    of means, or a gradient that was not reduced would show in losses and gradient norms.
    """
    common = (
        f"model.llm={tiny_llm_folder}",
        "model.variant=adapter",
        "model.adapter_length=4",
        "data.validation=3",
        "train.accumulation=1",
        "train.max_steps=6",
        "train.log_every=1",
        "train.save_every=2",
        "train.evaluate_every=6",
        "train.ridge_start=false",
    )
    run(settings(*common, "train.batch_size=4", out="one"))
    paths = {}
    for name in ("ddp", "fsdp"):
        config = settings(*common, "train.batch_size=2", f"train.parallel={name}", out=name)
        paths[name] = tmp_path / f"{name}.yaml"
        paths[name].write_text(dump_config(config))
    script = tmp_path / "two.py"
    script.write_text(SCRIPT)
    start_two(script, tmp_path / "cache", paths["ddp"], paths["fsdp"], paths["fsdp"])
    assert_same_training(tmp_path / "one", tmp_path / "ddp")
    assert_same_training(tmp_path / "one", tmp_path / "fsdp")
    kept = torch.load(
        tmp_path / "fsdp" / "checkpoints" / "checkpoint-6" / "optimizer.pt", weights_only=True
    )
    assert kept["state"], "the optimizer's state is kept by name"
    assert all(isinstance(name, str) for name in kept["state"])
