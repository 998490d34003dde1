"""Encoding on a real Ray cluster of this machine, with workers killed on the way."""

from __future__ import annotations

import threading
from pathlib import Path

import psutil
import pytest
import torch

from topa.errors import ConfigError
from topa.features.shards import FeatureStore
from topa.features.sources import Sampling, find_sources
from topa.features.verification import verify_store
from topa.features.writer import StoreWriter
from topa.scale import extraction
from topa.scale.extraction import Actors, plan_actors


def test_without_ray_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with (
        StoreWriter(tmp_path, "test-1", 4, {}) as writer,
        pytest.raises(ConfigError, match=r"\.\[scale\]"),
    ):
        extraction.extract_with_ray([], "embedded", writer, Sampling())


@pytest.mark.parametrize(
    ("cores", "gpus", "device", "expected"),
    [
        (1, 0, "cpu", Actors(1, 1, 0.5)),
        (2, 0, "cpu", Actors(1, 1, 1.0)),
        (3, 0, "cpu", Actors(2, 1, 1.0)),
        (64, 0, "cpu", Actors(32, 32, 1.0)),
        (64, 4, "cuda", Actors(60, 4, 1.0)),
        (4, 8, "cuda", Actors(1, 3, 1.0)),
        (1, 1, "cuda:0", Actors(1, 1, 0.5)),
    ],
)
def test_all_actors_fit_the_cluster_at_once(cores, gpus, device, expected):
    assert plan_actors({"CPU": cores, "GPU": gpus}, device) == expected


def test_what_the_cluster_cannot_run_is_refused():
    with pytest.raises(ConfigError, match="no GPU"):
        plan_actors({"CPU": 8.0}, "cuda")
    with pytest.raises(ConfigError, match=r"more than the 4 cores.*--workers 2"):
        plan_actors({"CPU": 4.0}, "cpu", decoders=4)
    assert plan_actors({"CPU": 4.0}, "cpu", decoders=1) == Actors(1, 2, 1.0)


def kill_at_work(name: str, ended: threading.Event, killed: list[int]) -> None:
    """Kill the first Ray worker that is seen to be at work for this class."""
    while not ended.wait(0.02):
        for process in psutil.process_iter(["cmdline"]):
            title = " ".join(process.info["cmdline"] or [])
            if title.startswith(f"ray::MapWorker(MapBatches({name})).submit"):
                process.kill()
                killed.append(process.pid)
                return


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_workers_cost_nothing(video: Path, encoder, tmp_path, monkeypatch):
    """A cluster of four workers; one that decodes and one that encodes are killed at work."""
    ray = pytest.importorskip("ray")
    clips = tmp_path / "clips"
    clips.mkdir()
    names = [f"{number:02}.mp4" for number in range(48)]
    for name in names:
        (clips / name).write_bytes(video.read_bytes())
    (clips / "bad.mp4").write_text("not a video", encoding="utf-8")
    monkeypatch.setattr(extraction, "_VIDEOS_PER_BLOCK", 4)
    monkeypatch.setenv("RAY_worker_niceness", "0")
    ray.init(num_cpus=4, log_to_driver=False, include_dashboard=False)
    ended, killed = threading.Event(), list[int]()
    killers = [
        threading.Thread(target=kill_at_work, args=(name, ended, killed))
        for name in ("_Decoder", "_Encoder")
    ]
    sampling = Sampling(num_frames=2)
    folder = tmp_path / "store"
    seen: list[int] = []
    for killer in killers:
        killer.start()
    try:
        with StoreWriter(folder, encoder.fingerprint, encoder.dim, sampling.choice()) as writer:
            result = extraction.extract_with_ray(
                find_sources([clips]),
                "embedded",
                writer,
                sampling,
                progress=lambda done, total: seen.append(done),
            )
    finally:
        ended.set()
        for killer in killers:
            killer.join()
        ray.shutdown()
    assert len(killed) == 2
    assert seen[-1] == len(names) + 1
    assert [failure.id for failure in result.failures] == ["bad.mp4"]
    assert result.encoded == len(names)
    assert verify_store(folder).problems == []
    store = FeatureStore(folder)
    assert sorted(store) == names
    for rows in store.values():
        torch.testing.assert_close(rows, store["00.mp4"], atol=1e-5, rtol=0)
