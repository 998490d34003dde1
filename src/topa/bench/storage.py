"""Contests of what feeds the model: the memory, features on disk, and frames of long videos."""

from __future__ import annotations

import ctypes
import pickle
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from topa.bench.timing import Contest
from topa.features.memory import Memory
from topa.features.store import read_features, sample_rows, write_features
from topa.features.video import read_clip, segment_middles
from topa.train.meter import measure_peak

_BLOCK = 1 << 16
_TAU = 100.0


# Memory -------------------------------------------------------------------------------


def make_rows(rows: int, dim: int) -> Tensor:
    """Return random unit rows [rows, dim], filled in blocks so that building adds no peak."""
    generator = torch.Generator().manual_seed(0)
    features = torch.empty(rows, dim)
    for block in features.split(_BLOCK):
        block.normal_(generator=generator)
        block /= block.norm(dim=-1, keepdim=True)
    return features


def extra_memory(job: Callable[[], object]) -> float | None:
    """Return by how many MB the resident size of this process peaks while `job` runs.

    Linux keeps the peak and lets it be set back; elsewhere it is not known: None.
    """
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not reset.is_file():
        return None

    def read(name: str) -> int:
        lines = status.read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))

    # What the allocator keeps of earlier work would hide what is taken again.
    ctypes.CDLL(None).malloc_trim(0)
    reset.write_text("5", encoding="utf-8")
    before = read("VmRSS")
    job()
    return round((read("VmHWM") - before) * 1.024 / 1e3, 1)  # of units of 1,024 bytes


def contest_memory(rows: int = 1_000_000, dim: int = 768, frames: int = 10) -> Contest:
    """Equation 2 as it is written, all scores at once, against one pass over the memory."""
    memory = Memory(make_rows(rows, dim), [""] * rows, "random")
    generator = torch.Generator().manual_seed(1)
    features = F.normalize(torch.randn(frames, dim, generator=generator), dim=-1)

    def ours() -> Tensor:
        return memory.project(features)

    def reference() -> Tensor:
        weights = (_TAU * features @ memory.features.T).softmax(-1)
        return F.normalize(weights @ memory.features, dim=-1)

    def details() -> dict[str, Any]:
        # What any exact way must do: bring the memory from RAM to the processor once, and two
        # products with every row of it, two operations each.
        start = time.perf_counter()
        memory.features.sum()
        read_once = time.perf_counter() - start
        peak = measure_peak(torch.device("cpu"), torch.float32)
        return {
            "read_once_seconds": round(read_once, 4),
            "products_at_peak_seconds": round(4 * frames * rows * dim / peak, 4),
            "extra_mb_ours": extra_memory(ours),
            "extra_mb_reference": extra_memory(reference),
        }

    return Contest(
        "memory",
        "frames/s",
        frames,
        ours,
        reference,
        lambda a, b: torch.testing.assert_close(a, b, atol=1e-4, rtol=0),
        f"{frames} frames on {rows:,} x {dim} float32; reference: all scores, softmax, product",
        4.0,
        details,
    )


# Features -----------------------------------------------------------------------------


def contest_features(folder: Path, videos: int = 512, frames: int = 60, dim: int = 768) -> Contest:
    """Ten frames of every video in random order: one mapped file against one pickle each."""
    generator = torch.Generator().manual_seed(0)
    found = F.normalize(torch.randn(videos * frames, dim, generator=generator), dim=-1)
    for index, part in enumerate(found.split(frames)):
        with open(folder / f"{index}.pkl", "wb") as file:
            pickle.dump(part.clone(), file)
    path = folder / "features.safetensors"
    write_features(path, {"frames": found}, "random")
    order = torch.randperm(videos, generator=generator).tolist()
    wanted = sample_rows(frames, 10)

    # Opened once a run, as a training does; every read is one of the mapped file.
    mapped = read_features(path)["frames"]
    rows = torch.tensor([[index * frames + row for row in wanted] for index in order])

    def ours() -> Tensor:
        return torch.cat([mapped[part].view(-1, 10, dim) for part in rows.flatten(1).split(8)])

    def reference() -> Tensor:
        shown = []
        for batch in torch.tensor(order).split(8):
            samples = []
            for index in batch.tolist():
                with open(folder / f"{index}.pkl", "rb") as file:
                    # Written a moment ago by this function: nobody else's pickle.
                    samples.append(pickle.load(file)[wanted])
            shown.append(torch.stack(samples))
        return torch.cat(shown)

    return Contest(
        "features",
        "videos/s",
        videos,
        ours,
        reference,
        lambda a, b: torch.testing.assert_close(a, b, atol=0, rtol=0),
        f"10 of {frames} frames of {videos} videos in random order, in batches of 8, warm page"
        " cache; ours: one mapped file, one gather a batch; reference: one pickle a video",
        20.0,
    )


# Video --------------------------------------------------------------------------------


def write_video(
    path: Path, seconds: int, rate: int = 24, size: tuple[int, int] = (480, 270)
) -> None:
    """Write a video of moving gradients with a key frame every two seconds."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    with av.open(str(path), "w") as container:
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        stream: Any = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.gop_size = 2 * rate
        if codec == "libx264":
            stream.options = {"preset": "ultrafast"}
        for index in range(seconds * rate):
            image = np.stack([x + 3 * index, y + 2 * index, x + y - index], -1).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def contest_video(folder: Path, seconds: int = 120, frames: int = 10) -> Contest:
    """Ten frames of a long video: seeking against decoding it from beginning to end."""
    path = folder / "long.mp4"
    write_video(path, seconds)

    def ours() -> list[Image.Image]:
        return read_clip(path, num_frames=frames, time_limit=600.0).images

    def reference() -> list[Image.Image]:
        middles = segment_middles(frames, Fraction(0), Fraction(seconds))
        images: list[Image.Image] = []
        with av.open(str(path)) as container:
            before = None
            for frame in container.decode(video=0):
                assert frame.pts is not None
                assert frame.time_base is not None
                shown = frame.pts * frame.time_base
                while len(images) < frames and shown > middles[len(images)] and before is not None:
                    images.append(before.to_image())
                before = frame
            while len(images) < frames and before is not None:
                images.append(before.to_image())
        return images

    def check(a: list[Image.Image], b: list[Image.Image]) -> None:
        assert len(a) == len(b) == frames
        for first, second in zip(a, b, strict=True):
            assert first.tobytes() == second.tobytes(), "a frame differs"

    return Contest(
        "video",
        "videos/s",
        1,
        ours,
        reference,
        check,
        f"{frames} frames of {seconds} s of H.264, 480 x 270, a key frame every 2 s; reference:"
        " decoding from the first frame on",
        3.0,
    )
