"""Choosing an encoder by name."""

from __future__ import annotations

import pytest
import torch

from topa.errors import ConfigError, WeightsError
from topa.features.conse import ConseEncoder
from topa.features.encoder import (
    EMBEDDED,
    Encoder,
    load_encoder,
    mixed_precision,
    temperature_for,
)


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


def test_options_follow_the_name():
    encoder = load_encoder("embedded+bfloat16+truncate")
    assert (encoder._precision, encoder._long_text) == ("bfloat16", "truncate")
    plain = load_encoder("embedded")
    assert (plain._precision, plain._long_text) == ("float32", "split")
    with pytest.raises(WeightsError, match=r"models/c\+\+/clip"):  # no options, part of a path
        load_encoder("models/c++/clip+float16")
    with pytest.raises(ConfigError, match="one type is needed"):
        load_encoder("embedded+float16+bfloat16")


@pytest.mark.parametrize("precision", ["auto", "float32", "float16", "bfloat16"])
def test_the_type_of_large_operations(precision):
    """`auto` is float32 on a CPU."""
    expected = torch.float32 if precision == "auto" else getattr(torch, precision)
    with mixed_precision(precision, "cpu"):
        assert (torch.eye(2) @ torch.eye(2)).dtype == expected
