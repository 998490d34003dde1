"""How busy `topa encode videos` keeps the cores: processor time / (wall time x cores).

    python benchmarks/encode.py [--videos 24] [--seconds 30] [--workers N] [--decoder pyav]

Makes a video of 1280x720 H.264 with a key frame every 2 s, encodes so many copies of it into a
store with the embedded encoder, and prints one JSON object. Only a machine that does nothing else
gives the true share: other work takes it away.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

from topa.bench.storage import write_video
from topa.features.encoder import load_encoder
from topa.features.extraction import extract_videos
from topa.features.sources import Sampling, find_sources
from topa.features.verification import verify_store
from topa.features.writer import StoreWriter


def processor_seconds() -> float:
    """Return what this process and all that it has ended took so far."""
    return sum(os.times()[:4])


def main() -> None:
    """Run the benchmark and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--videos", type=int, default=24)
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--decoder", default="pyav")
    options = parser.parse_args()
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as name:
        clips = Path(name) / "clips"
        clips.mkdir()
        write_video(clips / "000.mp4", options.seconds, size=(1280, 720))
        for number in range(1, options.videos):
            shutil.copy(clips / "000.mp4", clips / f"{number:03}.mp4")
        sampling = Sampling(decoder=options.decoder)
        encoder = load_encoder()
        begun, used = time.monotonic(), processor_seconds()
        with StoreWriter(
            Path(name) / "store", encoder.fingerprint, encoder.dim, sampling.choice()
        ) as writer:
            result = extract_videos(
                find_sources([clips]), encoder, writer, sampling, workers=options.workers
            )
        wall, used = time.monotonic() - begun, processor_seconds() - used
        assert verify_store(writer.folder).problems == []
    assert not result.failures
    found = {
        "videos": result.encoded,
        "frames": result.frames,
        "cores": cores,
        "wall_seconds": round(wall, 1),
        "processor_seconds": round(used, 1),
        "busy": round(used / (wall * cores), 3),
        "processor_seconds_per_video": round(used / result.encoded, 2),
        "load_of_machine": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
