"""The authors' pickles of features and memory: rows per text become frame features."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch.nn import functional

from topa.errors import DataError
from topa.features.memory import Memory
from topa.features.official import (
    read_memory,
    read_tideo_features,
    write_memory,
    write_tideo_features,
)
from topa.features.store import TideoFeatures, mean_rows
from topa.tideo.official import read_official, write_official
from topa.tideo.schema import Tideo


@pytest.fixture
def records(tmp_path, tideos):
    write_official(tmp_path / "textvid.json", tideos)
    return read_official(tmp_path / "textvid.json")


def make_features(tideos: list[Tideo], dim: int = 6) -> TideoFeatures:
    counts = [len(frame.texts) for tideo in tideos for frame in tideo.frames]
    texts = functional.normalize(torch.randn(sum(counts), dim), dim=-1)
    offsets = torch.tensor([0, *counts]).cumsum(0)
    frames = torch.tensor([0, *(len(tideo.frames) for tideo in tideos)]).cumsum(0)
    return TideoFeatures(texts, offsets, frames, mean_rows(texts, offsets), "test")


def test_features_go_out_and_come_back(tmp_path, tideos, records):
    features = make_features(tideos)
    write_tideo_features(tmp_path, tideos, features)
    found, failures = read_tideo_features(records, tmp_path)
    assert failures == []
    for i, tideo in enumerate(tideos):
        torch.testing.assert_close(found[tideo.id], features.of(i))


def test_rows_are_normalised_before_and_after_the_mean(tmp_path, tideos, records):
    count = sum(records.texts[tideos[0].id])
    rows = torch.randn(count, 4) * torch.rand(count, 1) * 9
    with open(tmp_path / f"{tideos[0].id}.pkl", "wb") as file:
        pickle.dump(rows, file)
    found, failures = read_tideo_features(records, tmp_path)
    first = len(tideos[0].frames[0].texts)
    mean = torch.stack([row / row.norm() for row in rows[:first]]).mean(0)
    torch.testing.assert_close(found[tideos[0].id][0], mean / mean.norm())
    assert [name for name, _ in failures] == [tideo.id for tideo in tideos[1:]]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda rows: rows[:-1], "rows of texts are needed"),
        (lambda rows: rows * 0, "zero"),
        (lambda rows: rows / 0, "finite"),
        (lambda rows: {"a": 1}, "rows of texts are needed"),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path, tideos, records, change, reason):
    features = make_features(tideos)
    write_tideo_features(tmp_path, tideos, features)
    rows = features.texts[: sum(records.texts[tideos[0].id])]
    with open(tmp_path / f"{tideos[0].id}.pkl", "wb") as file:
        pickle.dump(change(rows), file)
    found, ((name, why),) = read_tideo_features(records, tmp_path)
    assert name == tideos[0].id
    assert name not in found
    assert reason in why
    assert len(found) == 11


def test_a_pickle_with_code_in_it_is_refused(tmp_path, tideos, records):
    class Attack:
        def __reduce__(self):
            return open, (str(tmp_path / "owned"), "w")

    (tmp_path / f"{tideos[0].id}.pkl").write_bytes(pickle.dumps(Attack()))
    found, failures = read_tideo_features(records, tmp_path)
    assert found == {}
    assert "refused" in failures[0][1]
    assert not (tmp_path / "owned").exists()


def test_the_memory_goes_out_and_comes_back(tmp_path):
    rows = functional.normalize(torch.randn(20, 6), dim=-1)
    memory = Memory(rows, [str(i) for i in range(20)], "clip")
    write_memory(tmp_path / "memory.pkl", memory)
    found = read_memory(tmp_path / "memory.pkl", "clip", memory.captions)
    torch.testing.assert_close(found.features, memory.features)
    assert (found.captions, found.fingerprint) == (memory.captions, "clip")
    rows[7] = 0
    (tmp_path / "memory.pkl").write_bytes(pickle.dumps(rows))
    with pytest.raises(DataError, match="row 7"):
        read_memory(tmp_path / "memory.pkl", "clip")


def test_no_id_leads_out_of_the_folder(tmp_path, tideos):
    named = [tideo.model_copy(update={"id": "../escaped"}) for tideo in tideos[:1]]
    with pytest.raises(DataError, match="leads out of the folder"):
        write_tideo_features(tmp_path / "out", named, make_features(named))
    assert not list(tmp_path.rglob("*.pkl"))
