"""Features of the few Tideos, by an encoder that needs no weights."""

from __future__ import annotations

import hashlib

import pytest
import torch

from topa.features.store import TideoFeatures, encode_tideos


class HashEncoder:
    """Gives every text a random direction of its own."""

    dim = 8
    fingerprint = "hash-8"

    def encode_text(self, texts, *, progress=None):
        rows = []
        for text in texts:
            seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
            rows.append(torch.randn(self.dim, generator=torch.Generator().manual_seed(seed)))
        return torch.nn.functional.normalize(torch.stack(rows), dim=-1)

    def encode_frames(self, images, *, progress=None):
        raise NotImplementedError


@pytest.fixture(scope="session")
def features(tideos) -> TideoFeatures:
    return encode_tideos(tideos, HashEncoder(), cache=False)
