"""Feature files of other programs, into a store and out of it; the rest is in tests/cli."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from topa.errors import DataError
from topa.features import conversion
from topa.features.conversion import export_store, import_features
from topa.features.index import Entry
from topa.features.shards import FeatureStore
from topa.features.writer import StoreWriter


def rows(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(3, 4, generator=generator), dim=-1)


def make_store(folder, *names) -> FeatureStore:
    with StoreWriter(folder, "test", 4, {}) as writer:
        for seed, name in enumerate(names):
            writer.add(Entry(name, name, ""), rows(seed))
    return FeatureStore(folder)


@pytest.mark.parametrize("name", ["../a.mp4", "b/../../a.mp4", "/nowhere/a.mp4"])
def test_no_id_leads_out_of_the_folder_of_an_export(tmp_path, name):
    """An id is what stands in somebody's list of videos."""
    store = make_store(tmp_path / "store", "good.mp4", name)
    with pytest.raises(DataError, match="leads out of the folder"):
        export_store(store, tmp_path / "out", "npy")
    assert not list(tmp_path.rglob("*.npy"))


def test_a_slash_in_an_id_becomes_a_folder(tmp_path):
    export_store(make_store(tmp_path / "store", "a/../b/1.mp4"), tmp_path / "out", "npy")
    assert [path.name for path in (tmp_path / "out" / "b").iterdir()] == ["1.mp4.npy"]


def test_one_file_of_many_features_is_hashed_once(tmp_path, monkeypatch):
    torch.save({f"video{i}": rows(i) for i in range(5)}, tmp_path / "all.pth")
    hashed = []
    monkeypatch.setattr(conversion, "sha256_of", lambda path: hashed.append(path) or "0" * 64)
    assert import_features(tmp_path / "all.pth", tmp_path / "store", "test") == (5, [])
    assert hashed == [tmp_path / "all.pth"]
