"""What encoders of texts and images by two trained towers have in common: batches, long texts."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from topa.errors import DataError
from topa.features.encoder import LongText, Precision, Progress, mixed_precision

__all__ = ["DualEncoder"]

_log = logging.getLogger(__name__)


class DualEncoder(ABC):
    """A text tower and an image tower that were trained to share one space.

    Args:
        device: Where the towers run; features always come back on the CPU.
        batch_size: Texts or images at a time.
        precision: Type that the large operations run in; weights stay float32.
        long_text: What becomes of a text longer than the context. `split`: it is halved between
            words until each piece fits, and its feature is the normalised mean of the unit
            features of the pieces. `truncate`: its end is cut off, and a warning counts such
            texts.
    """

    context: int
    """Most tokens of a text."""

    def __init__(
        self,
        *,
        device: str = "cpu",
        batch_size: int = 32,
        precision: Precision = "auto",
        long_text: LongText = "split",
    ):
        self._device, self._batch_size = device, batch_size
        self._precision: Precision = precision
        self.long_text: LongText = long_text

    @property
    @abstractmethod
    def dim(self) -> int:
        """Size of a feature."""

    @abstractmethod
    def _embed_texts(self, texts: list[str]) -> Tensor:
        """Return features [b, dim] of texts, of any length and type; longer ones are cut."""

    @abstractmethod
    def _embed_images(self, images: list[Image.Image]) -> Tensor:
        """Return features [b, dim] of RGB images, of any length and type."""

    @abstractmethod
    def _count_tokens(self, text: str) -> int:
        """Return how many positions of the context a text needs."""

    def encode_text(
        self, texts: Sequence[str], *, progress: Progress | None = None
    ) -> torch.Tensor:
        """Return unit-norm float32 [n, dim] on the CPU, one row per text.

        Raises:
            DataError: A feature is not finite.
        """
        pieces, owners = self._pieces(texts)
        sums = torch.zeros(len(texts), self.dim)
        # Texts of like length share a batch, which keeps padding short.
        order = sorted(range(len(pieces)), key=lambda i: len(pieces[i]))
        left = torch.bincount(torch.tensor(owners, dtype=torch.long), minlength=len(texts))
        for batch in self._batches(order):
            rows = torch.tensor([owners[i] for i in batch])
            with torch.inference_mode(), mixed_precision(self._precision, self._device):
                found = self._embed_texts([pieces[i] for i in batch])
            sums.index_add_(0, rows, self._unit_rows(found))
            left -= torch.bincount(rows, minlength=len(texts))
            if progress is not None:
                progress(int((left == 0).sum()))
        return functional.normalize(sums, dim=-1)

    def encode_frames(
        self, images: Sequence[Image.Image], *, progress: Progress | None = None
    ) -> torch.Tensor:
        """Return unit-norm float32 [n, dim] on the CPU, one row per image.

        Raises:
            DataError: A feature is not finite.
        """
        encoded = torch.zeros(len(images), self.dim)
        for batch in self._batches(range(len(images))):
            with torch.inference_mode(), mixed_precision(self._precision, self._device):
                found = self._embed_images([images[i].convert("RGB") for i in batch])
            encoded[batch[0] : batch[-1] + 1] = self._unit_rows(found)
            if progress is not None:
                progress(batch[-1] + 1)
        return encoded

    def _batches(self, items: Sequence[int]) -> Iterator[Sequence[int]]:
        for start in range(0, len(items), self._batch_size):
            yield items[start : start + self._batch_size]

    def _pieces(self, texts: Sequence[str]) -> tuple[list[str], list[int]]:
        """Return what is to be encoded, and the text that each piece belongs to."""
        if self.long_text == "truncate":
            cut = sum(self._count_tokens(text) > self.context for text in texts)
            if cut:
                _log.warning(
                    "%d of %d texts are longer than the %d tokens of the encoder: cut off there",
                    *(cut, len(texts), self.context),
                )
            return list(texts), list(range(len(texts)))
        split = [self._split(text) for text in texts]
        owners = [owner for owner, pieces in enumerate(split) for _ in pieces]
        return [piece for pieces in split for piece in pieces], owners

    def _split(self, text: str) -> list[str]:
        """Return the text, or halves of its words (or of one word) until each piece fits."""
        if self._count_tokens(text) <= self.context or len(text) < 2:
            return [text]
        words = text.split()
        if len(words) > 1:
            middle = len(words) // 2
            halves = (" ".join(words[:middle]), " ".join(words[middle:]))
        else:
            middle = len(text) // 2
            halves = (text[:middle], text[middle:])
        return [piece for half in halves for piece in self._split(half)]

    def _unit_rows(self, features: Tensor) -> Tensor:
        rows = functional.normalize(features.float(), dim=-1).cpu()
        if not rows.isfinite().all():
            raise DataError(
                "a feature is not finite",
                where=f"encoder, precision {self._precision}",
                mend="Use float32.",
            )
        return rows
