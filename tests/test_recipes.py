"""Every file in configs: short, valid, and with the paper's learning rate where it has one."""

from __future__ import annotations

from pathlib import Path

import pytest

from topa.config import AlignConfig, FinetuneConfig, load_config

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_is_valid_and_at_most_40_lines_long(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 40
    load_config(FinetuneConfig if path.stem.startswith("finetune") else AlignConfig, path)


@pytest.mark.parametrize(
    ("name", "base", "batch"),
    [
        ("llama2-7b", 5e-3, 18 * 4 * 4),
        ("llama2-13b", 8e-3, 4 * 4 * 8),
        ("llama3-8b", 5e-3, 14 * 4 * 8),
    ],
)
def test_the_papers_rate_is_its_base_times_the_global_batch_over_256(name, base, batch):
    path = next(path for path in CONFIGS if path.stem == name)
    train = load_config(AlignConfig, path).train
    assert train.batch_size * train.accumulation * 4 == batch
    assert train.learning_rate == pytest.approx(base * batch / 256)
    assert train.epochs * train.warmup == 1
