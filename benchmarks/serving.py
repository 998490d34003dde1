"""How much more a server answers when it takes requests together: 16 clients against one.

A request is an open question, or a question with five options. The plain server takes one at a
time and keeps nothing between them: each decodes and encodes its video, and the LLM reads all of
it, as `Topa.ask` does. `topa serve` is asked the same in turn, which shows what it keeps, and by
16 clients at once, each of which waits for its answer before it asks on. All use the same
weights, videos and questions; every answer is compared with the plain one.

    python benchmarks/serving.py [--clients 16] [--checkpoint embedded]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import torch

from topa.answer import Topa
from topa.features.samples import write_sample_video
from topa.serve.engine import start_thread
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
OPTIONS = (
    "A cat on a sofa",
    "A cup of coffee",
    "A rocket on its launch pad",
    "A football match",
    "A forest in the rain",
    "An astronaut in an orange suit",
    "A horse",
    "A street with many cars",
    "A man at a piano",
    "A bowl of soup",
)
EACH = 4  # questions about a video
TOKENS = 24


@dataclass(frozen=True)
class Pair:
    """Two requests about a video: a question in free words, and the same with options."""

    video: Path
    question: str
    options: tuple[str, ...]


Found = tuple[str, list[float]]


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


def make_pairs(videos: list[Path]) -> list[list[Pair]]:
    """Return for each video its questions, each with options drawn anew."""
    draw = random.Random(0)
    return [
        [
            Pair(video, QUESTIONS[(number + k) % len(QUESTIONS)], tuple(draw.sample(OPTIONS, 5)))
            for k in range(EACH)
        ]
        for number, video in enumerate(videos)
    ]


def make_workloads(pairs: list[list[Pair]]) -> dict[str, list[list[Pair]]]:
    """Return what each client asks, one after the other."""
    few = max(1, len(pairs) // EACH)
    return {
        "a video each, one question": [asked[:1] for asked in pairs],
        f"a video each, {EACH} questions": pairs,
        f"{few} videos among all, one question": [
            [pairs[number % few][number // few % EACH]] for number in range(len(pairs))
        ],
    }


def answer_plainly(topa: Topa, pairs: list[Pair]) -> tuple[dict[Pair, Found], float]:
    """Return all answers, each request on its own, and the seconds that they took."""
    found = {}
    started = time.perf_counter()
    for pair in pairs:
        text = topa.ask(pair.video, pair.question, max_new_tokens=TOKENS).text
        shares = topa.ask(pair.video, pair.question, pair.options).probabilities
        found[pair] = text, shares or []
    return found, time.perf_counter() - started


async def serve(
    topa: Topa, clients: list[list[Pair]], thread: ThreadPoolExecutor
) -> tuple[dict[Pair, Found], float]:
    """Return the answers to all clients at once, and the seconds that it took."""
    service = Service(topa, ServeConfig(), "embedded", thread=thread)
    await service.start()
    found: dict[Pair, Found] = {}

    async def run_client(asked: list[Pair]) -> None:
        for pair in asked:
            video = await service.watch_upload(pair.video)
            text = ""
            prompt = topa.builder.open(pair.question)
            async for _, piece in service.write(video, prompt, [Sampling(TOKENS)]):
                text += piece.text
            video = await service.watch_upload(pair.video)
            [shares] = await service.choose(video, [(pair.question, pair.options)])
            found[pair] = text, shares

    started = time.perf_counter()
    await asyncio.gather(*map(run_client, clients))
    seconds = time.perf_counter() - started
    await service.close()
    return found, seconds


def count_equal(found: dict[Pair, Found], plain: dict[Pair, Found]) -> int:
    """Return how many answers have the same text, and probabilities within 0.001."""
    return sum(
        text == plain[pair][0]
        and bool((torch.tensor(shares) - torch.tensor(plain[pair][1])).abs().max() < 1e-3)
        for pair, (text, shares) in found.items()
    )


def main() -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--checkpoint", default="embedded")
    arguments = parser.parse_args()
    # Both ways compute in the thread that has loaded the model (topa.serve.engine.start_thread).
    thread = start_thread()
    topa = thread.submit(Topa.from_pretrained, arguments.checkpoint).result()
    rows, equal, count = [], 0, 0
    with tempfile.TemporaryDirectory() as folder:
        pairs = make_pairs(write_videos(Path(folder), arguments.clients))
        thread.submit(answer_plainly, topa, pairs[0][:1]).result()  # everything is loaded
        for name, clients in make_workloads(pairs).items():
            flat = [pair for asked in clients for pair in asked]
            half = len(flat) // 2
            # The machine may get slower or faster: one way stands in the middle of the other.
            before, first = thread.submit(answer_plainly, topa, flat[:half]).result()
            at_once, together = asyncio.run(serve(topa, clients, thread))
            after, second = thread.submit(answer_plainly, topa, flat[half:]).result()
            in_turn, kept = asyncio.run(serve(topa, [flat], thread))
            alone, plain = first + second, before | after
            found = f"plain {alone:.0f} s, in turn {kept:.0f} s, at once {together:.0f} s"
            print(f"{name}: {found}", file=sys.stderr)
            equal += count_equal(in_turn, plain) + count_equal(at_once, plain)
            count += len(in_turn) + len(at_once)
            rates = [2 * len(flat) / each for each in (alone, kept, together)]
            rows.append(
                f"| {name} | {2 * len(flat)} | {rates[0]:.2f} | {rates[1]:.2f} | {rates[2]:.2f} "
                f"| **{alone / together:.1f}** | {kept / together:.1f} |"
            )
    print("| Asked | requests | plain | in turn | at once | to plain | to in turn |")
    print("|---|---|---|---|---|---|---|", *rows, sep="\n")
    print(
        f"\nRequests a second; {arguments.clients} clients; {torch.get_num_threads()} threads, "
        f"load average {os.getloadavg()[0]:.1f}. Equal to the plain answers: {equal} of {count} "
        "texts with probabilities."
    )


if __name__ == "__main__":
    main()
