"""Mapped features are those that were encoded, and are encoded once."""

from __future__ import annotations

import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from topa.data import mapped
from topa.data.mapped import map_tideos
from topa.errors import DataError
from topa.features.store import encode_tideos
from topa.tideo.schema import Tideo, write_tideos
from topa.tideo.shelf import open_shelf


class Counting:
    """Counts what it encodes."""

    dim = 8
    fingerprint = "counting-8"

    def __init__(self):
        self.calls = 0

    def encode_text(self, texts, *, progress=None):
        self.calls += 1
        rows = [torch.arange(8.0) + len(text) for text in texts]
        return torch.nn.functional.normalize(torch.stack(rows), dim=-1)

    def encode_frames(self, images, *, progress=None):
        raise AssertionError("no images here")


def test_they_are_those_of_the_encoder_and_made_once(tideos: list[Tideo], tmp_path, monkeypatch):
    monkeypatch.setenv("TOPA_CACHE", str(tmp_path))
    encoder = Counting()
    plain = encode_tideos(tideos, encoder, cache=False)
    for _ in range(2):
        mapped = map_tideos(tideos, encoder)
        for name in ("texts", "text_offsets", "frame_offsets", "frames"):
            assert torch.equal(getattr(mapped, name), getattr(plain, name)), name
        assert mapped.fingerprint == "counting-8"
    assert encoder.calls == 2  # once for `plain`
    frames = map_tideos(tideos, encoder, keep_texts=False)
    assert torch.equal(frames.frames, plain.frames)
    assert frames.texts.shape == (0, 8)
    assert len(map_tideos(tideos[:3], encoder)) == 3  # others have a file of their own


def test_what_was_encoded_before_a_stop_is_not_encoded_again(tideos, tmp_path, monkeypatch):
    """Stopped in the third chunk, and with half of that chunk already in the file."""
    monkeypatch.setenv("TOPA_CACHE", str(tmp_path))
    monkeypatch.setattr(mapped, "_CHUNK", 4)
    plain = encode_tideos(tideos, Counting(), cache=False)

    class Stopping(Counting):
        def encode_text(self, texts, *, progress=None):
            if self.calls == 2:
                raise KeyboardInterrupt
            return super().encode_text(texts, progress=progress)

    done: list[tuple[int, int]] = []
    with pytest.raises(KeyboardInterrupt):
        map_tideos(tideos, Stopping(), progress=lambda *row: done.append(row))
    assert done == [(4, 12), (8, 12)]
    for path in tmp_path.rglob("*.f32"):
        with path.open("ab") as file:
            file.write(b"cut off")
    rest = Counting()
    found = map_tideos(tideos, rest)
    assert rest.calls == 1
    assert torch.equal(found.texts, plain.texts)
    assert torch.equal(found.frames, plain.frames)


def test_rows_that_were_lost_since_a_stop_are_no_zeros(tideos, tmp_path, monkeypatch):
    monkeypatch.setenv("TOPA_CACHE", str(tmp_path))
    monkeypatch.setattr(mapped, "_CHUNK", 4)

    def stop(done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        map_tideos(tideos, Counting(), progress=stop)
    (path,) = tmp_path.rglob("frames.f32")
    for lost in (lambda: path.write_bytes(path.read_bytes()[:-4]), path.unlink):
        lost()
        with pytest.raises(DataError, match=r"frames.f32: less than the \d+ bytes"):
            map_tideos(tideos, Counting())


def test_a_file_of_another_size_is_refused(tideos, tmp_path, monkeypatch):
    monkeypatch.setenv("TOPA_CACHE", str(tmp_path))
    map_tideos(tideos, Counting())
    [path] = tmp_path.rglob("frames.f32")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match="Delete its folder"):
        map_tideos(tideos, Counting())


def test_memory_does_not_grow_with_the_set(tideos, tmp_path, monkeypatch):
    """Places and offsets alone are kept, whatever Tideos hold."""
    monkeypatch.setenv("TOPA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mapped, "_CHUNK", 32)
    monkeypatch.setattr("topa.tideo.shelf._RECENT", 8)
    peaks, kept = [], []
    for count in (200, 800):
        path = tmp_path / f"{count}.jsonl"
        write_tideos(
            path, [tideos[i % 12].model_copy(update={"id": f"t{i}"}) for i in range(count)]
        )
        tracemalloc.start()
        shelf = open_shelf(str(path))
        found = map_tideos(shelf, Counting(), keep_texts=False)
        now, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(found) == len(shelf) == count
        kept.append(now)
        peaks.append(peak)
    # Ids and offsets while it is made, places and offsets after; a parsed Tideo takes 20 KB.
    assert (peaks[1] - peaks[0]) / 600 < 2000
    assert (kept[1] - kept[0]) / 600 < 2000


def test_two_runs_at_once_encode_once_between_them(tideos, tmp_path, monkeypatch):
    monkeypatch.setenv("TOPA_CACHE", str(tmp_path))
    monkeypatch.setattr(mapped, "_CHUNK", 2)

    class Slow(Counting):
        def encode_text(self, texts, *, progress=None):
            time.sleep(0.02)  # lets the other one come in between
            return super().encode_text(texts, progress=progress)

    encoders = [Slow(), Slow()]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda encoder: map_tideos(tideos, encoder), encoders))
    plain = encode_tideos(tideos, Counting(), cache=False)
    for each in found:
        assert torch.equal(each.frames, plain.frames)
        assert torch.equal(each.texts, plain.texts)
    assert sum(encoder.calls for encoder in encoders) == -(-len(tideos) // 2)
