"""Where features come from: found by name, cut as the authors cut them, never invented."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from topa.data.questions import VideoQuestion
from topa.errors import ConfigError, DataError, VideoError
from topa.eval.sources import FeatureFiles, Nothing, VideoIndex, watch_item

DIM = 4


class HalvingMemory:
    """Stands for a memory: halves what it is given, so that a test sees the projection."""

    def project(self, rows: torch.Tensor) -> torch.Tensor:
        return rows / 2


def model(memory: Any = None) -> Any:
    config = SimpleNamespace(encoder="openai/clip-vit-large-patch14")
    return SimpleNamespace(
        encoder=SimpleNamespace(dim=DIM, fingerprint="e"),
        memory=memory,
        model=SimpleNamespace(config=config),
    )


def ask(video: str, start: float | None = None, end: float | None = None) -> VideoQuestion:
    fields = {"qid": "1", "question": "?", "options": ["a", "b"], "answer": 0}
    return VideoQuestion(video=video, start=start, end=end, **fields)


def rows(count: int) -> torch.Tensor:
    """Rows whose direction tells their number."""
    angle = torch.arange(count) / 100
    return torch.stack([angle.cos(), angle.sin(), 0 * angle, 0 * angle], 1) * 3


def numbers(features: torch.Tensor) -> list[int]:
    return (torch.atan2(features[:, 1], features[:, 0]) * 100).round().int().tolist()


@pytest.fixture
def feature_file(tmp_path: Path) -> Path:
    path = tmp_path / "clipvitl14.pth"
    torch.save({"v": rows(30), "w": torch.zeros(3, DIM), "x": torch.ones(2, 7)}, path)
    return path


def test_whole_videos_are_sampled_at_floor_j_n_over_t(feature_file):
    found = FeatureFiles(model(), feature_file, 10).load(ask("v"))
    assert numbers(found) == [0, 3, 6, 9, 12, 15, 18, 21, 24, 27]
    assert found.norm(dim=-1).tolist() == pytest.approx([1.0] * 10)


@pytest.mark.parametrize(
    ("rate", "start", "end", "wanted"),
    [
        (1.0, 11.1, 14.6, [11, 12, 13, 14, 15]),  # STAR: [round(start) : round(end) + 1]
        (3.0, 1.4, 2.4, [3, 4, 5, 6, 7, 8]),  # TVQA: [1 * 3 : (2 + 1) * 3]
        (1.0, 28.0, 99.0, [28, 29]),
        (1.0, None, 1.0, [0, 1]),
    ],
)
def test_a_part_is_cut_as_the_authors_cut_it(feature_file, rate, start, end, wanted):
    source = FeatureFiles(model(), feature_file, 10, rate=rate)
    assert numbers(source.load(ask("v", start, end))) == wanted


def test_image_features_are_projected_unless_told_not_to(feature_file):
    projected = FeatureFiles(model(HalvingMemory()), feature_file, 10)
    plain = FeatureFiles(model(HalvingMemory()), feature_file, 10, use_memory=False)
    assert (projected.projected, plain.projected) == (True, False)
    assert torch.equal(projected.load(ask("v")), plain.load(ask("v")) / 2)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (ask("absent"), "no features of this video"),
        (ask("w"), "zero or not finite"),
        (ask("x"), r"features \[2, 7\], the encoder of the checkpoint makes \[n, 4\]"),
        (ask("v", 30.0, 31.0), "start 30.0 s is beyond the 30 rows"),
    ],
)
def test_features_that_cannot_be_used_are_told(feature_file, item, message):
    with pytest.raises(DataError, match=message):
        FeatureFiles(model(), feature_file, 10).load(item)


def test_folders_of_one_file_a_video_are_the_same(feature_file, tmp_path):
    folder = tmp_path / "features"
    folder.mkdir()
    np.save(folder / "v.npy", rows(30).numpy())
    with open(folder / "u.pkl", "wb") as file:
        pickle.dump(rows(30), file)
    one = FeatureFiles(model(), feature_file, 10).load(ask("v"))
    source = FeatureFiles(model(), folder, 10)
    assert torch.equal(source.load(ask("v.mp4")), one)
    assert torch.equal(source.load(ask("u")), one)
    with pytest.raises(DataError, match="no features"):
        source.load(ask("w"))


def test_one_tensor_is_not_features_by_video(tmp_path):
    torch.save(rows(3), tmp_path / "memory.pth")
    with pytest.raises(DataError, match="one tensor rather than features by video"):
        FeatureFiles(model(), tmp_path / "memory.pth", 10)


def test_nothing_is_one_row_that_masked_slots_ignore():
    assert Nothing(DIM).load(ask("v")).tolist() == [[0.0] * DIM]


def test_videos_are_found_by_path_by_stem_and_anywhere_below(tmp_path):
    for name in ("a.mp4", "1164/323.webm", "x/y/deep.avi", "one/twin.mp4", "two/twin.mp4"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    index = VideoIndex(tmp_path)
    for video, file in (
        ("a.mp4", "a.mp4"),
        ("a", "a.mp4"),
        ("323", "1164/323.webm"),
        ("deep", "x/y/deep.avi"),
        ("one/twin", "one/twin.mp4"),
    ):
        assert index.find(video) == tmp_path / file
    with pytest.raises(VideoError, match="2 videos have this name"):
        index.find("twin")
    with pytest.raises(VideoError, match="file not found"):
        index.find("absent")
    with pytest.raises(ConfigError, match="no such folder"):
        VideoIndex(tmp_path / "absent")


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """Twelve frames (four seconds at 3 fps), each as grey as its number."""
    folder = tmp_path / "bbt_frames" / "s01e01_clip_00"
    folder.mkdir(parents=True)
    for i in range(12):
        Image.new("RGB", (8, 8), (20 * i, 20 * i, 20 * i)).save(folder / f"{i + 1:05d}.png")
    return folder


def greys(images: list[Image.Image]) -> list[int]:
    return [image.getpixel((0, 0))[0] // 20 for image in images]


def watch(folder: Path, num_frames: int, start: float | None = None, end: float | None = None):
    item = VideoQuestion(
        qid="1", video=folder.name, question="q", options=["a", "b"], answer=0, start=start, end=end
    )
    return watch_item(VideoIndex(folder.parents[1]), item, num_frames, 3.0)


def test_folders_of_frames_are_watched_like_videos(frames):
    assert VideoIndex(frames.parents[1]).find("s01e01_clip_00") == frames
    # Middles of four segments of 4 s: 0.5, 1.5, 2.5, 3.5 s, frames 1, 4, 7, 10 at 3 fps.
    assert greys(watch(frames, 4).images) == [1, 4, 7, 10]
    assert greys(watch(frames, 2, 2.0, 4.0).images) == [7, 10]
    assert greys(watch(frames, 10, 3.4, 9.0).images) == [10, 11]


def test_frames_whose_numbers_have_no_zeros_before_come_in_order(frames):
    """By their letters 10 would come before 2."""
    for i in range(12):
        (frames / f"{i + 1:05d}.png").rename(frames / f"frame{i + 1}.png")
    assert greys(watch(frames, 12).images) == list(range(12))


def test_frames_that_are_not_there_are_told(frames):
    with pytest.raises(VideoError, match=r"beyond the end of the video \(4.00 s\)"):
        watch(frames, 2, 5.0, 6.0)
    (frames / "00002.png").write_bytes(b"not an image")
    with pytest.raises(VideoError, match="picture 2 cannot be decoded"):
        watch(frames, 12)
