"""A short real video with questions, made on the spot from photographs in a Python package.

The photographs ship inside the scikit-image wheel (folder `skimage/data`); nothing is
downloaded. As the docstrings of `skimage.data` say: `astronaut` (Eileen Collins, NASA Great
Images) and `rocket` (Falcon 9 with DSCOVR, SpaceX) are in the public domain, `hubble_deep_field`
(NASA) may be freely used as public domain, `coffee` (Rachel Michetti, courtesy of Pikolo
Espresso Bar) and `chelsea` (Stefan van der Walt) are CC0.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import av
from av.video.stream import VideoStream
from PIL import Image

from topa.errors import DataError
from topa.runs import atomic_path
from topa.tideo.schema import Question

SIZE = (384, 288)
RATE = 24
SHOT_FRAMES = 48  # two seconds

Box = tuple[float, float, float]  # centre x, centre y, width, as parts of the largest 4:3 window


@dataclass(frozen=True)
class _Shot:
    file: str
    caption: str
    first: Box
    last: Box


_SHOTS = (
    _Shot(
        "coffee.png",
        "A red cup of espresso stands on a red saucer on a wooden table.",
        (0.5, 0.5, 1.0),
        (0.5, 0.45, 0.7),
    ),
    _Shot(
        "chelsea.png",
        "A tabby cat with yellow-green eyes looks past the camera.",
        (0.42, 0.5, 0.8),
        (0.55, 0.5, 0.8),
    ),
    _Shot(
        "astronaut.png",
        "A smiling astronaut in an orange space suit poses beside a flag and a model shuttle.",
        (0.45, 0.34, 0.9),
        (0.45, 0.27, 0.6),
    ),
    _Shot(
        "rocket.jpg",
        "A rocket stands upright on a launch pad at dusk between tall lattice towers.",
        (0.5, 0.6, 0.7),
        (0.5, 0.5, 1.0),
    ),
    _Shot(
        "hubble_deep_field.jpg",
        "Many small galaxies of different colours shine in a black sky.",
        (0.35, 0.4, 0.5),
        (0.6, 0.55, 0.5),
    ),
)

SAMPLE_QUESTIONS: tuple[Question, ...] = (
    Question(
        question="What is the person in the video wearing?",
        options=[
            "A white doctor's coat",
            "A black suit and a tie",
            "An orange space suit",
            "A blue swimsuit",
            "A yellow raincoat",
        ],
        answer=2,
        open_answer="An orange space suit.",
        kind="descriptive",
    ),
    Question(
        question="Which animal appears in the video?",
        options=["A horse", "A cat", "A parrot", "A goldfish", "A cow"],
        answer=1,
        open_answer="A tabby cat.",
        kind="descriptive",
    ),
    Question(
        question="What is shown right after the astronaut?",
        options=[
            "A cup of coffee",
            "A cat",
            "A city street with cars",
            "A football match",
            "A rocket on a launch pad",
        ],
        answer=4,
        open_answer="A rocket on a launch pad.",
        kind="temporal",
    ),
)
SAMPLE_OPEN_QUESTION = "What is standing on the wooden table at the beginning of the video?"
SAMPLE_OPEN_ANSWER = "A red cup of coffee on a red saucer with a spoon."


def write_sample_video(path: str | Path) -> list[str]:
    """Write the sample video (MP4, 384x288, 24 fps, 10 s, five shots) whole or not at all.

    Every shot moves slowly over one photograph. The content is the same on every call.

    Returns:
        One sentence for each shot, in time order.

    Raises:
        DataError: scikit-image or one of its photographs is not installed.
    """
    photographs = [_read_photograph(shot.file) for shot in _SHOTS]
    with (
        atomic_path(path) as temporary,
        av.open(str(temporary), "w", format="mp4", options={"movflags": "faststart"}) as container,
    ):
        stream = _add_stream(container)
        for number, (shot, photograph) in enumerate(zip(_SHOTS, photographs, strict=True)):
            for index in range(SHOT_FRAMES):
                image = _crop(photograph, shot, index / (SHOT_FRAMES - 1))
                frame = av.VideoFrame.from_image(image).reformat(format="yuv420p", threads=1)
                frame.pts = number * SHOT_FRAMES + index
                frame.time_base = Fraction(1, RATE)
                container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return [shot.caption for shot in _SHOTS]


def _read_photograph(file: str) -> Image.Image:
    spec = find_spec("skimage")  # finds the folder without importing the package
    if spec is None or spec.origin is None:
        raise DataError(
            "scikit-image is not installed", where=file, mend="Run `pip install scikit-image`."
        )
    photograph = Path(spec.origin).parent / "data" / file
    if not photograph.is_file():
        raise DataError(
            "this photograph of scikit-image is missing",
            where=photograph,
            mend="Run `pip install --force-reinstall scikit-image`.",
        )
    with Image.open(photograph) as image:
        return image.convert("RGB")


def _add_stream(container: av.container.OutputContainer) -> VideoStream:
    """Add an H.264 stream, or MPEG-4 where PyAV was built without libx264."""
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    options = {"crf": "20", "preset": "veryfast"} if codec == "libx264" else {"qscale": "3"}
    stream = container.add_stream(codec, rate=RATE, options=options)
    assert isinstance(stream, VideoStream)
    stream.width, stream.height = SIZE
    stream.pix_fmt = "yuv420p"
    stream.thread_count = 1  # the same bits on every machine
    stream.gop_size = SHOT_FRAMES
    return stream


def _crop(photograph: Image.Image, shot: _Shot, progress: float) -> Image.Image:
    """Return the window at `progress` (0 to 1) between the first and the last box, resized."""
    x, y, part = (a + (b - a) * progress for a, b in zip(shot.first, shot.last, strict=True))
    width = min(photograph.width, photograph.height * SIZE[0] / SIZE[1]) * part
    height = width * SIZE[1] / SIZE[0]
    left = min(max(photograph.width * x - width / 2, 0), photograph.width - width)
    top = min(max(photograph.height * y - height / 2, 0), photograph.height - height)
    window = (left, top, left + width, top + height)
    return photograph.resize(SIZE, Image.Resampling.BICUBIC, box=window, reducing_gap=None)
