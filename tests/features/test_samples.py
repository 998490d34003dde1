from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from topa.errors import DataError
from topa.features import samples
from topa.features.samples import (
    SAMPLE_OPEN_ANSWER,
    SAMPLE_OPEN_QUESTION,
    SAMPLE_QUESTIONS,
    write_sample_video,
)
from topa.features.video import read_clip

pytest.importorskip("skimage", reason="the photographs come from scikit-image")


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    path = tmp_path_factory.mktemp("sample") / "sample.mp4"
    return path, write_sample_video(path)


def test_it_is_a_plain_mp4_of_ten_seconds(sample: tuple[Path, list[str]]) -> None:
    path, shots = sample
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.average_rate) == (384, 288, 24)
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.frames == 240
        assert sum(1 for _ in container.decode(stream)) == 240
    assert read_clip(path).duration == pytest.approx(10.0)
    assert len(shots) == 5
    assert [file.name for file in path.parent.iterdir()] == ["sample.mp4"]


def test_every_shot_moves_and_shots_differ(sample: tuple[Path, list[str]]) -> None:
    clip = read_clip(sample[0], num_frames=10)  # two frames of every shot
    pictures = [np.asarray(image, np.float32) for image in clip.images]
    within = [np.abs(pictures[i] - pictures[i + 1]).mean() for i in range(0, 10, 2)]
    between = [np.abs(pictures[i] - pictures[i + 1]).mean() for i in range(1, 9, 2)]
    assert min(within) > 5
    # A cut changes the picture more than the slow motion of the shots around it.
    for cut, before, after in zip(between, within, within[1:], strict=False):
        assert cut > max(before, after)


def test_shots_show_the_photographs_in_order(sample: tuple[Path, list[str]]) -> None:
    # Mean colours known from the photographs: red-brown coffee, fawn cat, orange suit, blue
    # dusk, black sky.
    means = [np.asarray(image).mean((0, 1)) for image in read_clip(sample[0], num_frames=5).images]
    coffee, cat, astronaut, rocket, galaxies = means
    assert coffee[0] > 1.5 * coffee[2]
    assert cat[0] > cat[1] > cat[2]
    assert astronaut[0] > astronaut[2]
    assert rocket[2] > rocket[0]
    assert galaxies.max() < 50


def test_content_is_the_same_every_time(sample: tuple[Path, list[str]], tmp_path: Path) -> None:
    again = tmp_path / "again.mp4"
    assert write_sample_video(again) == sample[1]
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (sample[0], again)}
    assert len(digests) == 1


def test_questions_have_five_options_and_the_right_one() -> None:
    assert len(SAMPLE_QUESTIONS) == 3
    right = [question.options[question.answer] for question in SAMPLE_QUESTIONS]
    assert all(len(question.options) == 5 for question in SAMPLE_QUESTIONS)
    assert right == ["An orange space suit", "A cat", "A rocket on a launch pad"]
    assert len({question.answer for question in SAMPLE_QUESTIONS}) == 3  # no letter to guess
    assert SAMPLE_OPEN_QUESTION.endswith("?")
    assert "coffee" in SAMPLE_OPEN_ANSWER


def test_missing_photographs_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="scikit-image is not installed"):
        write_sample_video(tmp_path / "a.mp4")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)  # importing it would fail
    assert len(write_sample_video(tmp_path / "a.mp4")) == 5
