"""Encoding in bulk: threads change nothing, order and memory stay bounded, errors come out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from topa.features.extraction import extract_videos
from topa.features.shards import FeatureStore
from topa.features.sources import Sampling, find_sources
from topa.features.verification import verify_store
from topa.features.writer import StoreWriter


class MeanColour:
    """The smallest encoder: a frame's feature is the direction of its mean colour."""

    dim, fingerprint = 3, "mean-1"

    def __init__(self, broken: bool = False):
        self.sizes: list[int] = []
        self.broken = broken

    def encode_frames(self, images: list[Image.Image]) -> torch.Tensor:
        if self.broken and self.sizes:
            raise RuntimeError("out of memory")
        self.sizes.append(len(images))
        pixels = [list(image.resize((1, 1)).tobytes()) for image in images]
        return torch.nn.functional.normalize(torch.tensor(pixels).float() + 1, dim=-1)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """30 folders of four pictures, each of one colour, and one folder with a broken picture."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(30):
        (folder / f"{number:02}").mkdir()
        for place in range(4):
            colour = (8 * number, 60 * place, 255 - 8 * number)
            Image.new("RGB", (16, 12), colour).save(folder / f"{number:02}" / f"{place}.png")
    (folder / "bad").mkdir()
    (folder / "bad" / "0.png").write_text("no picture", encoding="utf-8")
    lines = [path.name for path in sorted(folder.iterdir())]
    (folder / "list.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder / "list.txt"


def extract(clips: Path, folder: Path, encoder: MeanColour, encoders: int):
    sampling = Sampling(num_frames=4)
    with StoreWriter(folder, encoder.fingerprint, encoder.dim, sampling.choice()) as writer:
        return extract_videos(
            find_sources([clips]), encoder, writer, sampling, workers=2, encoders=encoders
        )


def test_any_number_of_threads_gives_the_same_store(clips, tmp_path):
    before = torch.get_num_threads()
    stores = []
    for encoders in (1, 3):
        encoder = MeanColour()
        result = extract(clips, tmp_path / str(encoders), encoder, encoders)
        assert (result.total, result.encoded, result.frames) == (31, 30, 120)
        assert [failure.id for failure in result.failures] == ["bad"]
        assert sum(encoder.sizes) == 120
        assert max(encoder.sizes) == 32  # eight videos of four frames
        assert verify_store(tmp_path / str(encoders), sources=True).problems == []
        stores.append(FeatureStore(tmp_path / str(encoders)))
    assert torch.get_num_threads() == before
    assert set(stores[0]) == set(stores[1]) == {f"{number:02}" for number in range(30)}
    assert all(torch.equal(stores[0][name], stores[1][name]) for name in stores[0])


def test_what_goes_wrong_in_a_thread_comes_out_and_what_was_done_stays(clips, tmp_path):
    with pytest.raises(RuntimeError, match="out of memory"):
        extract(clips, tmp_path / "store", MeanColour(broken=True), 2)
    assert len(FeatureStore(tmp_path / "store")) == 8
    assert extract(clips, tmp_path / "store", MeanColour(), 2).skipped == 8
    assert verify_store(tmp_path / "store").entries == 30
