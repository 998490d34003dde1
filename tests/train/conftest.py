"""A pre-alignment small enough to run many times: tiny LLM, 12 Tideos, an encoder by hash."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from topa.config import AlignConfig, load_config
from topa.model.language import Language
from topa.train import align as alignment
from topa.train.align import align
from topa.train.session import TrainResult


@pytest.fixture
def settings(tideos_path: Path, tmp_path: Path) -> Callable[..., AlignConfig]:
    """Makes settings of 8 steps: 5 batches of 2 Tideos an epoch, 2 to a step, so 3 steps."""

    def settings(*overrides: str, out: str = "run") -> AlignConfig:
        small = [
            "model.llm=tiny",
            "model.lora_rank=2",
            "model.num_frames=4",
            "model.dtype=float32",
            f"data.tideos={tideos_path}",
            "data.validation=2",
            "data.object_dropout=0.2",
            "data.blind=0.3",
            "data.tasks={choice: 0.3, caption: 0.2, open: 0.2, contrast: 0.2, recognise: 0.1}",
            "train.max_steps=8",
            "train.batch_size=2",
            "train.accumulation=2",
            "train.evaluate_every=2",
            "train.save_every=2",
        ]
        return load_config(AlignConfig, overrides=[*small, *overrides, f"out={tmp_path / out}"])

    return settings


@pytest.fixture
def run(
    make_tiny_llm: Callable[[], Language], monkeypatch, tmp_path, hash_encoder
) -> Callable[..., TrainResult]:
    """Runs a pre-alignment with a fresh tiny LLM."""
    monkeypatch.setattr(alignment, "load_encoder", lambda name, **_: hash_encoder)
    monkeypatch.setenv("TOPA_CACHE", str(tmp_path / "cache"))

    def run(config: AlignConfig, **kwargs) -> TrainResult:
        return align(config, **{"language": make_tiny_llm(), **kwargs})

    return run
