"""Reducing a memory, and building it from feature stores."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from topa.errors import ConfigError, DataError, FingerprintError
from topa.features.index import Entry
from topa.features.reduction import (
    REDUCTIONS,
    distinct_rows,
    mean_of_images,
    memory_of_stores,
    reduce_rows,
)
from topa.features.shards import FeatureStore
from topa.features.writer import StoreWriter


def bunches(count: int = 5, each: int = 20) -> torch.Tensor:
    """Unit rows [count * each, 16] in tight bunches around the first `count` axes."""
    noise = 0.05 * torch.randn(count, each, 16, generator=torch.Generator().manual_seed(0))
    return functional.normalize(torch.eye(16)[:count, None] + noise, dim=-1).flatten(0, 1)


@pytest.mark.parametrize("method", REDUCTIONS)
def test_as_many_different_rows_as_asked_for(method):
    kept = reduce_rows(bunches(), 7, method)
    assert len(kept) <= 7
    assert len(kept.unique()) == len(kept)
    assert method == "kmeans" or len(kept) == 7
    assert torch.equal(reduce_rows(bunches(), 1000, method), torch.arange(100))


def test_far_rows_come_from_every_bunch():
    assert (reduce_rows(bunches(), 5, "farthest") // 20).tolist() == [0, 1, 2, 3, 4]


def test_centres_cover_better_than_a_draw():
    rows = bunches()

    def coverage(method: str) -> float:
        return float((rows @ rows[reduce_rows(rows, 10, method)].T).amax(1).mean())

    assert coverage("kmeans") >= coverage("sample")


def test_equal_rows_are_kept_once():
    rows = bunches(3, 1)[[0, 1, 0, 2, 1]]
    assert distinct_rows(rows, 0.999).tolist() == [0, 1, 3]
    assert distinct_rows(bunches(), 0.6).tolist() == [0, 20, 40, 60, 80]


def test_unknown_methods_are_refused():
    with pytest.raises(ConfigError, match="unknown reduction"):
        reduce_rows(bunches(), 5, "magic")


def test_a_memory_of_a_store_has_its_rows_and_captions(tmp_path):
    rows = bunches(2, 2)
    with StoreWriter(tmp_path, "conse-1", 16, {}) as writer:
        writer.add(Entry("t1", "", "", captions=["a", "b"]), rows[:2])
        writer.add(Entry("t2", "", "", captions=["c", "d"]), rows[2:])
    memory = memory_of_stores([FeatureStore(tmp_path)], distinct=0.6)
    assert memory.captions == ["a", "c"]
    assert memory.temperature == 30.0
    torch.testing.assert_close(memory.features, rows[[0, 2]])


def test_videos_have_no_captions_to_remember(tmp_path):
    with StoreWriter(tmp_path, "conse-1", 16, {}) as writer:
        writer.add(Entry("v", "v.mp4", "", times=[0.0]), bunches(1, 1))
    with pytest.raises(DataError, match="'v' has no captions"):
        memory_of_stores([FeatureStore(tmp_path)])


def test_a_mean_shift_takes_the_mean_of_all_frames_of_videos(tmp_path):
    rows, images = bunches(2, 2), bunches(3, 3)
    with StoreWriter(tmp_path / "texts", "conse-1", 16, {}) as writer:
        writer.add(Entry("t", "", "", captions=list("abcd")), rows)
    with StoreWriter(tmp_path / "videos", "conse-1", 16, {}) as writer:
        writer.add(Entry("v", "v.mp4", "", times=[0.0, 1.0]), images[:2])
        writer.add(Entry("w", "w.mp4", "", times=[0.0] * 7), images[2:])
    texts, videos = FeatureStore(tmp_path / "texts"), FeatureStore(tmp_path / "videos")
    memory = memory_of_stores([texts], images=videos)
    assert memory.projection == "mean-shift"
    torch.testing.assert_close(memory.image_mean, images.mean(0))
    with pytest.raises(DataError, match="these are features of texts"):
        mean_of_images(texts)
    with StoreWriter(tmp_path / "other", "conse-2", 16, {}) as writer:
        writer.add(Entry("v", "v.mp4", "", times=[0.0]), images[:1])
    with pytest.raises(FingerprintError):
        memory_of_stores([texts], images=FeatureStore(tmp_path / "other"))
