"""What the memory makes of frames, as numbers and as a page."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from PIL import Image

from topa.errors import ConfigError
from topa.features.inspection import (
    _leading_captions,
    check_picture,
    draw_picture,
    inspect_clip,
    write_page,
)
from topa.features.memory import Memory
from topa.features.video import Clip


class AxisEncoder:
    """Gives frame i the unit vector of axis i, the last one halfway between two."""

    dim, fingerprint = 4, "axes"

    def encode_frames(self, images, *, progress=None):
        features = torch.eye(4)[: len(images)]
        features[-1] = torch.tensor([0.5, 0.5, 0.5, 0.5])
        return features

    def encode_text(self, texts, *, progress=None):
        raise AssertionError("no text is needed")


def test_each_frame_has_its_captions_and_how_many_rows_it_takes(tmp_path):
    memory = Memory(torch.eye(4), ["a <b>", "b", "c", "d"], "axes", 50.0)
    clip = Clip("x.mp4", [0.0, 1.0, 2.0], [Image.new("RGB", (8, 8))] * 3, 3.0)
    found = inspect_clip(clip, AxisEncoder(), memory, k=2)
    assert [frame.captions[0] for frame in found[:2]] == ["a <b>", "b"]
    assert found[0].weights[0] > 0.999
    assert abs(found[0].rows_in_use - 1) < 1e-3
    assert abs(found[2].rows_in_use - 4) < 1e-3  # equally far from all four
    assert abs(found[2].similarity - 1) < 1e-5
    write_page(tmp_path / "page.html", clip, memory, found)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "a &lt;b&gt;" in page
    assert page.count("data:image/jpeg;base64,") == 3
    assert found[0].dropped < 1e-3
    assert abs(found[2].dropped - 0.5) < 1e-5  # two of four equal rows are shown


def test_a_picture_is_drawn_with_captions_that_came_twice_added_up(tmp_path):
    pytest.importorskip("matplotlib")
    memory = Memory(torch.eye(4), ["same", "same", "c", "d"], "axes", 50.0)
    clip = Clip("x.mp4", [0.0, 1.0], [Image.new("RGB", (8, 6))] * 2, 2.0)
    frames = inspect_clip(clip, AxisEncoder(), memory, k=4)
    assert dict(_leading_captions(frames, 9))["same"] == pytest.approx([1.0, 0.5], abs=1e-4)
    assert [caption for caption, _ in _leading_captions(frames, 1)] == ["same"]
    path = tmp_path / "picture.png"
    draw_picture(path, clip, memory, frames)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.width > 500


def test_a_picture_without_matplotlib_is_refused_first(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[eval\]'"):
        check_picture()
