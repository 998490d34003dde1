"""2,000 requests, a tenth of them hostile: no crash, no leak, no wrong answer."""

from __future__ import annotations

import base64
import os
import random
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path

import av
import httpx2
import psutil
import pytest

REQUESTS = 2000
CLIENTS = 16
QUESTIONS = ("What can be seen?", "Where is it?", "Who is there?", "What happens first?")
OPTIONS = ["A cat sits", "A cup of coffee", "A red car"]


@pytest.fixture(scope="module")
def urls(video: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Four videos that differ: parts of the small one."""
    with av.open(str(video)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    folder, found = tmp_path_factory.mktemp("videos"), []
    for start in range(4):
        path = folder / f"{start}.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=2)
            stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
            for pixels in [*frames[start:], *frames[:start]]:
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                container.mux(stream.encode(frame.reformat(format="yuv420p")))
            container.mux(stream.encode())
        content = base64.b64encode(path.read_bytes()).decode()
        found.append(f"data:video/mp4;base64,{content}")
    return found


def ask(client: httpx2.Client, kind: str, url: str, question: str) -> object:
    """Send one good request; return what must be the same each time."""
    if kind == "chat":
        parts = [{"type": "video_url", "video_url": {"url": url}}]
        message = {"role": "user", "content": [*parts, {"type": "text", "text": question}]}
        body = {"messages": [message], "max_tokens": 6}
        response = client.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        return response.json()["choices"][0]["message"]["content"]
    questions = [{"question": question, "options": OPTIONS}]
    response = client.post("/v1/score", json={"video_url": {"url": url}, "questions": questions})
    assert response.status_code == 200, response.text
    return response.json()["data"][0]["probabilities"]


def attack(client: httpx2.Client, number: int) -> None:
    """Send one hostile request, which is refused in words."""
    noise = base64.b64encode(random.Random(number).randbytes(2000)).decode()
    tries = [
        {"url": "file:///etc/passwd"},
        {"url": "http://169.254.169.254/latest/meta-data"},
        {"url": "data:video/mp4;base64,####"},
        {"url": f"data:video/mp4;base64,{noise}"},
        {"url": f"data:video/jpeg;base64,{noise}"},
        {"url": 1},
        "[" * 2000,
    ]
    body = {"video_url": tries[number % len(tries)]}
    response = client.post("/v1/explain", json=body)
    assert 400 <= response.status_code < 500, response.text
    assert response.json()["error"]["message"]


def memory() -> float:
    """Return the MiB that this process and its decoders hold for themselves."""
    processes = [psutil.Process(os.getpid())]
    processes += processes[0].children(recursive=True)
    return sum(process.memory_full_info().uss for process in processes) / 2**20


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_two_thousand_requests_a_tenth_of_them_hostile(address, urls):
    good = [(kind, url, q) for kind in ("chat", "score") for url in urls for q in QUESTIONS]
    with httpx2.Client(base_url=address, timeout=120) as client:
        expected = {item: ask(client, *item) for item in good}
        assert len({str(value) for value in expected.values()}) > len(urls)

        def send(job: tuple[int, tuple[str, str, str]]) -> None:
            number, item = job
            if number % 10 == 9:
                attack(client, number)
                return
            found = ask(client, *item)
            if item[0] == "chat":
                assert found == expected[item]
            else:
                assert found == pytest.approx(expected[item], abs=1e-4)

        jobs = list(zip(range(REQUESTS), cycle(good), strict=False))
        sizes = []
        with ThreadPoolExecutor(CLIENTS) as clients:
            for start in range(0, REQUESTS, REQUESTS // 4):
                list(clients.map(send, jobs[start : start + REQUESTS // 4]))
                sizes.append(memory())
        assert client.get("/health").status_code == 200
    print(f"MiB after each quarter: {[round(size) for size in sizes]}")
    # The first quarter fills caches; from then on nothing grows by more than noise.
    assert sizes[-1] - sizes[0] < 60
