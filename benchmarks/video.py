"""Sampling frames from a long video: seeking against decoding all of it, on one core.

    python benchmarks/video.py FILE [--frames 10] [--reference]

Prints wall seconds and processor seconds (the second is what other work on the machine does not
change). `--reference` also decodes the file from its first frame to its last, and asserts that
both give the same frames. The file of docs/features.md is an hour of 1280x720 H.264 at 24 fps with
a key frame every 2 s:

    ffmpeg -f lavfi -i testsrc2=size=1280x720:rate=24:duration=10 -c:v libx264 -preset veryfast \\
        -g 48 -bf 2 -pix_fmt yuv420p part.mp4
    ffmpeg -stream_loop 359 -i part.mp4 -c copy hour.mp4
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import av
from PIL import Image

from topa.features.video import read_clip


def timed(job: Callable[[], list[Image.Image]]) -> tuple[list[Image.Image], float, float]:
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


def main() -> None:
    """Run the comparison and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("file", type=Path)
    parser.add_argument("--frames", type=int, default=10)
    parser.add_argument("--reference", action="store_true")
    options = parser.parse_args()
    clip = read_clip(options.file, num_frames=options.frames, time_limit=3600)
    images, wall, work = timed(
        lambda: read_clip(options.file, num_frames=options.frames, time_limit=3600).images
    )
    result = {"seconds_of_video": clip.duration, "wall": wall, "processor": work}
    if options.reference:
        expected, wall, work = timed(lambda: decode_all(options.file, clip.times))
        assert [a.tobytes() for a in images] == [b.tobytes() for b in expected]
        result |= {"reference_wall": wall, "reference_processor": work}
        result["times_less_work"] = work / result["processor"]
    print(json.dumps({name: round(value or 0, 3) for name, value in result.items()}, indent=2))


if __name__ == "__main__":
    main()
