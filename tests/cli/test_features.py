"""topa encode and topa features, as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from topa.cli import app
from topa.features.shards import FeatureStore
from topa.features.store import read_features


def run(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def clips(video: Path, tmp_path_factory) -> Path:
    """A folder of a good video, a broken one, and a file that is none."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "deep").mkdir()
    (folder / "deep" / "good.mp4").write_bytes(video.read_bytes())
    (folder / "bad.mp4").write_text("not a video", encoding="utf-8")
    (folder / "notes.txt").write_text("deep/good.mp4\n\n# bad.mp4\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def store(clips: Path, encoder, tmp_path_factory) -> Path:
    """What `topa encode videos` makes of the folder."""
    folder = tmp_path_factory.mktemp("made") / "store"
    result = run("encode", "videos", clips, "--out", folder, "--workers", 1, "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert (found["encoded"], found["skipped"], found["total"]) == (1, 0, 2)
    assert [failure["id"] for failure in found["failures"]] == ["bad.mp4"]
    return folder


def test_a_folder_of_good_and_bad_videos_becomes_a_store_and_a_list_of_errors(store, encoder):
    features = FeatureStore(store, encoder.fingerprint)
    assert set(features) == {"deep/good.mp4"}
    assert features["deep/good.mp4"].shape == (4, encoder.dim)
    assert features.entries["deep/good.mp4"].times == [0.0, 0.5, 1.0, 1.5]
    (line,) = (store / "errors.jsonl").read_text(encoding="utf-8").splitlines()
    assert "not a video that FFmpeg can read" in json.loads(line)["reason"]
    assert run("features", "verify", store, "--sources").exit_code == 0


def test_a_second_run_goes_on_where_the_first_stopped(clips, store):
    result = run("encode", "videos", clips / "notes.txt", "--out", store)
    assert result.exit_code == 0
    assert "0 of 1 videos encoded" in result.stdout
    assert "1 were there" in result.stdout


def test_other_settings_are_not_mixed_into_a_store(clips, store):
    result = run("encode", "videos", clips, "--out", store, "--rule", "paper")
    assert result.exit_code == 2


def test_tideos_are_stored_with_their_captions(tideos_path, tideos, encoder, tmp_path):
    assert run("encode", "textvid", tideos_path, "--out", tmp_path / "s").exit_code == 0
    store = FeatureStore(tmp_path / "s", encoder.fingerprint)
    assert list(store) == [tideo.id for tideo in tideos]
    first = store.entries[tideos[0].id]
    assert first.captions == [frame.caption for frame in tideos[0].frames]
    again = run("encode", "textvid", tideos_path, "--out", tmp_path / "s", "--json")
    assert json.loads(again.stdout)["skipped"] == len(tideos)


@pytest.mark.parametrize("kind", ["safetensors", "pth", "npy", "pkl"])
def test_a_store_goes_out_and_comes_in_again(store, kind, tmp_path):
    original = FeatureStore(store)
    path = tmp_path / (f"features.{kind}" if kind in ("safetensors", "pth") else "features")
    assert run("features", "export", store, "--out", path, "--format", kind).exit_code == 0
    source = path if path.is_file() else path / "deep"
    result = run("features", "import", source, "--out", tmp_path / "in", "--encoder-name", "mine")
    assert result.exit_code == 0, result.output
    back = FeatureStore(tmp_path / "in", "mine")
    name = "deep/good.mp4" if path.is_file() else "good.mp4"
    torch.testing.assert_close(back[name], original["deep/good.mp4"], atol=1e-6, rtol=0)
    assert back.entries[name].times == [0.0, 1.0, 2.0, 3.0]  # one a second, as said


def test_exported_features_are_read_by_name(store, encoder, tmp_path):
    path = tmp_path / "features.safetensors"
    run("features", "export", store, "--out", path)
    assert set(read_features(path, encoder.fingerprint)) == {"deep/good.mp4"}


def test_a_bad_feature_file_is_named_and_the_others_come_in(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    np.save(folder / "a.npy", np.eye(3, 4, dtype=np.float32))
    np.save(folder / "zero.npy", np.zeros((2, 4), np.float32))
    (folder / "evil.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    result = run("features", "import", folder, "--out", tmp_path / "s", "--encoder-name", "x")
    assert result.exit_code == 1
    assert "zero or not finite" in result.stderr
    assert "evil" in result.stderr
    assert list(FeatureStore(tmp_path / "s")) == ["a"]


def test_show_lists_the_entries(store):
    assert "deep/good.mp4: 4 rows, 2.00 s" in run("features", "show", store).stdout


def test_a_changed_shard_is_found(store, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in store.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (shard,) = copy.glob("*.safetensors")
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    result = run("features", "verify", copy)
    assert result.exit_code == 1
    assert "has changed since it was written" in result.stderr


def test_what_a_video_may_cost_is_an_option(clips, encoder, tmp_path):
    def reason(*options: object) -> str:
        result = run("encode", "videos", clips / "deep", "--out", tmp_path / "s", *options)
        assert result.exit_code == 1
        (line,) = (tmp_path / "s" / "errors.jsonl").read_text(encoding="utf-8").splitlines()
        return json.loads(line)["reason"]

    assert "larger than 100 pixels" in reason("--max-pixels", 100)
    settings = ("--fps", 100, "--max-frames", 50)
    (tmp_path / "s" / "store.json").unlink()
    (tmp_path / "s" / "errors.jsonl").unlink()
    assert "200 frames asked for, at most 50 are read" in reason(*settings)
