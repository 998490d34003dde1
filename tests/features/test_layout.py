"""The plane of Tideos, and near ones by their features."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from topa.errors import DataError
from topa.features.layout import average_frames, find_near, lay_out
from topa.features.store import TideoFeatures, mean_rows
from topa.tideo.schema import Tideo

pytest.importorskip("sklearn", reason="needs the extra `generate`")


def make_features(centres: torch.Tensor, spread: float = 0.01) -> TideoFeatures:
    """Two frames of one text for each row of [tideos, d] centres."""
    rows = centres.repeat_interleave(2, 0)
    rows = functional.normalize(rows + spread * torch.randn_like(rows), dim=-1)
    offsets = torch.arange(len(rows) + 1)
    return TideoFeatures(rows, offsets, offsets[::2], mean_rows(rows, offsets), "test")


def make_tideos(tideos: list[Tideo], count: int) -> list[Tideo]:
    return [tideos[i % 12].model_copy(update={"id": f"t{i}"}) for i in range(count)]


def test_the_average_is_a_unit_vector_of_the_frames():
    features = make_features(torch.eye(4), spread=0.5)
    averages = average_frames(features)
    mean = features.of(2).mean(0)
    torch.testing.assert_close(averages[2], mean / mean.norm())


def test_groups_stay_together_on_the_map(tideos):
    centres = torch.eye(8)[torch.arange(60) % 3]
    points = lay_out(make_tideos(tideos, 60), make_features(centres))
    places = torch.tensor([[point["x"], point["y"]] for point in points])
    assert 0 <= float(places.min()) <= float(places.max()) <= 1
    middles = torch.stack([places[i::3].mean(0) for i in range(3)])
    nearest = torch.cdist(places, middles).argmin(1)
    assert torch.equal(nearest, torch.arange(60) % 3)


def test_too_few_have_no_map(tideos):
    with pytest.raises(DataError, match="three"):
        lay_out(tideos[:2], make_features(torch.eye(2)))


def test_near_ones_are_found_across_chunks(tideos, monkeypatch):
    monkeypatch.setattr("topa.features.layout._CHUNK", 4)
    centres = functional.normalize(torch.randn(12, 16), dim=-1)
    centres[9] = centres[1]
    centres[11] = centres[1]
    found = find_near(make_tideos(tideos, 12), make_features(centres, 0.0001), 0.99)
    assert [(item.id, item.of) for item in found] == [("t9", "t1"), ("t11", "t1")]
    assert all(item.similarity > 0.99 for item in found)
