"""The HTTP interface, asked by the official `openai` client and by plain requests."""

from __future__ import annotations

import base64
import io
import json
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from PIL import Image

openai = pytest.importorskip("openai", reason="needs the extra dev")

OPTIONS = ["A cat sits", "A cup of coffee", "A red car"]


@pytest.fixture(scope="module")
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


def about(url, text="What can be seen?"):
    parts = [{"type": "video_url", "video_url": {"url": url}}]
    return [
        {"role": "user", "content": [*parts, *([{"type": "text", "text": text}] if text else [])]}
    ]


def post(address, route, **body):
    return httpx2.post(f"{address}/v1/{route}", json=body, timeout=60)


def test_the_model_is_listed(client, topa):
    [model] = client.models.list().data
    assert model.id == "tiny"
    assert model.details["num_frames"] == topa.model.config.num_frames
    assert client.models.retrieve("tiny") == model
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt'"):
        client.models.retrieve("gpt")


def test_a_question_is_answered_as_in_python(client, topa, video, url):
    found = client.chat.completions.create(model="tiny", messages=about(url), max_tokens=9)
    [choice] = found.choices
    assert choice.message.content == topa.ask(video, "What can be seen?", max_new_tokens=9).text
    assert choice.finish_reason == "length"
    # A slot that holds no frame is no token that anybody reads.
    frames, slots = len(topa.watch(video).images), topa.model.config.num_frames
    assert found.usage.completion_tokens == 9
    read = len(topa.builder.open("What can be seen?"))
    assert found.usage.prompt_tokens == read - (slots - frames)
    assert found.usage.total_tokens == found.usage.prompt_tokens + 9


def test_a_video_without_words_is_described(client, topa, video, url):
    found = client.chat.completions.create(model="tiny", messages=about(url, ""), max_tokens=9)
    assert found.choices[0].message.content == topa.describe(video, max_new_tokens=9)


def test_a_stream_makes_the_same_answer(client, url):
    asked = {"model": "tiny", "messages": about(url), "max_tokens": 9, "n": 2}
    whole = client.chat.completions.create(**asked)
    texts, reasons, usage = ["", ""], [None, None], None
    options = {"include_usage": True}
    for chunk in client.chat.completions.create(**asked, stream=True, stream_options=options):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == ["length", "length"]
    assert usage == whole.usage


def test_draws_differ_by_seed_and_are_the_same_again(client, url):
    asked = {"model": "tiny", "messages": about(url), "max_tokens": 8, "temperature": 1.5, "n": 3}
    first, again, other = (
        [c.message.content for c in client.chat.completions.create(**asked, seed=seed).choices]
        for seed in (5, 5, 6)
    )
    assert first == again != other
    assert len(set(first)) > 1


