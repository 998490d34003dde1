"""Where the features of a video come from: raw videos, feature files, Tideos, or nowhere."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from topa.answer import Topa
from topa.errors import ConfigError, DataError, VideoError
from topa.eval.benchmarks.catalogue import Item
from topa.features.pickles import load_tensors
from topa.features.shards import HEADER, FeatureStore
from topa.features.store import frame_rows, read_features, sample_rows
from topa.features.video import Clip, read_clip

VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".gif", ".flv")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
FEATURE_SUFFIXES = (".npy", ".pkl", ".pth", ".pt")


class Source(Protocol):
    """Gives the features of what a question is about.

    Attributes:
        projected: Whether they go through the memory.
        name: What to call it in a report.
    """

    projected: bool
    name: str

    def load(self, item: Item) -> Tensor:
        """Return features [n, d], n at most the model's T.

        Raises:
            VideoError: The video is missing or cannot be read.
            DataError: The features are missing or cannot be used.
        """
        ...


class Nothing:
    """For blind runs without any video: masked slots carry nothing, whatever they hold."""

    projected = False
    name = "none"

    def __init__(self, dim: int):
        self.dim = dim

    def load(self, item: Item) -> Tensor:
        """Return one row of zeros, [1, d]."""
        return torch.zeros(1, self.dim)


class TextFeatures:
    """Text features of Tideos, which need no projection.

    Args:
        features: [n, d] by Tideo.
        num_frames: Rows to sample, at most.
    """

    projected = False
    name = "Tideos"

    def __init__(self, features: Mapping[str, Tensor], num_frames: int):
        self.features, self.num_frames = features, num_frames

    def load(self, item: Item) -> Tensor:
        """Return the rows of one Tideo."""
        if item.video not in self.features:
            raise DataError("no features of this video", where=item.video)
        return frame_rows(self.features[item.video], self.num_frames)


class VideoIndex:
    """Finds videos, and folders of frames, below a folder.

    By their path below it, with or without the suffix, or by their bare name anywhere below it
    (the videos of NExT-QA and of MVBench come in subfolders).

    Args:
        folder: The folder.

    Raises:
        ConfigError: There is no such folder.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ConfigError("no such folder of videos", where=folder, mend="Check the path.")

    def find(self, video: str) -> Path:
        """Return the file (or folder of frames) of a video.

        Raises:
            VideoError: It is not there, or several have its name.
        """
        direct = self.folder / video
        for path in (direct, *(direct.with_name(direct.name + s) for s in VIDEO_SUFFIXES)):
            if path.exists():
                return path
        found = self._by_name.get(Path(video).name, [])
        if len(found) > 1:
            raise VideoError(
                f"{len(found)} videos have this name: {found[0]}, {found[1]}", where=direct
            )
        if not found:
            raise VideoError("file not found", where=direct, mend="Check the path.")
        return found[0]

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        """All videos and folders of frames below the folder, by name and by bare name."""
        names: dict[str, list[Path]] = {}
        for place, folders, files in os.walk(self.folder):
            folders.sort()
            here = Path(place)
            for file in sorted(files):
                path = here / file
                if path.suffix.lower() in VIDEO_SUFFIXES:
                    for name in {path.stem, path.name}:
                        names.setdefault(name, []).append(path)
            if any(Path(file).suffix.lower() in IMAGE_SUFFIXES for file in files):
                names.setdefault(here.name, []).append(here)
        return names


class VideoFolder:
    """Raw videos, or folders of frames, somewhere below a folder.

    Args:
        topa: Encodes them.
        folder: The folder.
        num_frames: Frames to sample from each.
        use_memory: Project them through the memory, if there is one.
        frame_rate: Frames per second of folders of frames.

    Raises:
        ConfigError: There is no such folder.
    """

    def __init__(
        self,
        topa: Topa,
        folder: str | Path,
        num_frames: int,
        *,
        use_memory: bool = True,
        frame_rate: float = 3.0,
    ):
        self.index = VideoIndex(folder)
        self.topa, self.num_frames, self.frame_rate = topa, num_frames, frame_rate
        self.projected = use_memory and topa.memory is not None
        self.name = "videos"

    def load(self, item: Item) -> Tensor:
        """Return the features of the frames sampled from the part that is asked about."""
        return self.topa.encode(self.watch(item), use_memory=self.projected)

    def watch(self, item: Item) -> Clip:
        """Return the sampled frames."""
        return watch_item(self.index, item, self.num_frames, self.frame_rate)


