"""What the page and the HTTP interface share: videos watched once, questions answered together."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import cast

from PIL import Image
from torch import Tensor

from topa.answer import Method, Topa
from topa.data.templates import Prompt, clean_question, list_options
from topa.errors import ConfigError, TooLargeError
from topa.model.methods import Choice
from topa.serve.decoding import Decoders
from topa.serve.engine import Engine
from topa.serve.fetching import Fetcher
from topa.serve.metrics import Metrics
from topa.serve.remote import RemoteEngine
from topa.serve.settings import ServeConfig
from topa.serve.sources import Material, Sources
from topa.serve.writing import Piece, Sampling

_PICTURE = (320, 240)


@dataclass(frozen=True)
class SeenVideo:
    """What is kept of a video.

    Attributes:
        key: Names its content and how it was sampled.
        times: Of its frames, in seconds.
        duration: Of the whole video, in seconds, if known.
        features: [n, d] of its frames, as the encoder gives them.
        projected: [n, d] the same through the memory, if there is one.
        pictures: Its frames as small JPEG images.
    """

    key: str
    times: list[float]
    duration: float | None
    features: Tensor
    projected: Tensor | None
    pictures: list[bytes]

    def shown(self, use_memory: bool, blind: bool) -> Tensor:
        """Return the features that the LLM is shown."""
        shown = self.projected if use_memory and self.projected is not None else self.features
        return shown[:0] if blind else shown


@dataclass(frozen=True)
class Explained:
    """What the memory takes a frame for.

    Attributes:
        time: Seconds from the start.
        picture: The frame as a small JPEG image.
        captions: Of the nearest memory rows.
        weights: Their weights in the projection (Eq. 2), largest first.
    """

    time: float
    picture: bytes
    captions: list[str]
    weights: list[float]


class Service:
    """One model at work for many requests.

    Args:
        topa: The model with encoder and memory.
        config: The settings.
        name: What clients call the model.
        fetcher: Fetches videos from allowed hosts.
        thread: Of `start_thread`, best the one that has loaded the model; a new one if None.
    """

    def __init__(
        self,
        topa: Topa,
        config: ServeConfig,
        name: str,
        fetcher: Fetcher | None = None,
        thread: ThreadPoolExecutor | None = None,
    ):
        self.topa, self.config, self.name = topa, config, name
        self.metrics = Metrics()
        self.engine = Engine(topa, self.metrics, config.batch_rows, config.cached_prefixes, thread)
        self.remote: RemoteEngine | None = None
        if config.engine is not None:
            self.remote = RemoteEngine(topa, config.engine, config.request_seconds)
        self._folder = tempfile.TemporaryDirectory(prefix="topa-")
        self._sources = Sources(config, Path(self._folder.name), fetcher)
        self._decoders = Decoders(config)
        # Decoded frames are large: no more of them than this wait for the encoder.
        self._decoded = asyncio.Semaphore(config.decoders + 1)
        self._videos: OrderedDict[str, asyncio.Task[SeenVideo]] = OrderedDict()

    async def start(self) -> None:
        """Load every part, so that no request waits for it."""
        await self.engine.run(self.engine.warm_up)
        blank = [Image.new("RGB", (32, 32))]
        await self.engine.run(lambda: self.topa.encoder.encode_frames(blank))

    async def close(self) -> None:
        """Finish what was begun, and end threads and processes."""
        await self.engine.close()
        if self.remote is not None:
            await self.remote.close()
        await asyncio.to_thread(self._decoders.close)
        self._folder.cleanup()

    # Videos ----------------------------------------------------------------------------

    async def watch(
        self, url: str, num_frames: int | None = None, fps: float | None = None
    ) -> SeenVideo:
        """Return what is kept of the video at an address.

        Raises:
            TopaError: The address is refused, or the video cannot be read.
        """
        self._check_frames(num_frames)
        return await self._look(await self._sources.take(url), num_frames, fps)

    async def watch_upload(self, path: str | Path, num_frames: int | None = None) -> SeenVideo:
        """Return what is kept of a file that the page has received."""
        self._check_frames(num_frames)
        material = await asyncio.to_thread(self._sources.take_upload, path)
        return await self._look(material, num_frames, None)

    def _check_frames(self, num_frames: int | None) -> None:
        most = self.topa.model.config.num_frames
        if num_frames is not None and not 1 <= num_frames <= most:
            raise ConfigError(
                f"{num_frames} frames asked for, the model has slots for {most}",
                where="num_frames",
                mend=f"Ask for 1 to {most}.",
            )

    async def _look(
        self, material: Material, num_frames: int | None, fps: float | None
    ) -> SeenVideo:
        count = num_frames or self.topa.model.config.num_frames
        key = f"{material.digest}/{count}/{fps}"
        task = self._videos.get(key)
        self.metrics.videos.labels("cached" if task else "made").inc()
        if task is None:
            task = asyncio.create_task(self._see(key, material, count, fps))
            self._videos[key] = task
            task.add_done_callback(lambda done: self._forget_failure(key, done))
        else:
            os.unlink(material.path)
            self._videos.move_to_end(key)
        # Others may wait for the same video: it goes on when this request is given up.
        return await asyncio.shield(task)

    def _forget_failure(self, key: str, task: asyncio.Task[SeenVideo]) -> None:
        if task.cancelled() or task.exception() is not None:
            self._videos.pop(key, None)
        for old in [key for key, task in self._videos.items() if task.done()]:
            if len(self._videos) <= self.config.cached_videos:
                return
            del self._videos[old]

    async def _see(self, key: str, material: Material, count: int, fps: float | None) -> SeenVideo:
        try:
            async with self._decoded:
                clip = await self._decoders.decode(material, count, fps)
                pictures = await asyncio.to_thread(lambda: [_shrink(each) for each in clip.images])
                features, projected = await self.engine.run(lambda: self._encode(clip.images))
        finally:
            os.unlink(material.path)
        return SeenVideo(key, clip.times, clip.duration, features, projected, pictures)

    def _encode(self, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor | None]:
        features = self.topa.encoder.encode_frames(images)
        memory = self.topa.memory
        return features, None if memory is None else memory.project(features)

    # Questions -------------------------------------------------------------------------

    @property
    def own_method(self) -> Method:
        """How the checkpoint scores options if nobody says otherwise."""
        return cast(Method, self.topa.model.config.scoring)

    async def choose(
        self,
        video: SeenVideo,
        choices: Sequence[Choice],
        *,
        method: Method | None = None,
        use_memory: bool = True,
        blind: bool = False,
    ) -> list[list[float]]:
        """Return the probability of every option of every question about a video.

        Raises:
            ConfigError: A question or the options cannot be used as given.
            TooLargeError: A question with its options is longer than `max_prompt_tokens`.
        """
        method = method or self.own_method
        if method == "similarity" and blind:
            raise ConfigError("similarity has no blind form", where="method")
        for question, options in choices:
            clean_question(question)
            list_options(options)
            self._check_length(self.topa.builder.likelihood([(question, options)]))
        # Blind scores mask the video, they do not leave it out.
        shown = video.shown(use_memory, blind=False)
        key = (video.key, use_memory)
        return await self.engine.score(key, shown, choices, method, blind)

    def write(
        self,
        video: SeenVideo,
        prompt: Prompt,
        samplings: Sequence[Sampling],
        *,
        use_memory: bool = True,
        blind: bool = False,
    ) -> AsyncIterator[tuple[int, Piece]]:
        """Yield (number of the answer, what was added to it) of answers to one prompt.

        Raises:
            TooLargeError: The prompt is longer than `max_prompt_tokens`, or an answer is to be
                longer than `max_tokens`, or there are more of them than `max_answers`.
        """
        config = self.config
        self._check_length(prompt)
        most = min(config.max_answers, config.batch_rows)
        if len(samplings) > most:
            raise TooLargeError(f"{len(samplings)} answers asked for, at most {most}", where="n")
        if any(sampling.max_tokens > config.max_tokens for sampling in samplings):
            raise TooLargeError(
                f"answers have at most {config.max_tokens} tokens", where="max_tokens"
            )
        shown = video.shown(use_memory, blind)
        if self.remote is not None:
            return self.remote.write(shown, prompt, samplings)
        return self.engine.write((video.key, use_memory), shown, prompt, samplings)

    def _check_length(self, prompt: Prompt) -> None:
        most = self.config.max_prompt_tokens
        if len(prompt) > most:
            raise TooLargeError(f"the prompt has {len(prompt)} tokens, at most {most} are taken")

    async def explain(self, video: SeenVideo, k: int = 3) -> list[Explained]:
        """Return every frame with the k memory captions nearest to it.

        Raises:
            ConfigError: This model has no memory.
        """
        memory = self.topa.memory
        if memory is None:
            raise ConfigError("there is no memory to explain frames with")
        weights, rows = await self.engine.run(lambda: memory.nearest(video.features, k))
        return [
            Explained(time, picture, [memory.captions[row] for row in near], shares)
            for time, picture, near, shares in zip(
                video.times, video.pictures, rows.tolist(), weights.tolist(), strict=True
            )
        ]

    async def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return [n, d] text features."""
        return await self.engine.run(lambda: self.topa.encoder.encode_text(texts))


def _shrink(image: Image.Image) -> bytes:
    small = image.copy()
    small.thumbnail(_PICTURE, Image.Resampling.LANCZOS)
    buffer = BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
