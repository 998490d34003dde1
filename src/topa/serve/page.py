"""The page: a video, its frames, questions, and two models side by side (Gradio)."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import gradio as gr

from topa.answer import Method
from topa.errors import DataError, TopaError
from topa.features.samples import SAMPLE_QUESTIONS, write_sample_video
from topa.serve.desk import Desk, merge, spell_problem
from topa.serve.settings import ServeConfig
from topa.serve.snippets import Side, write_codes

OWN_METHOD = "the checkpoint's own"
_INTRODUCTION = """# topa: ask an LLM about a video
The LLM has never been trained on one. It learned from videos written as text; frames reach it
through a memory of their captions."""


def side_of(
    checkpoint: str, method: str, use_memory: bool, blind: bool, frames: int, most: int
) -> Side:
    """Return how one side answers, as its controls say."""
    chosen: Any = None if method == OWN_METHOD else method
    return Side(checkpoint, chosen, use_memory, blind, None if frames == most else int(frames))


def read_options(text: str) -> list[str]:
    """Return the options written one a line."""
    return [line.strip() for line in text.splitlines() if line.strip()]


class Page:
    """The page and what its controls do.

    Args:
        desk: The models.
        examples: Videos with a question and its options, to start from.
    """

    def __init__(self, desk: Desk, examples: Sequence[tuple[str, str, Sequence[str]]]):
        self._desk, self._most = desk, desk.most_frames
        with gr.Blocks(
            title="topa", analytics_enabled=False, delete_cache=(3600, 24 * 3600)
        ) as self.blocks:
            gr.Markdown(_INTRODUCTION)
            with gr.Row():
                with gr.Column(scale=2, min_width=320):
                    self._add_inputs()
                with gr.Column(scale=5, min_width=480):
                    self._timeline = gr.HTML(elem_id="timeline")
                    self._add_questions()
            if examples:
                self._add_examples(examples)
            self._connect()

    def _add_inputs(self) -> None:
        self._video = gr.Video(label="Video", sources=["upload"], height=260, elem_id="video")
        self._frames = gr.Slider(
            1, self._most, self._most, step=1, label="Frames sampled", elem_id="frames"
        )
        self._first = self._add_side("Model", self._desk.checkpoints[0])
        self._compare = gr.Checkbox(label="Compare two side by side", elem_id="compare")
        with gr.Group(visible=False) as self._second_group:
            alone = len(self._desk.checkpoints) == 1
            self._second = self._add_side("Second model", self._desk.checkpoints[-1], blind=alone)

    def _add_side(
        self, label: str, checkpoint: str, blind: bool = False
    ) -> list[gr.components.Component]:
        model = gr.Dropdown(self._desk.checkpoints, value=checkpoint, label=label)
        method = gr.Dropdown(
            [OWN_METHOD, *get_args(Method)],
            value=OWN_METHOD,
            label="Options scored by",
            info="similarity needs no LLM",
        )
        with gr.Row():
            memory = gr.Checkbox(True, label="Memory", min_width=100)
            masked = gr.Checkbox(blind, label="Blind", info="video masked", min_width=100)
        return [model, method, memory, masked]

    def _add_questions(self) -> None:
        with gr.Tabs():
            with gr.Tab("Ask"):
                self._question = gr.Textbox(
                    label="Question", placeholder="What is the cat doing?", elem_id="question"
                )
                self._ask = gr.Button("Ask", variant="primary", elem_id="ask")
                with gr.Row():
                    self._answers = [
                        gr.Textbox(label="Answer", lines=3, elem_id="answer"),
                        gr.Textbox(label="Second answer", lines=3, visible=False),
                    ]
            with gr.Tab("Choose"):
                self._asked = gr.Textbox(label="Question", elem_id="choice-question")
                self._options = gr.Textbox(
                    label="Options, one a line", lines=5, elem_id="choice-options"
                )
                self._choose = gr.Button("Choose", variant="primary", elem_id="choose")
                with gr.Row():
                    self._bars = [
                        gr.Label(label="Probabilities", num_top_classes=26, elem_id="bars"),
                        gr.Label(label="Second probabilities", num_top_classes=26, visible=False),
                    ]
            with gr.Tab("Describe"):
                self._describe = gr.Button("Describe", variant="primary", elem_id="describe")
                with gr.Row():
                    self._words = [
                        gr.Textbox(label="Description", lines=5, elem_id="description"),
                        gr.Textbox(label="Second description", lines=5, visible=False),
                    ]
        with gr.Accordion("The same in Python or in the shell", open=False):
            self._python = gr.Code(
                "# Ask something first.", language="python", label="Python", elem_id="python"
            )
            self._shell = gr.Code(
                "# Ask something first.", language="shell", label="Shell", elem_id="shell"
            )

    def _add_examples(self, examples: Sequence[tuple[str, str, Sequence[str]]]) -> None:
        gr.Examples(
            [[video, ask, ask, "\n".join(options)] for video, ask, options in examples],
            [self._video, self._question, self._asked, self._options],
            label="Examples",
            example_labels=[ask for _, ask, _ in examples],
            elem_id="examples",
        )

    def _connect(self) -> None:
        controls: list[Any] = [self._frames, self._compare, *self._first, *self._second]
        plain: dict[str, Any] = {"api_visibility": "private"}
        seconds: list[Any] = [self._second_group, self._answers[1], self._bars[1], self._words[1]]
        self._compare.change(
            lambda shown: [gr.update(visible=shown)] * len(seconds),
            self._compare,
            seconds,
            **plain,
        )
        gr.on(
            # `release` is silent when a number is typed; of the steps of a drag the last counts.
            [self._video.change, self._frames.change, self._first[0].change],  # type: ignore[attr-defined]
            self._look,
            [self._video, *controls],
            self._timeline,
            show_progress="full",
            trigger_mode="always_last",
            **plain,
        )
        code: list[Any] = [self._python, self._shell]
        asking = gr.on(
            [self._ask.click, self._question.submit],
            self._write_answer,
            [self._video, self._question, *controls],
            [*self._answers, *code],
            show_progress_on=self._answers,
            **plain,
        )
        choosing = self._choose.click(
            self._choose_option,
            [self._video, self._asked, self._options, *controls],
            [*self._bars, *code],
            show_progress_on=self._bars,
            **plain,
        )
        describing = self._describe.click(
            self._write_description,
            [self._video, *controls],
            [*self._words, *code],
            show_progress_on=self._words,
            **plain,
        )
        shown: list[Any] = [*self._answers, *self._bars, *self._words]
        # What is being said of the last video would otherwise appear beside the next.
        stopped: list[Any] = [asking, choosing, describing]
        self._video.change(None, cancels=stopped, **plain).then(
            lambda: [None] * len(shown), None, shown, **plain
        )
        self.blocks.load(self._look, [self._video, *controls], self._timeline, **plain)

    # What the controls do ----------------------------------------------------------------

    def _sides(self, controls: Sequence[Any]) -> list[Side]:
        frames, compare, *rest = controls
        shown = [rest[:4], rest[4:]] if compare else [rest[:4]]
        return [
            side_of(model, method, memory, blind, frames, self._most)
            for model, method, memory, blind in shown
        ]

    async def _look(self, video: str | None, *controls: Any) -> str:
        return await self._desk.look(video, self._sides(controls)[0])

    async def _write(
        self, video: str | None, question: str | None, controls: Sequence[Any]
    ) -> AsyncIterator[list[Any]]:
        sides = self._sides(controls)
        code: list[Any] = write_codes(sides, question, None)
        streams = [self._desk.write(video, question, side) for side in sides]
        try:
            async for texts in merge(*streams):
                yield [*texts, *[""] * (2 - len(texts)), *code]
                code = [gr.skip()] * 2  # it stands there, or that of a later question does
        except TopaError as error:
            raise _tell(error) from None

    async def _write_answer(
        self, video: str | None, question: str, *controls: Any
    ) -> AsyncIterator[list[Any]]:
        async for values in self._write(video, question, controls):
            yield values

    async def _write_description(
        self, video: str | None, *controls: Any
    ) -> AsyncIterator[list[Any]]:
        async for values in self._write(video, None, controls):
            yield values

    async def _choose_option(
        self, video: str | None, question: str, text: str, *controls: Any
    ) -> list[Any]:
        options, sides = read_options(text), self._sides(controls)
        try:
            found: list[Any] = [
                await self._desk.choose(video, question, options, side) for side in sides
            ]
        except TopaError as error:
            raise _tell(error) from None
        code = write_codes(sides, question, options)
        return [*found, *[None] * (2 - len(found)), *code]


def _tell(error: TopaError) -> gr.Error:
    """Return what shows a problem on the page; the terminal needs no traceback of it."""
    return gr.Error(spell_problem(error), title="This cannot be answered", print_exception=False)


def build_page(checkpoints: Sequence[str], config: ServeConfig, folder: Path) -> Page:
    """Return the page; the built-in example videos are written to a folder.

    Raises:
        CheckpointError: One of the checkpoints is none.
    """
    examples: list[tuple[str, str, Sequence[str]]] = []
    try:
        video = folder / "five-shots.mp4"
        write_sample_video(video)
        examples = [(str(video), item.question, item.options) for item in SAMPLE_QUESTIONS]
    except DataError as error:
        gr.Info(f"No built-in examples: {error}")
    return Page(Desk(checkpoints, config), examples)


def launch(page: Page, config: ServeConfig, *, host: str, port: int, **extra: Any) -> Any:
    """Start the page; returns what Gradio's `launch` returns."""
    style = (resources.files("topa.serve") / "page.css").read_text(encoding="utf-8")
    page.blocks.queue(default_concurrency_limit=config.batch_rows, max_size=config.max_requests)
    return page.blocks.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        ssr_mode=False,
        max_file_size=config.max_video_bytes,
        footer_links=[],
        css=style,
        # Fonts of the system: the page loads nothing from elsewhere.
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        **extra,
    )


def run_page(
    checkpoints: Sequence[str],
    config: ServeConfig,
    *,
    host: str,
    port: int,
    browser: bool,
    say: Callable[[str], None],
) -> None:
    """Show the page until KeyboardInterrupt."""
    with (
        tempfile.TemporaryDirectory(prefix="topa-") as folder,
        contextlib.suppress(KeyboardInterrupt),
    ):
        os.environ["GRADIO_TEMP_DIR"] = folder  # what is uploaded goes when the page does
        page = build_page(checkpoints, config, Path(folder))
        launch(page, config, host=host, port=port, inbrowser=browser, prevent_thread_lock=True)
        try:
            say(f"The page is at http://{host}:{port} (Ctrl-C to stop).")
            threading.Event().wait()
        finally:
            # Tabs keep a connection open as long as they live: it is cut, and that is no error.
            page.blocks.server.force_exit = True
            logging.getLogger("uvicorn.error").disabled = True
            page.blocks.close(verbose=False)
