"""Features of Tideos: their values, their cache, and files of named features."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from topa.errors import DataError, FingerprintError
from topa.features import store
from topa.features.memory import Memory
from topa.features.store import encode_tideos, read_features, sample_rows, write_features
from topa.tideo.schema import Frame, Question, Tideo


class CountingEncoder:
    """Gives each text its own fixed direction, and remembers what it was asked."""

    dim = 6

    def __init__(self, fingerprint: str = "counting"):
        self.fingerprint = fingerprint
        self.asked: list[str] = []

    def encode_text(self, texts: Sequence[str], *, progress=None) -> torch.Tensor:
        self.asked.extend(texts)
        rows = [
            torch.tensor([math.sin(k * sum(text.encode())) for k in range(1, 7)]) for text in texts
        ]
        return functional.normalize(torch.stack(rows), dim=-1)

    def encode_frames(self, images, *, progress=None) -> torch.Tensor:
        raise AssertionError("no images here")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TOPA_CACHE", str(tmp_path / "cache"))


def make_tideo(name: str, frames: list[tuple[str, list[str]]]) -> Tideo:
    question = Question(question="what is it?", options=["a", "b"], answer=0)
    return Tideo(
        id=name,
        source="webvid",
        seed="seed",
        frames=[Frame(caption=caption, objects=objects) for caption, objects in frames],
        caption="all of it",
        qas=[question] * 3,
    )


@pytest.fixture
def tideos() -> list[Tideo]:
    first = [(f"caption {i}", ["a dog", f"object {i}"]) for i in range(5)]
    second = [(f"scene {i}", ["a dog"] * (1 + i % 3)) for i in range(7)]
    return [make_tideo("one", first), make_tideo("two", second)]


def test_frame_feature_is_the_normalised_mean_of_normalised_texts(tideos):
    encoder = CountingEncoder()
    features = encode_tideos(tideos, encoder, cache=False)
    texts = [features.texts[a:b] for a, b in zip(*offsets_of(features.text_offsets), strict=True)]
    flat = [frame for tideo in tideos for frame in tideo.frames]
    assert len(features) == 2
    assert [len(rows) for rows in texts] == [len(frame.texts) for frame in flat]
    for i, frame in enumerate(flat):
        expected = encoder.encode_text(frame.texts).double().mean(0)
        expected = expected / expected.norm()
        torch.testing.assert_close(features.frames[i].double(), expected, atol=1e-6, rtol=0)
    assert torch.equal(features.of(0), features.frames[:5])
    assert torch.equal(features.of(1), features.frames[5:])
    with pytest.raises(IndexError):
        features.of(2)


def offsets_of(offsets: torch.Tensor) -> tuple[list[int], list[int]]:
    return offsets[:-1].tolist(), offsets[1:].tolist()


def test_each_text_is_encoded_once(tideos):
    encoder = CountingEncoder()
    encode_tideos(tideos, encoder)
    assert len(encoder.asked) == len(set(encoder.asked))
    encoder.asked.clear()
    done: list[int] = []
    again = encode_tideos(tideos, encoder, progress=done.append)
    assert encoder.asked == []
    assert done == [len({text for tideo in tideos for f in tideo.frames for text in f.texts})]
    assert torch.equal(again.frames, encode_tideos(tideos, encoder, cache=False).frames)


def test_many_texts_are_announced_when_encoded_but_not_when_cached(tideos, caplog, monkeypatch):
    monkeypatch.setattr("topa.features.store.MANY_TEXTS", 2)
    encode_tideos(tideos, CountingEncoder(), progress=lambda done: None)  # shows its own progress
    encode_tideos(tideos, CountingEncoder())
    assert not caplog.text
    encode_tideos(tideos, CountingEncoder(), cache=False)
    encode_tideos(tideos[:1], CountingEncoder())
    assert "texts, once" in caplog.text


def test_another_encoder_does_not_get_the_cached_features(tideos):
    encode_tideos(tideos, CountingEncoder("one"))
    other = CountingEncoder("two")
    assert encode_tideos(tideos, other).fingerprint == "two"
    assert other.asked


def test_a_damaged_cached_file_is_made_again(tideos, caplog):
    encoder = CountingEncoder()
    expected = encode_tideos(tideos, encoder)
    (path,) = store.cache_dir("features").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:50])
    encoder.asked.clear()
    with caplog.at_level(logging.WARNING):
        rebuilt = encode_tideos(tideos, encoder)
    assert "encoded again" in caplog.text
    assert str(path) in caplog.text
    assert encoder.asked
    assert torch.equal(rebuilt.texts, expected.texts)
    encoder.asked.clear()
    encode_tideos(tideos, encoder)
    assert not encoder.asked


def test_a_cached_file_of_another_size_is_made_again(tideos, caplog):
    encoder = CountingEncoder()
    encode_tideos(tideos, encoder)
    (path,) = store.cache_dir("features").glob("*.safetensors")
    write_features(path, {"texts": torch.ones(1, 6)}, encoder.fingerprint)
    assert len(encode_tideos(tideos, encoder)) == 2
    assert "unexpected shape" in caplog.text


def test_no_tideos_is_refused():
    with pytest.raises(DataError, match="no Tideos"):
        encode_tideos([], CountingEncoder())


def test_memory_of_tideos_has_a_row_and_a_caption_per_frame(tideos):
    features = encode_tideos(tideos, CountingEncoder(), cache=False)
    memory = Memory.build(tideos, features)
    assert memory.captions == [frame.caption for tideo in tideos for frame in tideo.frames]
    assert torch.equal(memory.features, features.frames)
    assert memory.fingerprint == "counting"
    assert memory.temperature == 100.0
    with pytest.raises(DataError, match="captions"):
        Memory.build(tideos[:1], features)


def test_named_features_come_back(tmp_path):
    path = tmp_path / "videos.safetensors"
    features = {"a/b.mp4": torch.rand(3, 4), "c": torch.rand(4, 3).T}
    write_features(path, features, "encoder-1")
    found = read_features(path, "encoder-1")
    assert found.keys() == features.keys()
    assert all(torch.equal(found[name], features[name]) for name in features)
    assert list(read_features(path, names=["c"])) == ["c"]
    assert [file.name for file in tmp_path.iterdir()] == ["videos.safetensors"]


def test_reading_features_refuses(tmp_path):
    path = tmp_path / "videos.safetensors"
    with pytest.raises(DataError, match="file not found"):
        read_features(path)
    write_features(path, {"a": torch.rand(3, 4)}, "encoder-1")
    with pytest.raises(FingerprintError, match=r"encoder-1.*encoder-2"):
        read_features(path, "encoder-2")
    with pytest.raises(DataError, match="no features named b"):
        read_features(path, names=["a", "b"])
    path.write_bytes(b"not safetensors")
    with pytest.raises(DataError, match="safetensors"):
        read_features(path)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "videos.safetensors"
    write_features(path, {"a": torch.ones(2)}, "encoder-1")

    def fail(tensors, temporary, metadata):
        temporary.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(store, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        write_features(path, {"a": torch.zeros(2)}, "encoder-1")
    assert torch.equal(read_features(path)["a"], torch.ones(2))
    assert len(list(tmp_path.iterdir())) == 1


@given(n=st.integers(0, 300), num_frames=st.integers(1, 40))
def test_sampled_rows(n, num_frames):
    rows = sample_rows(n, num_frames)
    assert len(rows) == min(n, num_frames)
    assert rows == sorted(set(rows))
    assert all(0 <= row < n for row in rows)
    if n > num_frames:
        assert rows == [math.floor(j * n / num_frames + 1e-9) for j in range(num_frames)]
    else:
        assert rows == list(range(n))


def test_sampled_rows_of_the_paper():
    assert sample_rows(15, 10) == [0, 1, 3, 4, 6, 7, 9, 10, 12, 13]
    with pytest.raises(ValueError, match="num_frames"):
        sample_rows(3, 0)
