"""Encoding on a real Ray cluster of this machine, with a worker killed on the way."""

from __future__ import annotations

import os
import signal
import threading
import time
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


def test_without_ray_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with (
        StoreWriter(tmp_path, "test-1", 4, {}) as writer,
        pytest.raises(ConfigError, match=r"\.\[scale\]"),
    ):
        extraction.extract_with_ray([], "embedded", writer, Sampling())


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_killed_worker_costs_nothing(video: Path, encoder, tmp_path):
    ray = pytest.importorskip("ray")
    for number in range(40):
        (tmp_path / "clips").mkdir(exist_ok=True)
        (tmp_path / "clips" / f"{number:02}.mp4").write_bytes(video.read_bytes())
    (tmp_path / "clips" / "bad.mp4").write_text("not a video", encoding="utf-8")
    ray.init(num_cpus=4, log_to_driver=False, include_dashboard=False)
    killed: list[int] = []
    ended = threading.Event()

    def kill_one_decoder() -> None:
        while not killed and not ended.is_set():
            for process in psutil.process_iter(["name", "cmdline"]):
                title = " ".join(process.info["cmdline"] or [])
                if title.startswith("ray::MapWorker(MapBatches(_Decoder)).submit"):
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)
                    break
            time.sleep(0.05)

    thread = threading.Thread(target=kill_one_decoder)
    thread.start()
    sampling = Sampling(num_frames=2)
    folder = tmp_path / "store"
    try:
        with StoreWriter(folder, encoder.fingerprint, encoder.dim, sampling.choice()) as writer:
            sources = find_sources([tmp_path / "clips"])
            result = extraction.extract_with_ray(
                sources, "embedded", writer, sampling, decoders=2, encoders=1
            )
    finally:
        ended.set()
        thread.join()
        ray.shutdown()
    assert killed
    assert [failure.id for failure in result.failures] == ["bad.mp4"]
    assert result.encoded == 40
    assert verify_store(folder).problems == []
    store = FeatureStore(folder)
    assert sorted(store) == [f"{number:02}.mp4" for number in range(40)]
    assert all(torch.equal(rows, store["00.mp4"]) for rows in store.values())
