"""Models of open_clip, with a tiny random one in a folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional

from topa.errors import ConfigError, WeightsError
from topa.features.encoder import Encoder, load_encoder

try:
    import open_clip
except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision does not fit torch
    open_clip, reason = None, f"open_clip does not import: {error}"
else:
    reason = ""
installed = pytest.mark.skipif(bool(reason), reason=reason)

CONFIG = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {
        "context_length": 16,
        "vocab_size": 49408,
        "width": 32,
        "heads": 2,
        "layers": 2,
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder as open_clip's hub models are: a configuration and weights."""
    path = tmp_path_factory.mktemp("openclip")
    torch.manual_seed(0)
    model = open_clip.CLIP(**CONFIG)
    save_file(model.state_dict(), path / "open_clip_model.safetensors")
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
    config = {"model_cfg": CONFIG, "preprocess_cfg": preprocess}
    (path / "open_clip_config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def encoder(folder) -> Encoder:
    return load_encoder(f"open_clip:local-dir:{folder}")


@installed
def test_features_are_those_of_open_clip(encoder, folder):
    model, prepare = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()
    texts = ["a dog", "A cat sleeps on the green meadow"]
    images = [Image.effect_noise((33, 47), 80), Image.new("RGB", (301, 199), "red")]
    with torch.no_grad():
        expected_texts = model.encode_text(tokenizer(texts), normalize=True)
        pixels = torch.stack([prepare(image.convert("RGB")) for image in images])
        expected_images = model.encode_image(pixels, normalize=True)
    torch.testing.assert_close(encoder.encode_text(texts), expected_texts, atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder.encode_frames(images), expected_images, atol=1e-5, rtol=0)
    assert isinstance(encoder, Encoder)
    assert encoder.dim == 12
    assert encoder.fingerprint.startswith("openclip-")


@installed
def test_long_text_is_split_or_cut(encoder, folder, caplog):
    words = ("one two three four five six seven eight nine ten " * 2).split()  # context 16
    pieces = encoder.encode_text([" ".join(words[:10]), " ".join(words[10:])])
    expected = functional.normalize(pieces.mean(0), dim=0)
    found = encoder.encode_text([" ".join(words)])[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    cutting = load_encoder(f"open_clip:local-dir:{folder}+truncate")
    assert cutting.fingerprint != encoder.fingerprint
    ends = cutting.encode_text([" ".join(words[:14]), " ".join(words)])
    torch.testing.assert_close(ends[0], ends[1], atol=1e-5, rtol=0)
    assert "1 of 2 texts are longer than the 16 tokens" in caplog.text


@installed
@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("open_clip:ViT-B-32/no-such-weights", "not a known tag"),
        ("open_clip:NoSuchModel/openai", "NoSuchModel"),
        ("open_clip:local-dir:/no/such/folder", "not found"),
    ],
)
def test_what_cannot_be_loaded_is_refused(name, match):
    with pytest.raises(WeightsError, match=match):
        load_encoder(name).encode_text(["a"])


@installed
def test_weights_are_needed():
    with pytest.raises(ConfigError, match="a model and its weights are needed"):
        load_encoder("open_clip:ViT-B-32")


def test_the_extra_is_named_where_it_is_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[clip\]'"):
        load_encoder("open_clip:ViT-B-32/openai")
