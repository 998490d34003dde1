"""CLIP, SigLIP and SigLIP 2 of transformers as encoders."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from topa.errors import WeightsError
from topa.features.dual import DualEncoder
from topa.runs import digest

# Classes of the text and the image tower alone, by type of model. Of other types the whole model
# is loaded, once.
_TOWERS = {
    "clip": ("CLIPTextModelWithProjection", "CLIPVisionModelWithProjection"),
    "metaclip_2": ("MetaClip2TextModelWithProjection", "MetaClip2VisionModelWithProjection"),
    "siglip": ("SiglipTextModel", "SiglipVisionModel"),
    "siglip2": ("Siglip2TextModel", "Siglip2VisionModel"),
}


class ClipEncoder(DualEncoder):
    """A dual encoder of transformers, by hub id or local folder.

    Each tower is loaded on first use, so that work on texts alone never reads the image tower.
    Images go through the processor's PIL backend, so that features do not depend on whether
    torchvision is installed.

    Args:
        name: Hub id or folder, as `transformers.AutoModel.from_pretrained` takes it.
        **options: As `DualEncoder` takes them.

    Raises:
        WeightsError: The model cannot be found, or has not both a text and an image side.
    """

    def __init__(self, name: str, **options: Any):
        super().__init__(**options)
        self.name = name
        self._config, self._tokenizer, self._processor = _load_settings(name)
        text_config = getattr(self._config, "text_config", self._config)
        self.context = int(text_config.max_position_embeddings)
        # SigLIP learned from lower-case text padded to its whole context, without a mask.
        self._is_siglip = self._config.model_type.startswith("siglip")

    @cached_property
    def dim(self) -> int:
        """Size of a feature."""
        if self._is_siglip:
            return int(self._config.vision_config.hidden_size)
        width = getattr(self._config, "projection_dim", None)
        return self._embed_texts(["a"]).shape[-1] if width is None else int(width)

    @cached_property
    def fingerprint(self) -> str:
        """Names weights (some rows of every tensor), vocabulary and preprocessing."""
        settings = self._processor.to_dict()
        preprocessing = json.dumps(settings, sort_keys=True, default=str)
        vocabulary = json.dumps(self._tokenizer.get_vocab(), sort_keys=True)
        parts = [vocabulary, preprocessing, str(self.context), self._config.model_type]
        if self.long_text != "split":
            parts.append(self.long_text)
        return "clip-" + digest(_digest_files(self.name), *parts)

    @cached_property
    def _text_tower(self) -> Any:
        return self._load_tower(0)

    @cached_property
    def _image_tower(self) -> Any:
        return self._load_tower(1)

    @cached_property
    def _whole(self) -> Any:
        from transformers import AutoModel

        return _load(AutoModel, self.name, self._config, self._device)

    def _load_tower(self, side: int) -> Any:
        """Return the text (0) or the image tower (1), or the whole model where it has no class."""
        import transformers

        names = _TOWERS.get(self._config.model_type)
        if names is None:
            return self._whole
        config = (self._config.text_config, self._config.vision_config)[side]
        if hasattr(self._config, "projection_dim"):
            config.projection_dim = self._config.projection_dim
        return _load(getattr(transformers, names[side]), self.name, config, self._device)

    def _count_tokens(self, text: str) -> int:
        text = text.lower() if self._is_siglip else text
        return len(self._tokenizer(text, truncation=False, verbose=False)["input_ids"])

    def _embed_texts(self, texts: list[str]) -> Tensor:
        inputs = self._tokenizer(
            [text.lower() for text in texts] if self._is_siglip else texts,
            padding="max_length" if self._is_siglip else True,
            max_length=self.context,
            truncation=True,
            return_attention_mask=not self._is_siglip,
            return_tensors="pt",
        )
        wanted = {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}
        on_device = {name: tensor.to(self._device) for name, tensor in wanted.items()}
        tower = self._text_tower
        return _features_of(getattr(tower, "get_text_features", tower)(**on_device))

    def _embed_images(self, images: list[Image.Image]) -> Tensor:
        pixels = self._processor(images=images, return_tensors="pt").to(self._device)
        tower = self._image_tower
        return _features_of(getattr(tower, "get_image_features", tower)(**pixels))


def _features_of(output: Any) -> Tensor:
    """Return features [b, d] of what a tower, or a whole model's method, gives."""
    if isinstance(output, Tensor):
        return output
    for name in ("text_embeds", "image_embeds", "pooler_output"):
        if output.get(name) is not None:
            return output[name]
    raise TypeError(f"{type(output).__name__} has no features")


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn what transformers raises where a model cannot be loaded into one line."""
    try:
        yield
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise WeightsError(
            f"this encoder cannot be loaded: {' '.join(str(error).split())[:300]}",
            where=name,
            mend='Name a CLIP or SigLIP model or folder, or use "embedded", which needs no hub.',
        ) from error


def _load_settings(name: str) -> tuple[Any, Any, Any]:
    """Return configuration, tokenizer and image processor; no weights are read.

    Raises:
        WeightsError: One of them cannot be loaded, or the model is not a dual encoder.
    """
    from transformers import MODEL_MAPPING, AutoConfig, AutoImageProcessor, AutoTokenizer

    with _explained(name):
        config = AutoConfig.from_pretrained(name)
        kind: Any = MODEL_MAPPING[type(config)] if type(config) in MODEL_MAPPING else type(config)
        if not (hasattr(kind, "get_text_features") and hasattr(kind, "get_image_features")):
            raise WeightsError(
                f"{kind.__name__} does not encode both texts and images",
                where=name,
                mend="Name a CLIP, SigLIP or SigLIP 2 model.",
            )
        tokenizer = AutoTokenizer.from_pretrained(name)
        processor = AutoImageProcessor.from_pretrained(name, backend="pil")
    return config, tokenizer, processor


def _load(kind: Any, name: str, config: Any, device: str) -> Any:
    """Return a frozen model in float32.

    Raises:
        WeightsError: It cannot be read, or the file lacks some of its weights.
    """
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # else the weights of the other tower are listed as unexpected
    try:
        with _explained(name):
            model, found = kind.from_pretrained(
                name, config=config, dtype=torch.float32, output_loading_info=True
            )
    finally:
        logging.set_verbosity(verbosity)
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])
        raise WeightsError(
            f"{len(missing)} weights of {kind.__name__} are missing, the first is {missing[0]}",
            where=name,
            mend="Download the model again.",
        )
    return model.eval().requires_grad_(False).to(device)


def _digest_files(name: str) -> str:
    """Return a hash of name, shape, first and last row of every tensor of a model's files.

    Raises:
        WeightsError: There are no files of weights.
    """
    from safetensors import safe_open

    hashed = hashlib.sha256()
    for path in _find_files(name):
        if not path.endswith(".safetensors"):
            # Saved on a GPU, perhaps, that this machine has not.
            found = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            for key, tensor in sorted(found.items()):
                _add_rows(hashed, key, tensor, tuple(tensor.shape))
            continue
        with safe_open(path, framework="pt") as file:
            for key in sorted(file.keys()):
                rows = file.get_slice(key)
                shape = tuple(rows.get_shape())
                _add_rows(hashed, key, rows if shape else file.get_tensor(key), shape)
    return hashed.hexdigest()


def _add_rows(hashed: Any, key: str, rows: Any, shape: tuple[int, ...]) -> None:
    """Add a tensor's name, shape, first and last row to a hash."""
    hashed.update(f"{key}{shape}".encode())
    for part in (rows[:1], rows[-1:]) if shape else (rows,):
        hashed.update(part.float().contiguous().numpy().tobytes())


def _find_files(name: str) -> list[str]:
    """Return the files of a model's weights, in the order that transformers looks for them.

    Raises:
        WeightsError: There are none.
    """
    from transformers.utils import (
        SAFE_WEIGHTS_INDEX_NAME,
        SAFE_WEIGHTS_NAME,
        WEIGHTS_INDEX_NAME,
        WEIGHTS_NAME,
    )
    from transformers.utils.hub import cached_file, get_checkpoint_shard_files

    kinds = ((SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME))
    with _explained(name):
        for whole, index in kinds:
            path = cached_file(name, whole, _raise_exceptions_for_missing_entries=False)
            if path is not None:
                return [path]
            path = cached_file(name, index, _raise_exceptions_for_missing_entries=False)
            if path is not None:
                return sorted(get_checkpoint_shard_files(name, path)[0])
    raise WeightsError("no file of weights was found", where=name, mend="Download it again.")
