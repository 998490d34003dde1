"""What the page does: one or two models, a video, questions; problems are told in words."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, Sequence
from functools import lru_cache
from importlib import resources

from jinja2 import Environment, StrictUndefined, Template

from topa.answer import DESCRIPTION_PENALTY, Topa
from topa.data.templates import list_options
from topa.errors import ConfigError, TopaError
from topa.model.checkpoint import read_config
from topa.serve.chat import DEFAULT_TOKENS, DESCRIPTION_TOKENS
from topa.serve.engine import start_thread
from topa.serve.service import Service
from topa.serve.settings import ServeConfig
from topa.serve.snippets import Side
from topa.serve.writing import Sampling

NEAREST = 3


class Desk:
    """The models of a page, each loaded when it is first asked.

    Args:
        checkpoints: "embedded" or folders, the first for the first side.
        config: The settings.
    """

    def __init__(self, checkpoints: Sequence[str], config: ServeConfig):
        self.checkpoints, self._config = list(checkpoints), config
        # Wrong names are told now, not when somebody picks one.
        self.most_frames = min(read_config(name).num_frames for name in checkpoints)
        self._services: dict[str, asyncio.Task[Service]] = {}
        self._thread = start_thread()  # one for all models

    async def service(self, checkpoint: str) -> Service:
        """Return the model at work.

        Raises:
            TopaError: It is none of the page's, or cannot be loaded.
        """
        if checkpoint not in self.checkpoints:
            raise ConfigError(f"there is no model {checkpoint!r} on this page")
        task = self._services.get(checkpoint)
        if task is None or (task.done() and task.exception() is not None):
            task = self._services[checkpoint] = asyncio.create_task(self._load(checkpoint))
        # Others may wait for the same model: it is loaded even when this request is given up.
        return await asyncio.shield(task)

    async def _load(self, checkpoint: str) -> Service:
        loop = asyncio.get_running_loop()
        topa = await loop.run_in_executor(self._thread, Topa.from_pretrained, checkpoint)
        service = Service(topa, self._config, checkpoint, thread=self._thread)
        await service.start()
        return service

    async def look(self, path: str | None, side: Side) -> str:
        """Return HTML with the sampled frames and what the memory takes them for."""
        if path is None:
            return render_timeline()
        try:
            service = await self.service(side.checkpoint)
            video = await service.watch_upload(path, side.num_frames)
            frames = await service.explain(video, NEAREST)
        except TopaError as error:
            return render_timeline(problem=spell_problem(error))
        shown = [
            {
                "time": frame.time,
                "captions": frame.captions,
                "weights": frame.weights,
                "picture": "data:image/jpeg;base64,"
                + base64.b64encode(frame.picture).decode("ascii"),
            }
            for frame in frames
        ]
        return render_timeline(frames=shown, duration=video.duration)

    async def write(
        self, path: str | None, question: str | None, side: Side
    ) -> AsyncGenerator[str, None]:
        """Yield an answer, or a description without a question, as far as it is written."""
        given = _given(path)  # before a model is loaded for nothing
        service = await self.service(side.checkpoint)
        builder = service.topa.builder
        prompt = builder.caption() if question is None else builder.open(question)
        video = await service.watch_upload(given, side.num_frames)
        if question is None:
            sampling = Sampling(
                DESCRIPTION_TOKENS, repetition_penalty=DESCRIPTION_PENALTY, whole_sentences=True
            )
        else:
            sampling = Sampling(DEFAULT_TOKENS)
        pieces = service.write(
            video, prompt, [sampling], use_memory=side.use_memory, blind=side.blind
        )
        text = ""
        async for _, piece in pieces:
            text += piece.text
            if piece.text or piece.finish:
                yield text or "(The LLM ended its answer before the first word.)"

    async def choose(
        self, path: str | None, question: str, options: Sequence[str], side: Side
    ) -> dict[str, float]:
        """Return the probability of each option, by its letter and text."""
        given, labels = _given(path), list_options(options).splitlines()
        service = await self.service(side.checkpoint)
        video = await service.watch_upload(given, side.num_frames)
        [shares] = await service.choose(
            video,
            [(question, options)],
            method=side.method,
            use_memory=side.use_memory,
            blind=side.blind,
        )
        return dict(zip(labels, shares, strict=True))


def _given(path: str | None) -> str:
    if path is None:
        raise ConfigError("there is no video yet", mend="Upload one, or pick an example.")
    return path


async def merge(*streams: AsyncGenerator[str, None]) -> AsyncGenerator[list[str], None]:
    """Yield the latest of every stream, each time that one of them has something new.

    When one fails, or nobody reads on, all streams are closed.
    """
    latest = [""] * len(streams)
    waiting = {
        asyncio.ensure_future(anext(stream, None)): (i, stream)  # type: ignore[arg-type]
        for i, stream in enumerate(streams)
    }
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                i, stream = waiting.pop(task)
                found = task.result()
                if found is None:
                    continue
                latest[i] = found
                waiting[asyncio.ensure_future(anext(stream, None))] = (i, stream)  # type: ignore[arg-type]
            yield list(latest)
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for stream in streams:
            await stream.aclose()


def spell_problem(error: TopaError) -> str:
    """Return what is wrong and how to mend it; where is plain on the page."""
    advice = f" {error.mend}" if error.mend else ""
    return f"{error.what[:1].upper()}{error.what[1:]}.{advice}"


def spell_share(share: float) -> str:
    """Return a share in percent; a small one is not called nothing."""
    return "<1%" if 0 < share < 0.005 else f"{share:.0%}"


@lru_cache(1)
def _template() -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["share"] = spell_share
    source = resources.files("topa.serve") / "timeline.html.jinja"
    return environment.from_string(source.read_text(encoding="utf-8"))


def render_timeline(
    frames: Sequence[dict[str, object]] = (),
    duration: float | None = None,
    problem: str | None = None,
) -> str:
    """Return the timeline as HTML; every text is escaped."""
    return _template().render(frames=frames, duration=duration, problem=problem)
