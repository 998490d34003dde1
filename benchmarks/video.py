"""Sampling frames from a long video: seeking against decoding all of it, on one core.

    python benchmarks/video.py [FILE] [--minutes 60] [--frames 10] [--reference] [--decoder pyav]

Without a file it makes one: 1280x720 H.264 at 24 fps with a key frame every 2 s, ten seconds
repeated. Prints wall seconds and processor seconds (the second is what other work on the machine
does not change). `--reference` also decodes the file from its first frame to its last, and asserts
that both give the same frames; of an hour that takes minutes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import av
from PIL import Image

from topa.bench.storage import write_video
from topa.features.video import Clip, read_clip

Found = TypeVar("Found")


def repeat_video(part: Path, path: Path, times: int) -> None:
    """Write a video that shows another one over and over; nothing is encoded again."""
    with av.open(str(path), "w") as container:
        stream = None
        for number in range(times):
            with av.open(str(part)) as source:
                given = source.streams.video[0]
                assert given.duration is not None
                stream = stream or container.add_stream_from_template(given)
                for packet in source.demux(given):
                    if packet.dts is None or packet.pts is None:  # the end of the part
                        continue
                    packet.pts += number * given.duration
                    packet.dts += number * given.duration
                    packet.stream = stream
                    container.mux(packet)


def timed(job: Callable[[], Found]) -> tuple[Found, float, float]:
    """Return what a job gives, its wall seconds and its processor seconds."""
    wall, work = time.perf_counter(), time.process_time()
    found = job()
    return found, time.perf_counter() - wall, time.process_time() - work


def decode_all(path: Path, times: list[float]) -> list[Image.Image]:
    """Return the frames that begin at these times, by decoding the whole file once."""
    images = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.thread_count = "NONE", 1
        wanted, first = list(times), None
        for frame in container.decode(stream):
            assert frame.time is not None
            first = frame.time if first is None else first
            if wanted and abs(frame.time - first - wanted[0]) < 1e-4:
                images.append(frame.to_image())
                del wanted[0]
    return images


def measure(path: Path, options: argparse.Namespace) -> dict[str, float]:
    """Return what reading the file takes, and with `--reference` decoding all of it."""

    def read() -> Clip:
        return read_clip(path, num_frames=options.frames, time_limit=3600, decoder=options.decoder)

    read()  # the file comes from memory from here on, for both
    clip, wall, work = timed(read)
    result = {"seconds_of_video": clip.duration or 0.0, "wall": wall, "processor": work}
    if options.reference:
        expected, wall, work = timed(lambda: decode_all(path, clip.times))
        assert [a.tobytes() for a in clip.images] == [b.tobytes() for b in expected]
        result |= {"reference_wall": wall, "reference_processor": work}
        result["times_less_work"] = work / result["processor"]
    return {name: round(value, 3) for name, value in result.items()}


def main() -> None:
    """Run the comparison and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--frames", type=int, default=10)
    parser.add_argument("--reference", action="store_true")
    parser.add_argument("--decoder", default="pyav")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.file
        if path is None:
            path, part = Path(folder) / "long.mp4", Path(folder) / "part.mp4"
            write_video(part, 10, size=(1280, 720))
            repeat_video(part, path, options.minutes * 6)
        found = measure(path, options)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
