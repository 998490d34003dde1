"""Features of the few Tideos, by an encoder that needs no weights."""

from __future__ import annotations

import pytest

from topa.features.store import TideoFeatures, encode_tideos


@pytest.fixture(scope="session")
def features(tideos, hash_encoder) -> TideoFeatures:
    return encode_tideos(tideos, hash_encoder, cache=False)
