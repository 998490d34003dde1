"""Folders of pictures and animated WebP, read as video."""

from __future__ import annotations

import pytest
from PIL import Image

from topa.errors import VideoError
from topa.features.video import read_clip

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]


def near(image: Image.Image) -> int:
    pixel = image.resize((1, 1)).getpixel((0, 0))
    distances = [sum(abs(a - b) for a, b in zip(pixel, colour, strict=True)) for colour in COLOURS]
    return distances.index(min(distances))


@pytest.fixture
def animated(tmp_path):
    """Four frames of WebP, shown for 100, 100, 100 and 700 ms."""
    images = [Image.new("RGB", (32, 24), colour) for colour in COLOURS]
    path = tmp_path / "a.webp"
    durations = [100, 100, 100, 700]
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, lossless=True)
    return path


def test_webp_frames_are_those_on_screen(animated):
    clip = read_clip(animated, num_frames=5)  # at 0.1, 0.3, 0.5, 0.7, 0.9 s
    assert clip.duration == 1.0
    assert clip.times == [0.1, 0.3]
    assert [near(image) for image in clip.images] == [1, 3]


def test_a_cut_webp_is_an_error(animated):
    animated.write_bytes(animated.read_bytes()[:-60])
    with pytest.raises(VideoError, match=r"picture \d cannot be decoded|not a video"):
        read_clip(animated, num_frames=10)


def test_a_folder_is_in_the_order_of_its_numbers(tmp_path):
    for name, colour in zip(("f1.png", "f2.png", "f10.png"), COLOURS, strict=False):
        Image.new("RGB", (8, 8), colour).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture", encoding="utf-8")
    clip = read_clip(tmp_path, num_frames=10)
    assert clip.times == [0.0, 1.0, 2.0]
    assert [near(image) for image in clip.images] == [0, 1, 2]
    (tmp_path / "f2.png").write_bytes(b"broken")
    with pytest.raises(VideoError, match="picture 2 cannot be decoded"):
        read_clip(tmp_path, num_frames=10)


def test_limits_hold_for_pictures(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "big.png")
    with pytest.raises(VideoError, match="larger than 100 pixels"):
        read_clip(tmp_path, max_pixels=100)


def test_too_many_frames_are_refused(animated):
    with pytest.raises(VideoError, match="100 frames asked for, at most 50"):
        read_clip(animated, fps=100, max_frames=50)
