"""How much more a server answers when it takes requests together: 16 clients against one.

Each client asks about a video of its own. One at a time is the plain server: the next request
begins when the one before is answered, each decodes its video, and nothing is shared. Both sides
use the same weights, the same videos and the same questions; the answers are compared first.

    python benchmarks/serving.py [--clients 16] [--questions 4] [--checkpoint embedded]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import torch

from topa.answer import Topa
from topa.features.samples import write_sample_video
from topa.serve.service import Service
from topa.serve.settings import ServeConfig
from topa.serve.writing import Sampling

QUESTIONS = (
    "What is the person in the video wearing?",
    "Which animal appears in the video?",
    "What is standing on the wooden table at the beginning?",
    "What happens in the video?",
    "Where does the video take place?",
    "What is shown at the end?",
    "What colour is the cup?",
    "What will happen next?",
)
OPTIONS = ("A cat", "A cup of coffee", "A rocket", "A football match", "A forest")
TOKENS = 24


def write_videos(folder: Path, count: int) -> list[Path]:
    """Return videos that differ: parts of the sample video, each a frame later."""
    source = folder / "sample.mp4"
    write_sample_video(source)
    with av.open(str(source)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    paths = []
    for number in range(count):
        path = folder / f"{number}.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=8)
            stream.width, stream.height, stream.pix_fmt = 384, 288, "yuv420p"
            for index, pixels in enumerate(frames[number :: 3 + number % 2]):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame = frame.reformat(format="yuv420p")
                frame.pts, frame.time_base = index, Fraction(1, 8)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        paths.append(path)
    return paths


async def one_at_a_time(topa: Topa, work: list[list[tuple[Path, str]]]) -> dict[str, object]:
    """Answer everything in turn, as `Topa.ask` does, video by video."""
    return {
        f"{path.name} {question}": (
            topa.ask(path, question, max_new_tokens=TOKENS).text,
            topa.ask(path, question, OPTIONS).probabilities,
        )
        for client in work
        for path, question in client
    }


async def together(topa: Topa, work: list[list[tuple[Path, str]]]) -> dict[str, object]:
    """Answer the requests of all clients, each of which waits for its answer before the next."""
    service = Service(topa, ServeConfig(), "embedded")
    await service.start()
    found: dict[str, object] = {}

    async def run_client(asked: list[tuple[Path, str]]) -> None:
        for path, question in asked:
            video = await service.watch_upload(path)
            text = ""
            prompt = topa.builder.open(question)
            async for _, piece in service.write(video, prompt, [Sampling(TOKENS)]):
                text += piece.text
            video = await service.watch_upload(path)
            [shares] = await service.choose(video, [(question, OPTIONS)])
            found[f"{path.name} {question}"] = (text, shares)

    await asyncio.gather(*map(run_client, work))
    await service.close()
    return found


def main() -> None:
    """Measure, and print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--questions", type=int, default=4)
    parser.add_argument("--checkpoint", default="embedded")
    arguments = parser.parse_args()
    topa = Topa.from_pretrained(arguments.checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        videos = write_videos(Path(folder), arguments.clients)
        work = [[(path, q) for q in QUESTIONS[: arguments.questions]] for path in videos]
        topa.ask(videos[0], QUESTIONS[0], OPTIONS)  # everything is loaded
        seconds, answers = {}, {}
        for name, run in (("one at a time", one_at_a_time), ("together", together)):
            started = time.perf_counter()
            answers[name] = asyncio.run(run(topa, work))
            seconds[name] = time.perf_counter() - started
            print(f"{name}: {seconds[name]:.1f} s", file=sys.stderr)
    texts = shares = 0
    for key, (text, probabilities) in answers["one at a time"].items():
        other_text, other = answers["together"][key]
        texts += text == other_text
        shares += bool((torch.tensor(probabilities) - torch.tensor(other)).abs().max() < 1e-3)
    count = len(answers["together"])
    print(
        json.dumps(
            {
                "clients": arguments.clients,
                "requests": 2 * count,
                "equal texts": f"{texts} of {count}",
                "equal probabilities (1e-3)": f"{shares} of {count}",
                "requests per second, one at a time": round(
                    2 * count / seconds["one at a time"], 3
                ),
                "requests per second, together": round(2 * count / seconds["together"], 3),
                "times": round(seconds["one at a time"] / seconds["together"], 2),
                "threads": torch.get_num_threads(),
                "load average": round(os.getloadavg()[0], 1),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