def test_a_stop_ends_the_answer(client, url):
    asked = {"model": "tiny", "messages": about(url), "max_tokens": 12}
    text = client.chat.completions.create(**asked).choices[0].message.content
    stop = text[len(text) // 2 :][:4]
    [choice] = client.chat.completions.create(**asked, stop=[stop]).choices
    assert choice.message.content == text[: text.index(stop)].rstrip()
    assert choice.finish_reason == "stop"


def test_probabilities_of_tokens_are_told(client, url):
    asked = {"model": "tiny", "messages": about(url), "max_tokens": 5}
    found = client.chat.completions.create(**asked, logprobs=True, top_logprobs=3)
    tokens = found.choices[0].logprobs.content
    assert len(tokens) == 5
    assert "".join(token.token for token in tokens).strip() == found.choices[0].message.content
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.logprob <= token.top_logprobs[0].logprob <= 0


def test_a_conversation_goes_on(client, url):
    messages = [
        {"role": "system", "content": "Be brief."},
        *about(url),
        {"role": "assistant", "content": "A cup."},
        {"role": "user", "content": "Of what?"},
    ]
    found = client.chat.completions.create(model="tiny", messages=messages, max_tokens=4)
    alone = client.chat.completions.create(model="tiny", messages=about(url), max_tokens=4)
    assert found.usage.prompt_tokens > alone.usage.prompt_tokens


@pytest.mark.parametrize("given_back", [lambda m: m, lambda m: m.model_dump()])
def test_an_answer_can_be_given_back_as_an_earlier_turn(given_back, client, url):
    """As clients do it: the message of the response is appended to the conversation."""
    asked = {"model": "tiny", "max_tokens": 4}
    first = client.chat.completions.create(**asked, messages=about(url)).choices[0].message
    messages = [*about(url), given_back(first), {"role": "user", "content": "Of what?"}]
    plain = [*messages[:1], {"role": "assistant", "content": first.content}, messages[-1]]
    found = client.chat.completions.create(**asked, messages=messages)
    expected = client.chat.completions.create(**asked, messages=plain)
    assert found.choices == expected.choices
    assert found.usage == expected.usage


def test_null_says_nothing(client, url):
    names = ("n", "stream", "stop", "logprobs", "max_tokens", "temperature", "response_format")
    plain = client.chat.completions.create(model="tiny", messages=about(url))
    found = client.chat.completions.create(
        model="tiny", messages=about(url), extra_body=dict.fromkeys(names)
    )
    assert found.choices == plain.choices


@pytest.mark.parametrize(
    "extra",
    [
        {"num_frames": 1},
        {"media_io_kwargs": {"video": {"num_frames": 1}}},
        {"mm_processor_kwargs": {"num_frames": 1}},
        {"fps": 0.5},
        {"media_io_kwargs": {"video": {"fps": 0.5}}},
    ],
)
def test_frames_are_sampled_as_asked(extra, client, topa, video, url):
    """The video is two seconds long: half a frame a second is one frame."""
    asked = {"model": "tiny", "messages": about(url), "max_tokens": 9}
    found = client.chat.completions.create(**asked, extra_body=extra)
    expected = topa.ask(video, "What can be seen?", num_frames=1, max_new_tokens=9).text
    assert found.choices[0].message.content == expected


@pytest.mark.parametrize("extra", [{"use_memory": False}, {"blind": True}])
def test_memory_and_video_can_be_left_out(extra, client, topa, video, url):
    found = client.chat.completions.create(
        model="tiny", messages=about(url), max_tokens=9, extra_body=extra
    )
    expected = topa.ask(video, "What can be seen?", max_new_tokens=9, **extra).text
    assert found.choices[0].message.content == expected


def test_a_list_of_frames_is_a_video(client, topa, video):
    clip = topa.watch(video)
    frames = []
    for image in clip.images:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=95)
        frames.append(buffer.getvalue())
    images = [Image.open(io.BytesIO(frame)).convert("RGB") for frame in frames]
    features = topa.encoder.encode_frames(images)
    url = "data:video/jpeg;base64," + ",".join(base64.b64encode(f).decode() for f in frames)
    part = {"type": "video_url", "video_url": {"url": url}}
    found = client.embeddings.create(model="tiny", input=[part])
    assert len(found.data) == len(frames)
    for row, expected in zip(found.data, features.tolist(), strict=True):
        assert row.embedding == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("method", ["likelihood", "selection", "similarity", "combined"])
def test_options_are_scored_as_in_python(method, address, topa, video, url):
    asked = [{"question": "What can be seen?", "options": OPTIONS}]
    asked.append({"question": "Where is it?", "options": OPTIONS[:2]})
    body = {"video_url": {"url": url}, "questions": asked, "method": method}
    found = post(address, "score", **body).json()
    for row, question in zip(found["data"], asked, strict=True):
        expected = topa.ask(video, question["question"], question["options"], method=method)
        assert row["probabilities"] == pytest.approx(expected.probabilities, abs=1e-4)
        assert (row["answer"], row["option"]) == (expected.text, expected.option)


def test_frames_are_explained_as_in_python(address, topa, video, url):
    found = post(address, "explain", video_url={"url": url}, k=2).json()
    expected = topa.explain(video, k=2)
    assert found["duration"] == pytest.approx(2.0)
    for row, frame in zip(found["data"], expected, strict=True):
        assert (row["time"], row["captions"]) == (frame.time, frame.captions)
        assert row["weights"] == pytest.approx(frame.weights, abs=1e-5)
        head, _, body = row["image_url"].partition(",")
        assert head == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(base64.b64decode(body))).size == (160, 120)


