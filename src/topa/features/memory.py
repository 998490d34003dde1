"""The memory: projecting image features into the text region of the space (paper, Eq. 2)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.nn import functional

from topa.errors import DataError
from topa.features.attention import attend, chunks, pack_rows
from topa.features.encoder import PAPER_TEMPERATURE, Encoder, temperature_for
from topa.features.store import TideoFeatures, check_fingerprint, encode_tideos
from topa.runs import atomic_path, digest, read_json, write_json
from topa.tideo.schema import Tideo
from topa.tideo.textvid import load_tideos

_CHUNK = 1 << 16  # rows at a time that are converted to float32
_SCORES = 2048  # rows whose scores are held at once where the largest are looked for
_QUERIES = 1024  # features at a time
_UNIT_TOLERANCE = {"float32": 1e-3, "float16": 2e-3, "bfloat16": 1e-2, "int8": 3e-2}


class Memory:
    """Unit text features of frames, and their captions.

    Args:
        features: [n, d] unit rows; kept contiguous.
        captions: One per row, to show what a feature was taken for.
        fingerprint: Of the encoder that made the features.
        temperature: tau of Eq. 2.
        storage: Type the rows are kept in: float32, float16, bfloat16, or int8 with one scale
            a row. Sums are float32 always.
        image_mean: [d] mean of image features. Where it is given, `project` moves features by
            the difference of the two means instead (Liang et al., "Mind the Gap", 2022).

    Raises:
        DataError: No rows, rows that are not unit vectors, or not one caption per row.
    """

    def __init__(
        self,
        features: torch.Tensor,
        captions: Sequence[str],
        fingerprint: str,
        temperature: float = PAPER_TEMPERATURE,
        *,
        storage: str = "float32",
        image_mean: torch.Tensor | None = None,
    ):
        if features.ndim != 2 or not len(features):
            shape = list(features.shape)
            raise DataError(f"features [n, d] are needed, got {shape}", where="memory")
        if len(captions) != len(features):
            raise DataError(f"{len(features)} rows but {len(captions)} captions", where="memory")
        self.features, self.scales = pack_rows(features.detach(), storage)
        self.storage = storage
        self.captions = list(captions)
        self.fingerprint = fingerprint
        self.temperature = float(temperature)
        if image_mean is not None and image_mean.shape != features.shape[1:]:
            raise DataError(
                f"image mean {list(image_mean.shape)} for rows of size {features.shape[1]}",
                where="memory",
            )
        self.image_mean = None if image_mean is None else image_mean.detach().float().cpu()
        for start, rows in chunks(self.features, 1 << 16, self.scales):
            wrong = ((rows.norm(dim=-1) - 1).abs() <= _UNIT_TOLERANCE[storage]).logical_not()
            if wrong.any():
                row = start + int(wrong.nonzero()[0])
                raise DataError(
                    f"row {row} is not a unit vector",
                    where="memory",
                    mend="Normalise the features, and leave zero and NaN rows out.",
                )

    def __len__(self) -> int:
        return len(self.features)

    @property
    def dim(self) -> int:
        """Size of a feature."""
        return self.features.shape[1]

    @property
    def projection(self) -> str:
        """How `project` works: "memory" (Eq. 2) or "mean-shift"."""
        return "memory" if self.image_mean is None else "mean-shift"

    @classmethod
    def build(
        cls, tideos: Sequence[Tideo], features: TideoFeatures, temperature: float | None = None
    ) -> Memory:
        """Return the memory of all frames of Tideos.

        Args:
            tideos: Give the captions.
            features: Of these Tideos, in the same order.
            temperature: tau of Eq. 2; by default what suits the encoder.

        Raises:
            DataError: The features are not of these Tideos.
        """
        captions = [frame.caption for tideo in tideos for frame in tideo.frames]
        if temperature is None:
            temperature = temperature_for(features.fingerprint)
        return cls(features.frames, captions, features.fingerprint, temperature)

    @cached_property
    def fingerprint_of_content(self) -> str:
        """Short hash of features, captions, temperature and encoder, for checkpoints to record."""
        hashed = hashlib.sha256()
        for rows in self.features.cpu().split(1 << 16):
            # Scales of int8 add nothing: they are what makes a row a unit vector.
            hashed.update(rows.contiguous().view(torch.uint8).numpy().data)
        parts = [hashed.hexdigest(), str(self.dim), repr(self.temperature), self.fingerprint]
        if self.image_mean is not None:
            parts.append(str(self.image_mean.tolist()))
        return "memory-" + digest(*parts, *self.captions)

    @cached_property
    def _shift(self) -> torch.Tensor:
        """From the mean of images to that of the rows, [d], on the CPU."""
        assert self.image_mean is not None
        total = torch.zeros(self.dim, dtype=torch.float64)
        for _, rows in chunks(self.features, _CHUNK, self.scales):
            total += rows.cpu().sum(0, dtype=torch.float64)  # not every device has it
        return (total / len(self)).float() - self.image_mean

    def to(self, device: str | torch.device) -> Memory:
        """Move the features, and return the memory itself."""
        self.features = self.features.to(device)
        self.scales = None if self.scales is None else self.scales.to(device)
        return self

    def project(
        self,
        features: torch.Tensor,
        mask: torch.Tensor | None = None,
        *,
        fingerprint: str | None = None,
        chunk: int | None = None,
        top_k: int | None = None,
        max_dropped: float = 0.01,
    ) -> torch.Tensor:
        """Return normalise(softmax(tau * f M^T) M) of every feature f, exactly (paper, Eq. 2).

        The softmax runs online over chunks of the memory (Milakov and Gimelshein, 2018), so
        that the memory is read once and its scores are never held whole. With an `image_mean`
        it is normalise(f + mean of M - image_mean) instead.

        Args:
            features: [..., d] image features; unit vectors.
            mask: [...] bool, True where there is a frame. Masked frames come back as zeros;
                so do zero vectors, which have no direction to project.
            fingerprint: Of the encoder of `features`, refused where it is not the memory's.
            chunk: Rows of memory at a time; by default all where they are kept in float32 (the
                kernel goes through them piece by piece), else as many as are converted at once.
            top_k: Mix the k nearest rows alone.
            max_dropped: The share of the softmax that `top_k` may leave out of any feature; it
                is measured, exactly, for each.

        Returns:
            Unit features of the same shape, dtype and device.

        Raises:
            FingerprintError: `fingerprint` is given and is not that of the memory.
            DataError: Sizes differ, a feature that is not masked is not finite, or `top_k` leaves
                out more than `max_dropped`.
        """
        check_fingerprint(self.fingerprint, fingerprint, where="memory")
        if features.shape[-1] != self.dim:
            raise DataError(
                f"features of size {features.shape[-1]}, memory of size {self.dim}", where="memory"
            )
        if mask is not None and mask.shape != features.shape[:-1]:
            raise DataError(
                f"mask {list(mask.shape)} for features {list(features.shape)}", where="memory"
            )
        if chunk is None:
            chunk = len(self) if self.features.dtype == torch.float32 else _CHUNK
        present = features.ne(0).any(-1)
        if mask is not None:
            present &= mask.to(present)
        queries = features[present].detach().to(self.features.device, torch.float32)
        if not queries.isfinite().all():
            raise DataError("a feature is not finite", where="memory", mend="Encode it again.")
        projected = torch.zeros_like(features)
        if len(queries):
            projected[present] = self._map(queries, chunk, top_k, max_dropped).to(features)
        return projected

    def _map(
        self, queries: torch.Tensor, chunk: int, top_k: int | None, max_dropped: float
    ) -> torch.Tensor:
        """Return unit rows [b, d] for queries [b, d], by the way that is asked for."""
        if self.image_mean is not None:
            return functional.normalize(queries + self._shift.to(queries), dim=-1)
        return torch.cat(
            [
                self._attend(part, chunk)
                if top_k is None
                else self._attend_nearest(part, top_k, max_dropped)
                for part in queries.split(_QUERIES)
            ]
        )

    @torch.no_grad()
    def _attend(self, queries: torch.Tensor, chunk: int) -> torch.Tensor:
        """Return unit rows [b, d] for queries [b, d], merging what each chunk gives."""
        scaled = queries * self.temperature
        logsum = queries.new_full((len(queries), 1), -torch.inf)
        mixed = torch.zeros_like(queries)
        for _, rows in chunks(self.features, chunk, self.scales):
            found, found_logsum = attend(scaled, rows)
            merged = torch.logaddexp(logsum, found_logsum)
            mixed = mixed * (logsum - merged).exp() + found * (found_logsum - merged).exp()
            logsum = merged
        return functional.normalize(mixed, dim=-1)

    @torch.no_grad()
    def _attend_nearest(self, queries: torch.Tensor, k: int, max_dropped: float) -> torch.Tensor:
        """Return unit rows [b, d] that mix the k nearest rows of the memory.

        Raises:
            DataError: They hold less than 1 - `max_dropped` of the softmax of a query.
        """
        weights, index = self.nearest(queries, k)
        dropped = float(1 - weights.sum(1).min())
        if dropped > max_dropped:
            raise DataError(
                f"the {k} nearest rows leave out up to {dropped:.1%} of the softmax,"
                f" {max_dropped:.1%} are allowed",
                where="memory",
                mend="Take more rows, allow more with max_dropped, or leave out top_k.",
            )
        return functional.normalize((weights[..., None] * self.rows(index)).sum(1), dim=-1)

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Return float32 rows [..., d] by their numbers [...]."""
        found = self.features[index].float()
        return found if self.scales is None else found * self.scales[index]

    def nearest(self, features: torch.Tensor, k: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the k largest softmax weights of Eq. 2 and their rows, largest first.

        Args:
            features: [n, d] unit features.
            k: How many; at most the number of rows.

        Returns:
            Weights [n, k], shares of the whole memory that sum to at most 1, and indices [n, k].
        """
        k = min(k, len(self))
        queries = features.to(self.features.device, torch.float32) * self.temperature
        logsum = queries.new_full((len(queries), 1), -torch.inf)
        best = queries.new_zeros(len(queries), 0)
        index = torch.zeros(len(queries), 0, dtype=torch.long, device=queries.device)
        for start, rows in chunks(self.features, _SCORES, self.scales):
            scores = queries @ rows.T
            logsum = torch.logaddexp(logsum, scores.logsumexp(1, keepdim=True))
            found, places = scores.topk(min(k, len(rows)))
            best, order = torch.cat([best, found], 1).topk(min(k, best.shape[1] + found.shape[1]))
            index = torch.cat([index, places + start], 1).gather(1, order)
        return (best - logsum).exp(), index

    def save(self, folder: str | Path) -> None:
        """Write memory.safetensors and captions.json into a folder, each whole or not at all."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "captions.json", self.captions)
        metadata = {
            "fingerprint": self.fingerprint,
            "temperature": repr(self.temperature),
            "captions": digest(*self.captions),
            "storage": self.storage,
        }
        tensors = {"features": self.features.cpu()}
        if self.scales is not None:
            tensors["scales"] = self.scales.cpu()
        if self.image_mean is not None:
            tensors["image_mean"] = self.image_mean
        with atomic_path(folder / "memory.safetensors") as temporary:
            save_file(tensors, temporary, metadata=metadata)

    @classmethod
    def load(cls, folder: str | Path, fingerprint: str | None = None) -> Memory:
        """Read a saved memory.

        Raises:
            DataError: A file is missing or damaged, or the two do not belong together.
            FingerprintError: Another encoder made it than the one of `fingerprint`.
        """
        path = Path(folder) / "memory.safetensors"
        if not path.is_file():
            raise DataError("file not found", where=path, mend="Build and save a memory first.")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                features = file.get_tensor("features")
                names = set(file.keys())
                if "scales" in names:
                    features = features.float() * file.get_tensor("scales")
                image_mean = file.get_tensor("image_mean") if "image_mean" in names else None
        except SafetensorError as error:
            raise DataError(
                f"not a memory file ({error})", where=path, mend="Build the memory again."
            ) from None
        check_fingerprint(metadata.get("fingerprint", ""), fingerprint, where=path)
        captions = read_json(Path(folder) / "captions.json")
        are_texts = isinstance(captions, list) and all(isinstance(c, str) for c in captions)
        if not are_texts or digest(*captions) != metadata.get("captions"):
            raise DataError(
                "captions.json does not belong to memory.safetensors",
                where=folder,
                mend="Build the memory again.",
            )
        try:
            temperature = float(metadata["temperature"])
        except (KeyError, ValueError):
            raise DataError("no temperature in it", where=path, mend="Build it again.") from None
        return cls(
            features,
            captions,
            metadata.get("fingerprint", ""),
            temperature,
            storage=metadata.get("storage", "float32"),
            image_mean=image_mean,
        )


def build_memory(sources: Sequence[str], encoder: Encoder) -> Memory:
    """Return the memory of Tideos: the bundled sets by name, or JSONL files.

    Raises:
        DataError: A file is missing or is not one of Tideos.
    """
    tideos = [tideo for source in sources for tideo in load_tideos(source)]
    return Memory.build(tideos, encode_tideos(tideos, encoder))
