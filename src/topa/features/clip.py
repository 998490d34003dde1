"""CLIP, SigLIP and SigLIP 2 of transformers as encoders."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch.nn import functional

from topa.errors import WeightsError
from topa.features.encoder import Progress
from topa.runs import digest

_SAMPLED = 4096  # values per tensor that name the weights


class ClipEncoder:
    """A dual encoder of transformers, by hub id or local folder.

    Text longer than the model's context is split between words into pieces that fit, and its
    feature is the normalised mean of the unit features of the pieces: nothing is cut off.
    Images go through the processor's PIL backend, so that features do not depend on whether
    torchvision is installed.

    Args:
        name: Hub id or folder, as `transformers.AutoModel.from_pretrained` takes it.
        device: Where the network runs; features always come back on the CPU.
        batch_size: Texts or images at a time.

    Raises:
        WeightsError: The model cannot be loaded, or has not both a text and an image side.
    """

    def __init__(self, name: str, *, device: str = "cpu", batch_size: int = 32):
        self.name, self._device, self._batch_size = name, device, batch_size
        model, self._tokenizer, self._processor = _load(name)
        self._model = model.eval().requires_grad_(False).to(device)
        text_config = getattr(model.config, "text_config", model.config)
        self._context = int(text_config.max_position_embeddings)
        # SigLIP learned from lower-case text padded to its whole context, without a mask.
        self._is_siglip = model.config.model_type.startswith("siglip")

    @cached_property
    def dim(self) -> int:
        """Size of a feature."""
        return self._embed_texts(["a"]).shape[-1]

    @cached_property
    def fingerprint(self) -> str:
        """Names weights (a sample of every tensor), vocabulary and preprocessing."""
        settings = self._processor.to_dict()
        preprocessing = json.dumps(settings, sort_keys=True, default=str)
        vocabulary = json.dumps(self._tokenizer.get_vocab(), sort_keys=True)
        parts = (vocabulary, preprocessing, str(self._context), self._model.config.model_type)
        return "clip-" + digest(_sample_digest(self._model), *parts)

    def encode_text(
        self, texts: Sequence[str], *, progress: Progress | None = None
    ) -> torch.Tensor:
        """Return unit-norm float32 [n, dim] on the CPU, one row per text."""
        pieces, owners = [], []
        for owner, text in enumerate(texts):
            for piece in self._split(text.lower() if self._is_siglip else text):
                pieces.append(piece)
                owners.append(owner)
        sums = torch.zeros(len(texts), self.dim)
        # Texts of like length share a batch, which keeps padding short.
        order = sorted(range(len(pieces)), key=lambda i: len(pieces[i]))
        left = torch.bincount(torch.tensor(owners, dtype=torch.long), minlength=len(texts))
        for batch in self._batches(order):
            rows = torch.tensor([owners[i] for i in batch])
            sums.index_add_(0, rows, self._embed_texts([pieces[i] for i in batch]))
            left -= torch.bincount(rows, minlength=len(texts))
            if progress is not None:
                progress(int((left == 0).sum()))
        return functional.normalize(sums, dim=-1)

    def encode_frames(
        self, images: Sequence[Image.Image], *, progress: Progress | None = None
    ) -> torch.Tensor:
        """Return unit-norm float32 [n, dim] on the CPU, one row per image."""
        encoded = torch.zeros(len(images), self.dim)
        for batch in self._batches(range(len(images))):
            pixels = self._processor(
                images=[images[i].convert("RGB") for i in batch], return_tensors="pt"
            )
            with torch.inference_mode():
                output = self._model.get_image_features(**pixels.to(self._device))
            encoded[batch[0] : batch[-1] + 1] = _unit_rows(output)
            if progress is not None:
                progress(batch[-1] + 1)
        return encoded

    def _batches(self, items: Sequence[int]) -> Iterator[Sequence[int]]:
        for start in range(0, len(items), self._batch_size):
            yield items[start : start + self._batch_size]

    def _split(self, text: str) -> list[str]:
        """Return the text, or halves of its words (or of one word) until each piece fits."""
        ids = self._tokenizer(text, truncation=False, verbose=False)["input_ids"]
        if len(ids) <= self._context:
            return [text]
        words = text.split()
        if len(words) > 1:
            middle = len(words) // 2
            halves = (" ".join(words[:middle]), " ".join(words[middle:]))
        else:
            middle = len(text) // 2
            halves = (text[:middle], text[middle:])
        return [piece for half in halves for piece in self._split(half)]

    @torch.inference_mode()
    def _embed_texts(self, texts: list[str]) -> torch.Tensor:
        """Return unit rows [b, d] of texts that fit the context."""
        inputs = self._tokenizer(
            texts,
            padding="max_length" if self._is_siglip else True,
            max_length=self._context if self._is_siglip else None,
            truncation=False,
            return_attention_mask=not self._is_siglip,
            return_tensors="pt",
        )
        wanted = {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}
        on_device = {name: tensor.to(self._device) for name, tensor in wanted.items()}
        return _unit_rows(self._model.get_text_features(**on_device))


def _unit_rows(output: Any) -> torch.Tensor:
    """Return unit rows of what get_text_features gives: a tensor before transformers 5."""
    rows = output if isinstance(output, torch.Tensor) else output.pooler_output
    return functional.normalize(rows.float(), dim=-1).cpu()


def _load(name: str) -> tuple[Any, Any, Any]:
    """Return model, tokenizer and image processor.

    Raises:
        WeightsError: One of them cannot be loaded, or the model is not a dual encoder.
    """
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    try:
        model = AutoModel.from_pretrained(name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(name)
        processor = AutoImageProcessor.from_pretrained(name, backend="pil")
    except (OSError, ValueError, ImportError) as error:
        raise WeightsError(
            f"this encoder cannot be loaded: {' '.join(str(error).split())[:300]}",
            where=name,
            mend='Name a CLIP or SigLIP model or folder, or use "embedded", which needs no hub.',
        ) from error
    if not (hasattr(model, "get_text_features") and hasattr(model, "get_image_features")):
        raise WeightsError(
            f"{type(model).__name__} does not encode both texts and images",
            where=name,
            mend="Name a CLIP, SigLIP or SigLIP 2 model.",
        )
    return model, tokenizer, processor


def _sample_digest(model: torch.nn.Module) -> str:
    """Return a hash of names, shapes and up to 4096 evenly spaced values of every tensor."""
    hashed = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().flatten()
        step = max(1, values.numel() // _SAMPLED)
        hashed.update(f"{name}{tuple(tensor.shape)}".encode())
        hashed.update(values[::step].float().cpu().contiguous().numpy().tobytes())
    return hashed.hexdigest()