def test_long_work_is_done_in_shares(address, url, topa, monkeypatch):
    """So that one request of many long texts keeps nobody waiting until all are computed."""
    counts, encode = [], topa.encoder.encode_text

    def count(texts):
        counts.append(len(texts))
        return encode(texts)

    monkeypatch.setattr(topa.encoder, "encode_text", count)
    texts = [f"text {k}" for k in range(20)]
    found = post(address, "embeddings", input=texts).json()["data"]
    rows = encode(texts).tolist()
    assert [row["embedding"] for row in found] == [pytest.approx(r, abs=1e-6) for r in rows]
    assert counts == [8, 8, 4]
    asked = [{"question": f"What is {k}?", "options": OPTIONS} for k in range(10)]
    body = {"video_url": {"url": url}, "questions": asked}
    found = post(address, "score", **body).json()["data"]
    alone = post(address, "score", **{**body, "questions": asked[9:]}).json()["data"]
    assert [row["question"] for row in found] == [item["question"] for item in asked]
    assert found[9]["probabilities"] == pytest.approx(alone[0]["probabilities"], abs=1e-4)


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_texts_have_features(encoding, client, topa):
    found = client.embeddings.create(
        model="tiny", input=["a cat", "a dog"], encoding_format=encoding
    )
    rows = [row.embedding for row in found.data]
    if encoding == "base64":
        import numpy as np

        rows = [np.frombuffer(base64.b64decode(row), "<f4").tolist() for row in rows]
    expected = topa.encoder.encode_text(["a cat", "a dog"]).tolist()
    assert rows == [pytest.approx(row, abs=1e-6) for row in expected]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"messages": [{"role": "user", "content": "Hello?"}]}, "there is no video"),
        ({"tools": []}, "tools: Extra inputs are not permitted"),
        ({"presence_penalty": 1}, "presence_penalty: Input should be 0"),
        ({"num_frames": 11}, "11 frames asked for"),
        ({"n": 9}, "9 answers asked for, at most 8"),
        ({"max_tokens": 513}, "at most 512 tokens"),
        ({"temperature": 3}, "temperature: Input should be less than or equal to 2"),
        ({"stream_options": {"include_usage": True}}, "there is no stream"),
        ({"top_logprobs": 2}, "top_logprobs: it needs logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format.type: Input should be 't"),
        ({"stop": ""}, "stop: String should have at least 1 character"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages.0.content.0: Input tag 'image_url'",
        ),
    ],
)
def test_what_cannot_be_done_is_said(change, says, client, url):
    asked = {"model": "tiny", "messages": about(url)}
    if "messages" in change:
        asked["messages"] = change.pop("messages")
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**asked, extra_body=change)
    assert caught.value.status_code in (400, 413)
    assert says in caught.value.body["message"]


def test_what_is_no_json_or_at_no_route_is_said(address):
    found = httpx2.post(f"{address}/v1/score", content=b"{}")
    assert "Content-Type: application/json" in found.json()["error"]["message"]
    found = httpx2.get(f"{address}/v1/responses")
    assert (found.status_code, "/openapi.json" in found.text) == (404, True)


def test_another_model_is_not_found(client, url):
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-4'"):
        client.chat.completions.create(model="gpt-4", messages=about(url))


def test_questions_of_many_clients_are_answered_together_and_alike(address, client, url):
    questions = [f"What is number {k}?" for k in range(12)]

    def ask(question):
        found = client.chat.completions.create(
            model="tiny", messages=about(url, question), max_tokens=12
        )
        body = {
            "video_url": {"url": url},
            "questions": [{"question": question, "options": OPTIONS}],
        }
        return found.choices[0].message.content, post(address, "score", **body).json()["data"]

    alone = [ask(question) for question in questions]
    before = httpx2.get(f"{address}/metrics").text
    with ThreadPoolExecutor(12) as clients:
        together = list(clients.map(ask, questions))
    for (text, [row]), (expected, [expected_row]) in zip(together, alone, strict=True):
        assert text == expected
        assert row["probabilities"] == pytest.approx(expected_row["probabilities"], abs=1e-4)
    steps = [
        read_metric(text, 'topa_batch_rows_count{work="write"}')
        for text in (before, httpx2.get(f"{address}/metrics").text)
    ]
    assert steps[1] - steps[0] < 11 * 12 / 2  # 11 tokens after the first, far fewer passes


def read_metric(text: str, name: str) -> float:
    """Return a counter, 0 where nothing has been counted yet."""
    lines = (line.rpartition(" ") for line in text.splitlines())
    return next((float(value) for key, _, value in lines if key == name), 0.0)


