"""CLIP and SigLIP of transformers, with tiny random models."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch.nn import functional
from transformers import (
    AutoImageProcessor,
    AutoModel,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    MetaClip2Config,
    MetaClip2Model,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from topa.errors import DataError, WeightsError
from topa.features import clip
from topa.features.clip import ClipEncoder
from topa.features.encoder import Encoder, load_encoder

CONTEXT = 12
WORDS = ["a", "b", "c", "dog", "cat", "runs", "over", "the", "green", "meadow", "and", "sleeps"]


def save_tokenizer(folder: Path) -> None:
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", "<s>", "</s>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.normalizer = normalizers.NFC()  # upper case is not in the vocabulary
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=CONTEXT,
    ).save_pretrained(folder)


SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
TEXT = {
    "vocab_size": 4 + len(WORDS),
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "pad_token_id": 0,
}
VISION = {"image_size": 16, "patch_size": 8}


def save_clip(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    config = CLIPConfig(
        text_config={**SIZES, **TEXT}, vision_config={**SIZES, **VISION}, projection_dim=10
    )
    CLIPModel(config).save_pretrained(folder)
    size = {"shortest_edge": 16}
    crop = {"height": 16, "width": 16}
    CLIPImageProcessorPil(size=size, crop_size=crop).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_siglip(folder: Path) -> Path:
    torch.manual_seed(0)
    config = SiglipConfig(text_config={**SIZES, **TEXT}, vision_config={**SIZES, **VISION})
    SiglipModel(config).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_metaclip(folder: Path) -> Path:
    torch.manual_seed(0)
    config = MetaClip2Config(
        text_config={**SIZES, **TEXT}, vision_config={**SIZES, **VISION}, projection_dim=10
    )
    MetaClip2Model(config).save_pretrained(folder)
    crop = {"height": 16, "width": 16}
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=crop).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_siglip2(folder: Path) -> Path:
    """The kind that keeps the shape of images (NaFlex)."""
    torch.manual_seed(0)
    vision = {**SIZES, "patch_size": 8, "num_patches": 16}
    config = Siglip2Config(text_config={**SIZES, **TEXT}, vision_config=vision)
    Siglip2Model(config).save_pretrained(folder)
    Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(
    scope="module",
    params=[save_clip, save_siglip, save_metaclip, save_siglip2],
    ids=["clip", "siglip", "metaclip2", "siglip2"],
)
def encoder(request, tmp_path_factory) -> ClipEncoder:
    return ClipEncoder(str(request.param(tmp_path_factory.mktemp("model"))), batch_size=3)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


def test_features_are_unit_float32(encoder):
    images = [Image.new("RGB", (20 + i, 30), (i * 40, 0, 200)) for i in range(5)]
    texts = ["a dog", "the cat sleeps", "a b c", "runs", "over the green meadow"]
    for features in (encoder.encode_text(texts), encoder.encode_frames(images)):
        assert features.shape == (5, encoder.dim)
        assert features.dtype == torch.float32
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(5))
    assert encoder.encode_text([]).shape == encoder.encode_frames([]).shape == (0, encoder.dim)
    assert isinstance(encoder, Encoder)


def test_batches_do_not_change_a_feature(encoder):
    texts = ["a", "a b c dog cat runs over the", "dog", "the green meadow", "cat"]
    together = encoder.encode_text(texts)
    apart = torch.cat([encoder.encode_text([text]) for text in texts])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)
    images = [Image.new("L", (16, 16), 50 * i) for i in range(5)]
    together = encoder.encode_frames(images)
    apart = torch.cat([encoder.encode_frames([image]) for image in images])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)


def test_long_text_is_the_mean_of_its_pieces(encoder):
    words = ("a dog runs over the green meadow and sleeps " * 2).split()  # 18 words, context 12
    long = " ".join(words)
    pieces = encoder.encode_text([" ".join(words[:9]), " ".join(words[9:])])
    expected = functional.normalize(pieces.mean(0), dim=0)
    torch.testing.assert_close(encoder.encode_text([long])[0], expected, atol=1e-5, rtol=0)
    ends = encoder.encode_text([long, long + " cat cat cat"])
    assert (ends[0] - ends[1]).norm() > 1e-4


def test_features_are_those_of_the_model(clip_folder):
    model = CLIPModel.from_pretrained(clip_folder).eval()
    ids = torch.tensor([[2, 4, 7, 3]])  # <s> a dog </s>
    with torch.no_grad():
        expected = model(
            input_ids=ids,
            pixel_values=torch.zeros(1, 3, 16, 16),
            attention_mask=torch.ones_like(ids),
        ).text_embeds
    found = ClipEncoder(str(clip_folder)).encode_text(["a dog"])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_siglip_text_is_lower_case_and_padded_to_its_context(tmp_path):
    folder = save_siglip(tmp_path)
    encoder = ClipEncoder(str(folder))
    upper, lower = encoder.encode_text(["A DOG", "a dog"])
    assert torch.equal(upper, lower)
    model = SiglipModel.from_pretrained(folder).eval()
    ids = torch.tensor([[2, 4, 7, 3] + [0] * (CONTEXT - 4)])
    with torch.no_grad():
        expected = functional.normalize(
            model.get_text_features(input_ids=ids).pooler_output, dim=-1
        )
    torch.testing.assert_close(lower[None], expected, atol=1e-5, rtol=0)


def test_progress_counts_texts_not_pieces(encoder):
    done: list[int] = []
    encoder.encode_text(["a dog " * 20, "a", "b", "c", "cat"], progress=done.append)
    assert done[-1] == 5
    assert done == sorted(done)


def test_fingerprint_names_the_weights(clip_folder, tmp_path):
    first, again = ClipEncoder(str(clip_folder)), load_encoder(str(clip_folder))
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint.startswith("clip-")
    other = ClipEncoder(str(save_clip(tmp_path / "other", seed=1)))
    assert other.fingerprint != first.fingerprint
    same = ClipEncoder(str(save_clip(tmp_path / "same")))  # same content in another folder
    assert same.fingerprint == first.fingerprint


def test_weights_saved_on_a_gpu_are_named_without_one(clip_folder, tmp_path, monkeypatch):
    folder = shutil.copytree(clip_folder, tmp_path / "pickled")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    with monkeypatch.context() as patched:
        patched.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.save(weights, folder / "pytorch_model.bin")
    assert ClipEncoder(str(folder)).fingerprint == ClipEncoder(str(clip_folder)).fingerprint


def test_a_model_of_text_alone_is_refused(tmp_path):
    config = BertConfig(**SIZES, vocab_size=len(WORDS) + 4)
    BertModel(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    CLIPImageProcessorPil().save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="BertModel does not encode both"):
        ClipEncoder(str(tmp_path))


def test_each_tower_is_loaded_apart(encoder, monkeypatch):
    fresh = ClipEncoder(encoder.name)
    assert fresh.fingerprint == encoder.fingerprint
    texts, images = ["a dog", "cat"], [Image.new("RGB", (20, 20), "red")]
    expected = fresh.encode_text(texts)
    assert "_image_tower" not in vars(fresh)
    assert not [name for name, _ in fresh._text_tower.named_parameters() if "vis" in name]
    only_images = ClipEncoder(encoder.name)
    seen = only_images.encode_frames(images)
    assert "_text_tower" not in vars(only_images)
    # Models without classes of their towers are loaded whole, and give the same.
    monkeypatch.setattr(clip, "_TOWERS", {})
    whole = ClipEncoder(encoder.name)
    torch.testing.assert_close(whole.encode_text(texts), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(whole.encode_frames(images), seen, atol=1e-6, rtol=0)
    assert whole._text_tower is whole._image_tower


def test_weights_that_are_missing_are_not_made_up(clip_folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(clip_folder, broken)
    path = broken / "model.safetensors"
    tensors = load_file(path)
    del tensors["visual_projection.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    encoder = ClipEncoder(str(broken))
    assert encoder.encode_text(["a dog"]).shape == (1, 10)
    with pytest.raises(WeightsError, match=r"1 weights .* visual_projection\.weight"):
        encoder.encode_frames([Image.new("RGB", (16, 16))])


@pytest.mark.parametrize("size", [(17, 31), (31, 17), (301, 199), (16, 16), (5, 640)])
def test_images_are_prepared_as_by_the_reference(encoder, size):
    model = AutoModel.from_pretrained(encoder.name).eval()
    processor = AutoImageProcessor.from_pretrained(encoder.name, backend="pil")
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    with torch.no_grad():
        expected = model.get_image_features(**processor(image, return_tensors="pt")).pooler_output
    found = encoder.encode_frames([image])
    assert torch.cosine_similarity(found, expected).item() > 0.9999


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_smaller_types_change_features_little(encoder, precision):
    smaller = ClipEncoder(encoder.name, precision=precision)
    assert smaller.fingerprint == encoder.fingerprint
    texts = ["a dog", "the cat sleeps and runs over the meadow " * 3]
    images = [Image.new("RGB", (30, 20), "green"), Image.effect_noise((33, 47), 80)]
    pairs = (
        (smaller.encode_text(texts), encoder.encode_text(texts)),
        (smaller.encode_frames(images), encoder.encode_frames(images)),
    )
    for found, expected in pairs:
        assert found.dtype == torch.float32
        assert not torch.equal(found, expected)
        assert torch.cosine_similarity(found, expected).min() > 0.999


def test_features_that_are_not_finite_are_refused(clip_folder, monkeypatch):
    encoder = ClipEncoder(str(clip_folder), precision="float16")
    monkeypatch.setattr(encoder, "_embed_texts", lambda texts: torch.full((1, 10), torch.nan))
    with pytest.raises(DataError, match=r"not finite\. Use float32"):
        encoder.encode_text(["a"])


def test_long_text_is_cut_off_where_that_is_asked_for(encoder, caplog):
    cutting = load_encoder(encoder.name + "+truncate")
    assert cutting.fingerprint != encoder.fingerprint
    words = ("a dog runs over the green meadow and sleeps " * 2).split()  # 18 words, context 12
    long, end = " ".join(words), " ".join([*words, "cat", "cat"])
    starts = (" ".join(words[:count]) for count in range(len(words)))
    short = next(start for start in starts if encoder._count_tokens(start) == CONTEXT)
    found = cutting.encode_text([long, end, short])
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=0)
    torch.testing.assert_close(found[0], found[2], atol=1e-6, rtol=0)
    assert "2 of 3 texts are longer than the 12 tokens" in caplog.text
    torch.testing.assert_close(found[2], encoder.encode_text([short])[0], atol=1e-6, rtol=0)
