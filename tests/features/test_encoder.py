"""Choosing an encoder by name."""

from __future__ import annotations

import pytest

from topa.errors import WeightsError
from topa.features.conse import ConseEncoder
from topa.features.encoder import EMBEDDED, Encoder, load_encoder, temperature_for


def test_embedded_is_conse_and_loads_nothing_yet():
    encoder = load_encoder()
    assert isinstance(encoder, ConseEncoder)
    assert isinstance(encoder, Encoder)
    assert load_encoder(EMBEDDED).fingerprint == encoder.fingerprint
    assert not {"_text_tower", "_image_tower", "_constants"} & vars(encoder).keys()


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="cannot be loaded"):
        load_encoder(str(tmp_path))


def test_the_memory_is_as_sharp_as_the_encoder_needs():
    assert temperature_for(ConseEncoder().fingerprint) == 30.0
    assert temperature_for("clip-0123") == temperature_for("") == 100.0  # the paper's
