"""Decoding in processes that can be killed, seen from the server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import IO

from PIL import Image
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveInt, ValidationError

from topa.errors import TimeLimitError, VideoError
from topa.features.video import Clip
from topa.serve.settings import ServeConfig
from topa.serve.sources import Material

_LONGEST_HEAD = 1 << 20
_GRACE = 2.0  # seconds beyond its own time limit that a decoder may take to say so
# A decoder that was taken over shall not read the server's API keys.
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV")
_REUSES = 200  # videos that one process decodes


class _Head(BaseModel):
    """What a decoder says before the pixels; believed as little as the video itself."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    error: str | None = None
    times: list[NonNegativeFloat] = []
    sizes: list[tuple[PositiveInt, PositiveInt]] = []
    duration: NonNegativeFloat | None = None


class _Decoder:
    """One decoding process, started when first needed and after it was killed."""

    def __init__(self, config: ServeConfig):
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None
        self._used = 0

    def decode(self, material: Material, num_frames: int, fps: float | None) -> Clip:
        config = self._config
        request = {
            "path": str(material.path),
            "pieces": material.pieces,
            "num_frames": num_frames,
            "fps": fps,
            "max_pixels": config.max_pixels,
            "max_seconds": config.max_seconds,
            "time_limit": config.decode_seconds,
        }
        process = self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        timed_out = threading.Event()

        def kill() -> None:
            timed_out.set()
            process.kill()

        timer = threading.Timer(config.decode_seconds + _GRACE, kill)
        timer.start()
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            head = _Head.model_validate_json(process.stdout.readline(_LONGEST_HEAD))
            if head.error is not None:
                raise VideoError(head.error, where="video_url")
            images = _read_images(process.stdout, head, num_frames, config.max_pixels)
        except (OSError, ValidationError, EOFError):
            self.stop()
            if timed_out.is_set():
                raise TimeLimitError(
                    f"decoding took longer than {config.decode_seconds:g} s", where="video_url"
                ) from None
            raise VideoError("the video broke its decoder", where="video_url") from None
        finally:
            timer.cancel()
        self._used += 1
        if self._used >= _REUSES:
            self.stop()
        return Clip("video_url", head.times, images, head.duration)

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.stop()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "topa.serve.frame_worker", str(self._config.decoder_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
            # Ctrl-C at the terminal is for the server, which lets the decoder finish.
            start_new_session=True,
        )
        return self._process

    def stop(self) -> None:
        """Kill the process, if there is one, and wait for its end."""
        process, self._process, self._used = self._process, None, 0
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what it did not take is lost
                    pipe.close()


def _read_images(
    stream: IO[bytes], head: _Head, num_frames: int, max_pixels: int
) -> list[Image.Image]:
    """Return the frames that follow a head.

    Raises:
        EOFError: There are not the frames that it promises, or more than were asked for.
    """
    if not 0 < len(head.sizes) == len(head.times) <= num_frames:
        raise EOFError
    images = []
    for width, height in head.sizes:
        size = 3 * width * height
        if width * height > max_pixels:
            raise EOFError
        pixels = stream.read(size)
        if len(pixels) != size:
            raise EOFError
        images.append(Image.frombytes("RGB", (width, height), pixels))
    return images


class Decoders:
    """The decoding processes of a server.

    Args:
        config: How many, and their limits.
    """

    def __init__(self, config: ServeConfig):
        self._threads = ThreadPoolExecutor(config.decoders, thread_name_prefix="decode")
        self._all = [_Decoder(config) for _ in range(config.decoders)]
        self._idle: SimpleQueue[_Decoder] = SimpleQueue()
        for decoder in self._all:
            self._idle.put(decoder)

    async def decode(self, material: Material, num_frames: int, fps: float | None = None) -> Clip:
        """Return at most `num_frames` frames of a video, of at most `fps` a second.

        Raises:
            VideoError: It cannot be read, or is beyond a limit.
            TimeLimitError: It took too long, and its process was killed.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._decode, material, num_frames, fps)

    def _decode(self, material: Material, num_frames: int, fps: float | None) -> Clip:
        decoder = self._idle.get()
        try:
            return decoder.decode(material, num_frames, fps)
        finally:
            self._idle.put(decoder)

    def close(self) -> None:
        """Wait for what is being decoded, and end the processes."""
        self._threads.shutdown()
        for decoder in self._all:
            decoder.stop()
