"""Conversations become prompts of the method, or are refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from topa.data.templates import PromptBuilder
from topa.errors import RequestError
from topa.serve.chat import build_prompt, find_video
from topa.serve.schemas import ChatRequest, Message
from topa.serve.settings import ServeConfig


@pytest.fixture(scope="module")
def builder(tokenizer) -> PromptBuilder:
    return PromptBuilder(tokenizer, 4)


def say(role: str, *texts: str, url: str | None = None) -> Message:
    parts = [{"type": "video_url", "video_url": {"url": url}}] if url else []
    return Message(role=role, content=[*parts, *({"type": "text", "text": t} for t in texts)])


def read(builder: PromptBuilder, prompt) -> str:
    ids = [t for s in prompt.segments for t, slot in zip(s.ids, s.slots, strict=True) if slot < 0]
    return builder.tokenizer.decode(ids)


def test_one_question_is_the_open_prompt(builder):
    expected = builder.open("what is it")
    assert build_prompt(builder, [say("user", "what is it", url="data:")]) == expected
    assert build_prompt(builder, [Message(role="user", content="what is it")]) == expected


def test_a_video_alone_is_the_caption_prompt(builder):
    assert build_prompt(builder, [say("user", url="data:")]) == builder.caption()
    assert build_prompt(builder, [say("user", "  ", url="data:")]) == builder.caption()


def test_earlier_turns_and_the_system_stand_before(builder):
    messages = [
        say("system", "Be brief."),
        say("user", "What is it?", url="data:"),
        say("assistant", "A cat."),
        say("user", "Of"),
        say("user", "which colour?"),
    ]
    prompt = build_prompt(builder, messages)
    assert read(builder, prompt) == (
        "Be brief.\nInstruction: Predict the answer based on the video and question.\nVideo:"
        "\nQuestion: What is it?\nAnswer: A cat.\nQuestion: Of\nwhich colour?\nAnswer:"
    )
    # Every segment continues the one before: this can be written on.
    assert [segment.parent for segment in prompt.segments] == [-1, 0, 1, 2]


@pytest.mark.parametrize(
    "messages",
    [
        [say("user", "a", url="data:"), say("assistant", "b")],
        [say("system", "a")],
        [say("user", "a", url="data:"), say("assistant", "b"), say("user", " ")],
        [say("system", "a"), say("user", url="data:")],
    ],
)
def test_what_has_no_question_is_refused(messages, builder):
    with pytest.raises(RequestError):
        build_prompt(builder, messages)


def test_there_is_one_video():
    once = [say("user", "a", url="data:1"), say("assistant", "b"), say("user", "c", url="data:1")]
    assert find_video(once) == "data:1"
    with pytest.raises(RequestError, match="no video"):
        find_video([say("user", "a")])
    with pytest.raises(RequestError, match="more than one"):
        find_video([*once, say("user", "d", url="data:2")])


def test_frames_are_said_in_three_places():
    body = {"messages": [{"role": "user", "content": "a"}]}
    assert ChatRequest(**body, mm_processor_kwargs={"fps": 2}).sampled().fps == 2
    inner = {"video": {"num_frames": 3}}
    assert ChatRequest(**body, media_io_kwargs=inner, num_frames=5).sampled().num_frames == 5
    assert ChatRequest(**body, media_io_kwargs=inner).sampled().num_frames == 3


@pytest.mark.parametrize("domain", ["http://a.org", "a.org/x", "*", "*.*.org", "a b", "", "-a.org"])
def test_what_is_no_host_is_refused(domain):
    with pytest.raises(ValidationError, match="not a host"):
        ServeConfig(allow_domains=[domain])


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(ValidationError, match="not a folder"):
        ServeConfig(allow_paths=[str(tmp_path / "missing")])
