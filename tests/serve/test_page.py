"""The page in a real browser: upload, ask, choose, describe, compare, a bad file."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="needs the extra ui")
pytest.importorskip("playwright.sync_api", reason="needs the extra dev")

from playwright.sync_api import sync_playwright

from topa.serve.desk import Desk
from topa.serve.page import build_page, launch, read_options, side_of
from topa.serve.settings import ServeConfig

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def address(checkpoint, tmp_path_factory):
    """The page with the tiny model, twice."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    config = ServeConfig()
    page = build_page([str(checkpoint)], config, tmp_path_factory.mktemp("examples"))
    launch(page, config, host="127.0.0.1", port=port, prevent_thread_lock=True)
    yield f"http://127.0.0.1:{port}"
    page.blocks.close()


@pytest.fixture(scope="module")
def tab(address):
    """A browser at the page; it asks no other host for anything."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        tab = browser.new_page(viewport={"width": 1360, "height": 1000})
        tab.set_default_timeout(90_000)
        asked = []
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(address)
        tab.wait_for_selector("#question textarea, #question input")
        yield tab
        elsewhere = [u for u in asked if not u.startswith((address, "data:", "blob:"))]
        browser.close()
    assert not elsewhere


def test_an_uploaded_video_is_shown_asked_and_described(tab, video):
    tab.locator("#video input[type=file]").set_input_files(str(video))
    tab.wait_for_selector(".topa-frame")
    frames = tab.locator(".topa-frame")
    assert frames.count() == 4
    assert frames.first.locator("li").count() == 3
    assert frames.first.locator("img").evaluate("image => image.naturalWidth") == 160

    field = tab.locator("#question textarea, #question input").first
    field.fill("What is on the table?")
    tab.get_by_role("button", name="Ask", exact=True).click()
    tab.wait_for_function("document.querySelector('#answer textarea').value.length > 0")

    tab.get_by_role("tab", name="Choose").click()
    tab.locator("#choice-question textarea, #choice-question input").first.fill("What is it?")
    tab.locator("#choice-options textarea").fill("a cup <b>of</b> coffee\na cat\n\na car\n")
    tab.get_by_role("button", name="Choose", exact=True).click()
    tab.wait_for_selector("#bars dt, #bars .confidence-set")
    text = tab.locator("#bars").inner_text()
    assert all(
        option in text for option in ("(A) a cup <b>of</b> coffee", "(B) a cat", "(C) a car")
    )

    tab.get_by_role("tab", name="Describe").click()
    tab.get_by_label("Compare two side by side").check()
    tab.get_by_role("button", name="Describe", exact=True).click()
    tab.wait_for_function("document.querySelector('#description textarea').value.length > 0")
    tab.get_by_label("Second description").wait_for()

    tab.get_by_text("The same in Python or in the shell").click()
    assert "m.describe('clip.mp4')" in tab.locator("#python").inner_text()


def test_what_cannot_be_asked_is_told_in_words(tab):
    """Similarity has no blind form; blind and similarity are both switched on, then off again."""
    blind, method = tab.get_by_label("Blind").first, tab.get_by_label("Options scored by").first
    tab.get_by_role("tab", name="Choose").click()
    blind.check()
    method.click()
    tab.get_by_role("option", name="similarity", exact=True).click()
    tab.get_by_role("button", name="Choose", exact=True).click()
    tab.get_by_text("Similarity has no blind form").first.wait_for()
    blind.uncheck()
    tab.get_by_label("Compare two side by side").uncheck()
    tab.get_by_role("button", name="Choose", exact=True).click()
    tab.wait_for_function("document.querySelector('#python').innerText.includes('similarity')")
    bars = tab.locator("#bars").inner_text()
    assert 97 <= sum(int(share) for share in re.findall(r"(\d+)\s*%", bars)) <= 103  # rounded


def test_fewer_frames_are_sampled_when_the_slider_says_so(tab):
    tab.locator("#frames input[type=number]").fill("2")
    tab.locator("#frames input[type=number]").press("Enter")
    tab.wait_for_function("document.querySelectorAll('.topa-frame').length === 2")


def test_an_answer_ends_with_its_video(tab, video, monkeypatch):
    written_on, really_write = [], Desk.write

    async def write_slowly(self, path, question, side):
        async for text in really_write(self, path, question, side):
            yield text
            await asyncio.sleep(0.2)
            written_on.append(text)

    monkeypatch.setattr(Desk, "write", write_slowly)
    tab.get_by_role("tab", name="Describe").click()
    tab.get_by_role("button", name="Describe", exact=True).click()
    written = "document.querySelector('#description textarea').value"
    tab.wait_for_function(f"{written}.length > 0")
    tab.locator("#video").get_by_label("Clear").first.click()
    tab.wait_for_function(f"{written} === ''")
    before = len(written_on)
    tab.wait_for_timeout(1000)
    assert tab.evaluate(written) == ""
    assert len(written_on) == before  # five more, had it gone on
    tab.locator("#video input[type=file]").set_input_files(str(video))
    tab.wait_for_selector(".topa-frame")


def test_a_bad_file_is_told_in_words(tab, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"this is no video" * 100)
    tab.locator("#video").get_by_label("Clear").first.click()
    tab.locator("#video input[type=file]").set_input_files(str(bad))
    told = tab.locator(".topa-problem")
    told.wait_for()
    assert told.inner_text().startswith("Not a video that FFmpeg can read")


def test_an_example_fills_everything_in(tab):
    tab.reload()
    tab.get_by_role("button", name="Ask", exact=True).click()
    tab.get_by_text("There is no video yet").first.wait_for()
    tab.get_by_text("Which animal appears in the video?").first.click()
    tab.wait_for_selector(".topa-frame")
    assert tab.locator(".topa-frame").count() == 10
    tab.get_by_role("tab", name="Choose").click()
    assert "A parrot" in tab.locator("#choice-options textarea").input_value()


def test_a_problem_leaves_no_traceback_in_the_terminal(tab, capfd):
    tab.reload()
    capfd.readouterr()
    tab.get_by_role("button", name="Ask", exact=True).click()
    tab.get_by_text("There is no video yet").first.wait_for()
    assert "Traceback" not in capfd.readouterr().err


def test_options_are_lines():
    assert read_options(" a \n\n b\r\nc") == ["a", "b", "c"]


def test_controls_make_a_side():
    side = side_of("embedded", "the checkpoint's own", True, False, 10, 10)
    assert (side.method, side.num_frames) == (None, None)
    side = side_of("embedded", "similarity", False, True, 4, 10)
    assert (side.method, side.use_memory, side.blind, side.num_frames) == (
        "similarity",
        False,
        True,
        4,
    )


def test_without_its_package_the_extra_is_named(tmp_path):
    (tmp_path / "gradio.py").write_text("raise ModuleNotFoundError(name='gradio')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from topa.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "ui"], capture_output=True, text=True, cwd=Path(tmp_path)
    )
    assert done.returncode == 2
    assert "pip install -e '.[ui]'" in done.stderr
