"""Mapped features are those that were encoded, and are encoded once."""

from __future__ import annotations

import torch

from topa.data.mapped import map_tideos
from topa.features.store import encode_tideos
from topa.tideo.schema import Tideo


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
    assert len(map_tideos(tideos[:3], encoder)) == 3  # others have a file of their own