def watch_item(index: VideoIndex, item: Item, num_frames: int, frame_rate: float = 3.0) -> Clip:
    """Return frames of the part of a video that an item is about.

    Raises:
        VideoError: The video is missing or cannot be read.
    """
    return read_clip(
        index.find(item.video),
        num_frames=num_frames,
        start=item.start,
        end=item.end,
        frame_rate=frame_rate,
    )


class FeatureFiles:
    """Image features of whole videos, in the authors' formats or in ours.

    One file that holds {video: [n, d]} (`.pth`, `.pkl`, `.safetensors`), a folder with one
    file per video (`<video>.npy`, `.pkl`, `.pth`), or a store of `topa encode videos`. Rows are
    normalised.

    Args:
        topa: Says how wide features are, and projects them.
        path: The file or folder.
        num_frames: Rows to sample, at most, at floor(j * n / T).
        rate: Rows per second: the part of a question is [round(start) * rate :
            (round(end) + 1) * rate], as the authors cut it.
        use_memory: Project them through the memory, if there is one.

    Raises:
        DataError: There is no such file, or it does not hold features by video.
        FingerprintError: Our file was made with another encoder.
    """

    def __init__(
        self,
        topa: Topa,
        path: str | Path,
        num_frames: int,
        *,
        rate: float = 1.0,
        use_memory: bool = True,
    ):
        self.topa, self.path, self.num_frames, self.rate = topa, Path(path), num_frames, rate
        self.projected = use_memory and topa.memory is not None
        self.name = "features"
        self.features: Mapping[str, Tensor] | None = None
        if (self.path / HEADER).is_file():
            self.features = FeatureStore(self.path, topa.encoder.fingerprint)
            return
        if self.path.is_dir():
            return
        if self.path.suffix == ".safetensors":
            self.features = read_features(self.path, topa.encoder.fingerprint)
            return
        found = load_tensors(self.path)
        if isinstance(found, Tensor):
            raise DataError(
                "one tensor rather than features by video",
                where=path,
                mend="Name a file that holds {video: features}, or a folder of files.",
            )
        self.features = found

    def load(self, item: Item) -> Tensor:
        """Return the rows of the part that is asked about, projected through the memory."""
        rows = self._read(item.video)
        dim = self.topa.encoder.dim
        if rows.ndim != 2 or rows.shape[1] != dim or not len(rows):
            raise DataError(
                f"features {list(rows.shape)}, the encoder of the checkpoint makes [n, {dim}]",
                where=item.video,
                mend=f"Use features of {self.topa.model.config.encoder}.",
            )
        if item.start is not None or item.end is not None:
            low = int(round(item.start or 0) * self.rate)
            high = len(rows) if item.end is None else int((round(item.end) + 1) * self.rate)
            if low >= len(rows):
                raise DataError(
                    f"start {item.start} s is beyond the {len(rows)} rows of features",
                    where=item.video,
                )
            rows = rows[low:high]
        rows = rows[sample_rows(len(rows), self.num_frames)].float()
        # A row of zeros has no direction; dividing it by its norm would make it NaN.
        rows = rows[rows.norm(dim=-1) > 0]
        if not len(rows) or not rows.isfinite().all():
            raise DataError("the features are zero or not finite", where=item.video)
        rows = functional.normalize(rows, dim=-1)
        if self.projected:
            assert self.topa.memory is not None
            rows = self.topa.memory.project(rows)
        return rows

    def _read(self, video: str) -> Tensor:
        if self.features is not None:
            stem = Path(video).stem
            for name in (video, stem):
                if name in self.features:
                    return self.features[name]
            raise DataError("no features of this video", where=video)
        for name in (video, str(Path(video).with_suffix(""))):
            for suffix in FEATURE_SUFFIXES:
                path = self.path / f"{name}{suffix}"
                if path.is_file():
                    found = load_tensors(path)
                    if not isinstance(found, Tensor):
                        raise DataError("several tensors, one is needed", where=path)
                    return found
        raise DataError("no features of this video", where=self.path / video)