def test_a_video_is_decoded_once(address, url):
    texts = [httpx2.get(f"{address}/metrics").text]
    for _ in range(2):
        assert post(address, "explain", video_url={"url": url}, num_frames=3).status_code == 200
        texts.append(httpx2.get(f"{address}/metrics").text)
    cached = [read_metric(text, 'topa_videos_total{features="cached"}') for text in texts[1:]]
    made = [read_metric(text, 'topa_videos_total{features="made"}') for text in texts]
    assert cached[1] - cached[0] == 1
    assert made[1] - made[0] == 1
    assert made[2] == made[1]


def test_health_and_the_document_are_open(address):
    assert httpx2.get(f"{address}/health").json() == {"status": "ok"}
    assert "/v1/chat/completions" in httpx2.get(f"{address}/openapi.json").json()["paths"]


def test_a_key_is_needed_where_there_are_keys(serving):
    key = "a-key-of-twenty-four-letters"
    with serving(keys=("another-key-of-some-length", key)) as address:
        assert httpx2.get(f"{address}/health").status_code == 200
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": key},
            {"Authorization": f"Basic {key}"},
            {"Authorization": "Bearer \xff"},
        ):
            raw = {k: v.encode("latin-1") for k, v in headers.items()}
            assert httpx2.get(f"{address}/v1/models", headers=raw).status_code == 401
        accepted = {"Authorization": f"Bearer {key}"}
        assert httpx2.get(f"{address}/v1/models", headers=accepted).status_code == 200


def test_too_many_requests_are_told_429(serving, url):
    with serving(max_requests=1) as address, ThreadPoolExecutor(6) as clients:
        body = {"messages": about(url), "max_tokens": 200}
        found = list(clients.map(lambda _: post(address, "chat/completions", **body), range(6)))
        assert {response.status_code for response in found} == {200, 429}
        refused = next(response for response in found if response.status_code == 429)
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert post(address, "chat/completions", **body).status_code == 200


def test_a_request_that_takes_too_long_is_given_up(serving, url):
    with serving(request_seconds=0.001) as address:
        response = post(address, "explain", video_url={"url": url})
        assert response.status_code == 504
        assert "longer than 0.001 s" in response.json()["error"]["message"]


def test_an_answer_nobody_waits_for_is_not_written(serving, url):
    with serving() as address:
        body = {"messages": about(url), "max_tokens": 512, "stream": True, "temperature": 1}
        route = f"{address}/v1/chat/completions"
        with httpx2.stream("POST", route, json=body, timeout=60) as response:
            # The first words: it is being written now.
            next(line for line in response.iter_lines() if '"delta": {"content"' in line)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if read_metric(httpx2.get(f"{address}/metrics").text, "topa_requests_running") == 0:
                break
            time.sleep(0.05)
        first = httpx2.get(f"{address}/metrics").text
        time.sleep(0.5)
        name = 'topa_batch_rows_count{work="write"}'
        steps = [read_metric(t, name) for t in (first, httpx2.get(f"{address}/metrics").text)]
        assert steps[1] - steps[0] <= 1


SERVER = """
import sys
from functools import partial
from topa.answer import Topa
from topa.serve.run import run_server
from topa.serve.settings import ApiKeys, ServeConfig
load = partial(Topa.from_pretrained, sys.argv[1], device="cpu")
place = {"name": "tiny", "host": "127.0.0.1", "port": int(sys.argv[2])}
run_server(load, ServeConfig(), ApiKeys(), **place, say=print)
"""


@pytest.mark.slow
def test_a_server_that_is_stopped_finishes_what_it_began(checkpoint, url):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(checkpoint), str(port)], stderr=subprocess.PIPE
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None
            try:
                httpx2.get(f"{address}/health")
                break
            except httpx2.TransportError:
                time.sleep(0.1)
        body = {"messages": about(url), "max_tokens": 300, "stream": True}
        pieces = []
        with httpx2.stream("POST", f"{address}/v1/chat/completions", json=body, timeout=60) as got:
            lines = got.iter_lines()
            pieces.append(next(lines))
            process.send_signal(signal.SIGTERM)
            pieces += [line for line in lines if line]
        assert pieces[-1] == "data: [DONE]"
        assert json.loads(pieces[-2][6:])["choices"][0]["finish_reason"] is not None
        assert process.wait(30) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()
