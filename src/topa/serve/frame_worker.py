"""The process that decodes videos of strangers: limited, and killed when it takes too long.

One request a line on stdin (JSON). Each answer on stdout is a line of JSON, then the pixels of
the frames, RGB, row by row. Nothing is pickled: a decoder that was taken over can only send
pixels.
"""

from __future__ import annotations

import json
import resource
import sys
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import av
from PIL import Image, ImageOps, UnidentifiedImageError

from topa.errors import TopaError, VideoError
from topa.features.video import read_clip


def limit_resources(address_space: int) -> None:
    """Let this process write no file, dump no core and grow no further than its limit."""
    for kind, most in (
        (resource.RLIMIT_AS, address_space),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 32),
    ):
        resource.setrlimit(kind, (most, most))


def read_frames(request: dict[str, Any]) -> tuple[list[float], list[Image.Image], float | None]:
    """Return times in seconds, images and the duration of what a request names.

    Raises:
        VideoError: It cannot be read, or is beyond a limit.
    """
    path = Path(request["path"])
    if request["pieces"]:
        return _read_list(path, request)
    count, most = request["num_frames"], request["max_seconds"]
    limits = {"max_pixels": request["max_pixels"], "time_limit": request["time_limit"]}
    if request["fps"] is not None:
        duration = read_clip(path, num_frames=1, **limits).duration
        if duration is not None:
            count = min(count, max(1, round(duration * request["fps"])))
    clip = read_clip(path, num_frames=count, **limits)
    if clip.duration is not None and clip.duration > most:
        raise VideoError(f"the video is {clip.duration:.0f} s long, more than {most:g} s")
    return clip.times, clip.images, clip.duration


def _read_list(
    path: Path, request: dict[str, Any]
) -> tuple[list[float], list[Image.Image], float | None]:
    """Return the frames of a list; they stand 1 / fps seconds apart, one second if not said."""
    content, sizes, times, images = path.read_bytes(), request["pieces"], [], []
    total, wanted = len(sizes), request["num_frames"]
    kept = range(total) if total <= wanted else [j * total // wanted for j in range(wanted)]
    for index in kept:
        start = sum(sizes[:index])
        images.append(_read_jpeg(content[start : start + sizes[index]], index, request))
        times.append(index / (request["fps"] or 1.0))
    return times, images, total / (request["fps"] or 1.0)


def _read_jpeg(content: bytes, index: int, request: dict[str, Any]) -> Image.Image:
    try:
        with Image.open(BytesIO(content), formats=["JPEG"]) as image:
            if image.width * image.height > request["max_pixels"]:
                raise VideoError(f"frame {index + 1} has more than {request['max_pixels']} pixels")
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError):
        raise VideoError(f"frame {index + 1} of the list is not a JPEG image") from None


def answer(request: dict[str, Any]) -> tuple[dict[str, Any], list[Image.Image]]:
    """Return the line of JSON and the frames for a request."""
    try:
        times, images, duration = read_frames(request)
    except TopaError as error:
        # The path is the server's own, and none of the client's business; nor is the other way
        # out that the library has, as reading a part.
        advice = (error.mend or "").partition(", or ")[0]
        mend = f". {advice}" if advice and "_" not in advice else ""
        return {"error": f"{error.what}{mend}".removesuffix(".")}, []  # what follows ends it
    except MemoryError:
        return {"error": "decoding takes more memory than it may"}, []
    sizes = [list(image.size) for image in images]
    return {"times": times, "sizes": sizes, "duration": duration}, images


def main() -> None:
    """Answer requests until stdin ends."""
    limit_resources(int(sys.argv[1]))
    av.logging.set_level(None)
    warnings.simplefilter("ignore")
    Image.MAX_IMAGE_PIXELS = None  # the request's own limit is checked before pixels are read
    for line in sys.stdin.buffer:
        head, images = answer(json.loads(line))
        out = sys.stdout.buffer
        out.write(json.dumps(head).encode() + b"\n")
        for image in images:
            out.write(image.tobytes())
        out.flush()


if __name__ == "__main__":
    main()
