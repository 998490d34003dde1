"""The feature store: whole or not there, readable while written, one writer, kill -9."""

from __future__ import annotations

import json
import multiprocessing
import time
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from topa.errors import ConfigError, DataError, FingerprintError
from topa.features.index import Entry
from topa.features.shards import FeatureStore
from topa.features.verification import verify_store
from topa.features.writer import StoreWriter

DIM = 8


def rows(number: int, count: int = 3) -> torch.Tensor:
    """Unit rows [count, DIM] that are those of this number alone."""
    generator = torch.Generator().manual_seed(number)
    return functional.normalize(torch.randn(count, DIM, generator=generator), dim=-1)


def open_writer(folder: Path, **settings) -> StoreWriter:
    return StoreWriter(folder, "test-1", DIM, {"rule": "middle", **settings})


def entry(number: int) -> Entry:
    return Entry(f"v{number:04}", f"v{number}.mp4", "0" * 64, 10, 20, 1.5, times=[0.0, 0.5, 1.0])


def test_what_goes_in_comes_out(tmp_path):
    with open_writer(tmp_path) as writer:
        for number in range(5):
            writer.add(entry(number), rows(number))
            if number == 2:
                writer.flush()
    store = FeatureStore(tmp_path, "test-1")
    assert len(store.shards()) == 2
    assert list(store) == [f"v{number:04}" for number in range(5)]
    for number in range(5):
        assert torch.equal(store[f"v{number:04}"], rows(number))
    found = store.entries["v0004"]
    assert (found.times, found.duration, found.size, found.rows) == ([0.0, 0.5, 1.0], 1.5, 10, 3)
    assert verify_store(tmp_path).problems == []
    with pytest.raises(KeyError):
        store["nobody"]


def test_a_reader_sees_what_is_finished_while_a_writer_is_at_work(tmp_path):
    with open_writer(tmp_path) as writer:
        store = FeatureStore(tmp_path)
        writer.add(entry(0), rows(0))
        store.refresh()
        assert len(store) == 0
        writer.flush()
        store.refresh()
        assert torch.equal(store["v0000"], rows(0))
        with pytest.raises(ConfigError, match="another process is writing"):
            open_writer(tmp_path)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_smaller_types_are_close(tmp_path, dtype):
    with StoreWriter(tmp_path, "test-1", DIM, {}, dtype) as writer:
        writer.add(entry(0), rows(0))
    assert str(FeatureStore(tmp_path)["v0000"].dtype) == f"torch.{dtype}"
    torch.testing.assert_close(FeatureStore(tmp_path)["v0000"].float(), rows(0), atol=4e-3, rtol=0)
    assert verify_store(tmp_path).problems == []


def test_what_does_not_belong_is_refused(tmp_path):
    with open_writer(tmp_path) as writer:
        writer.add(entry(0), rows(0))
        with pytest.raises(DataError, match="in the store already"):
            writer.add(entry(0), rows(0))
        with pytest.raises(DataError, match="not finite"):
            writer.add(entry(1), rows(1) * torch.nan)
        with pytest.raises(DataError, match="needed is"):
            writer.add(entry(1), rows(1)[:, :4])
    with pytest.raises(ConfigError, match="made with settings"):
        open_writer(tmp_path, rule="paper")
    with pytest.raises(FingerprintError):
        StoreWriter(tmp_path, "test-2", DIM, {"rule": "middle"})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("keep me", encoding="utf-8")
    with pytest.raises(DataError, match="not empty"):
        open_writer(tmp_path / "other")
    with pytest.raises(DataError, match="no feature store"):
        FeatureStore(tmp_path / "other")


@pytest.mark.parametrize("name", ["fingerprint", "dim", "settings"])
def test_a_damaged_header_is_told(tmp_path, name):
    with open_writer(tmp_path) as writer:
        writer.add(entry(0), rows(0))
    header = json.loads((tmp_path / "store.json").read_text(encoding="utf-8"))
    for damaged in ({**header, name: None}, {k: v for k, v in header.items() if k != name}):
        (tmp_path / "store.json").write_text(json.dumps(damaged), encoding="utf-8")
        with pytest.raises(DataError, match=f"{name} is missing or damaged"):
            FeatureStore(tmp_path)


@pytest.mark.parametrize("part", ["features", "index", "missing", "twice"])
def test_damage_is_found(tmp_path, part):
    with open_writer(tmp_path) as writer:
        writer.add(entry(0), rows(0))
    (shard,) = tmp_path.glob("*.safetensors")
    index = shard.with_suffix(".parquet")
    if part == "features":
        shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")
    elif part == "index":
        index.write_bytes(index.read_bytes()[:40])
    elif part == "missing":
        shard.unlink()
    else:
        for file in (shard, index):
            (tmp_path / f"shard-9{file.suffix}").write_bytes(file.read_bytes())
    assert len(verify_store(tmp_path).problems) == 1


def write_all(folder: Path) -> None:
    """Add what is missing of 120 entries, each in a shard of its own."""
    with open_writer(folder) as writer:
        for number in range(120):
            if entry(number).id not in writer:
                writer.add(entry(number), rows(number))
                writer.flush()


def test_twenty_kills_lose_and_double_nothing(tmp_path):
    """A writer that flushes after every entry is killed at 20 moments, then left to finish."""
    folder = tmp_path / "store"
    # A fork: a fresh interpreter would take seconds for each of the twenty.
    context = multiprocessing.get_context("fork")
    for kill in range(20):
        before = len(list(folder.glob("*.parquet")))
        process = context.Process(target=write_all, args=(folder,))
        process.start()
        deadline = time.monotonic() + 60
        while len(list(folder.glob("*.parquet"))) < before + 3:
            assert process.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.001 * (1 + kill % 5))
        process.kill()
        process.join()
        assert verify_store(folder).problems == []
    write_all(folder)
    store = FeatureStore(folder)
    assert list(store) == [f"v{number:04}" for number in range(120)]
    assert all(torch.equal(store[f"v{n:04}"], rows(n)) for n in range(120))
    found = verify_store(folder)
    assert (found.problems, found.leftovers, found.entries) == ([], [], 120)
