"""Hostile requests: each is refused in words, and the server goes on."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import http.server
import io
import os
import socket
import struct
import threading
import zlib
from unittest import mock

import av
import httpx2
import numpy as np
import pytest
from PIL import Image

from topa.errors import ConfigError, ForbiddenError, VideoError
from topa.serve.fetching import Fetcher, is_allowed, is_public
from topa.serve.frame_worker import answer
from topa.serve.settings import ApiKeys, ServeConfig
from topa.serve.sources import Sources


def explain(address: str, url: str, **extra) -> httpx2.Response:
    body = {"video_url": {"url": url}, "pictures": False, **extra}
    return httpx2.post(f"{address}/v1/explain", json=body, timeout=60)


def refused(response: httpx2.Response, status: int, says: str) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert says in error["message"]
    assert "Traceback" not in response.text


# Addresses -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.9.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254",
        "100.64.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1",
        "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1",
        "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "2002:7f00:1::",
        "2002:a9fe:a9fe::1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2001:db8::1",
        "2001:0:7f00:1::",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:1.1.1.1"]
)
def test_addresses_that_are_public(address):
    assert is_public(address)


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("example.org", True), ("EXAMPLE.org.", True), ("evil-example.org", False),
        ("example.org.evil.net", False), ("sub.example.org", False), ("a.wild.net", True),
        ("a.b.wild.net", True), ("wild.net", False), ("evilwild.net", False), ("", False),
    ],
)  # fmt: skip
def test_hosts_that_are_allowed(host, allowed):
    assert is_allowed(host, ["example.org", "*.wild.net"]) == allowed


@pytest.mark.parametrize(
    "url",
    [
        "http://evil.net/a.mp4",
        "http://example.org@evil.net/a.mp4",
        "http://example.org:pw@example.org/a.mp4",
        "http://example.org\\@evil.net/a.mp4",
        "http://evil.net#example.org",
        "http://evil.net?example.org",
        "http://example.org:22/",
        "http://example.org:99999/",
        "http://[::1]/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://127.0.0.1/",
        "http://ex\u00e4mple.org/",
        "http://example.org/\r\nHost: evil.net",
        "http:///example.org",
        "https:example.org",
    ],
)
def test_addresses_are_refused_before_anything_is_looked_up(url, serving, monkeypatch):
    fetcher = Fetcher(ServeConfig(allow_domains=["example.org"]))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: pytest.fail("looked up"))
    from topa.errors import RequestError

    with pytest.raises(RequestError):
        fetcher.check(url)


class _Site(http.server.BaseHTTPRequestHandler):
    """A host that sends a video, or misbehaves as the path says."""

    video = b""

    def do_GET(self):
        if self.path == "/ok":
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.video)))
            self.end_headers()
            self.wfile.write(self.video)
        elif self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "http://169.254.169.254/latest/meta-data")
            self.end_headers()
        elif self.path == "/liar":  # says nothing of its size, and never stops
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b"\0" * 65536)
            except OSError:
                return
        elif self.path == "/large":
            self.send_response(200)
            self.send_header("Content-Length", str(10**12))
            self.end_headers()
        elif self.path == "/slow":
            self.send_response(200)
            self.end_headers()
            self.wfile.flush()
            threading.Event().wait(20)
        else:
            self.send_error(404)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def site(video):
    handler = type("Site", (_Site,), {"video": video.read_bytes()})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()


@pytest.fixture(scope="module")
def fetching(serving, site):
    """A server that may fetch from this machine, which only a test allows."""
    settings = {"allow_domains": ["localhost"], "fetch_seconds": 4.0, "max_video_bytes": 2**20}
    fetcher = Fetcher(ServeConfig(**settings), accept=lambda _: True, ports=[site])
    with serving(fetcher=fetcher, **settings) as address:
        yield address


def test_a_video_of_an_allowed_host_is_fetched(fetching, site, url):
    fetched = explain(fetching, f"http://localhost:{site}/ok")
    assert fetched.json() == explain(fetching, url).json()
    assert len(fetched.json()["data"]) == 4


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("redirect", 403, "redirects"),
        ("liar", 413, "larger than"),
        ("large", 413, "larger than"),
        ("slow", 504, "longer than 4 s"),
        ("missing", 400, "answers 404"),
    ],
)
def test_hosts_that_misbehave(path, status, says, fetching, site):
    refused(explain(fetching, f"http://localhost:{site}/{path}"), status, says)


def test_an_allowed_name_with_a_private_address_is_refused(serving):
    """`localhost` is allowed by name here; its address is this machine's all the same."""
    with serving(allow_domains=["localhost"]) as address:
        refused(explain(address, "http://localhost/a.mp4"), 403, "not public")


def test_the_address_that_was_checked_is_the_one_connected_to(site, monkeypatch):
    """A name that resolves to a public address first and to this machine then (DNS rebinding)."""
    answers = [["93.184.216.34"], ["127.0.0.1"]]
    asked = []

    async def resolve(self, host, port, **kwargs):
        asked.append(host)
        return [(2, 1, 6, "", (address, port)) for address in answers[len(asked) - 1]]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", resolve)
    connected = []

    async def connect(self, host, port, *args, **kwargs):
        connected.append(host)
        raise httpcore2.ConnectError("stop here")

    import httpcore2

    monkeypatch.setattr(httpcore2.AnyIOBackend, "connect_tcp", connect)
    fetcher = Fetcher(ServeConfig(allow_domains=["example.org"]))
    from topa.errors import RequestError

    with pytest.raises(RequestError, match="cannot be fetched"):
        asyncio.run(fetcher.fetch("http://example.org/a.mp4"))
    assert (asked, connected) == (["example.org"], ["93.184.216.34"])


@pytest.mark.parametrize("mixed", [["93.184.216.34", "127.0.0.1"], ["::1", "93.184.216.34"]])
def test_one_private_address_among_public_ones_is_enough(mixed, monkeypatch):
    async def resolve(self, host, port, **kwargs):
        return [(2, 1, 6, "", (address, port)) for address in mixed]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", resolve)
    fetcher = Fetcher(ServeConfig(allow_domains=["example.org"]))
    with pytest.raises(ForbiddenError, match="not public"):
        asyncio.run(fetcher.fetch("http://example.org/a.mp4"))


@pytest.mark.parametrize(
    "url", ["http://example.org/a.mp4", "http://[::1/a", "file:///etc/passwd", "file://[::1/a"]
)
def test_nothing_remote_or_local_is_read_at_first(url, address):
    refused(explain(address, url), 403, "this server")


# Files -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def library(tmp_path_factory, video):
    """A folder of videos with traps in it, and a secret beside it."""
    base = tmp_path_factory.mktemp("library").resolve()
    inside = base / "videos"
    (inside / "deep").mkdir(parents=True)
    for path in (inside / "a b.mp4", inside / "deep" / "c.mp4", base / "secret.mp4"):
        path.write_bytes(video.read_bytes())
    (base / "videos-private").mkdir()
    (base / "videos-private" / "d.mp4").write_bytes(video.read_bytes())
    (inside / "link.mp4").symlink_to(base / "secret.mp4")
    (inside / "inner-link.mp4").symlink_to(inside / "a b.mp4")
    (inside / "door").symlink_to(base)
    (inside / "large.mp4").write_bytes(bytes(2**20 + 1))
    os.mkfifo(inside / "pipe.mp4")
    return inside


@pytest.fixture(scope="module")
def reading(serving, library):
    with serving(allow_paths=[str(library)], max_video_bytes=2**20) as address:
        yield address


@pytest.mark.parametrize("name", ["a%20b.mp4", "a%20b.mp4/", "deep/c.mp4", "./deep//c.mp4"])
def test_files_of_an_allowed_folder_are_read(name, reading, library):
    response = explain(reading, f"file://{library}/{name}")
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("../secret.mp4", 403), ("%2e%2e/secret.mp4", 403), ("deep/../../secret.mp4", 403),
        ("..%2fsecret.mp4", 403), ("link.mp4", 403), ("inner-link.mp4", 403),
        ("door/secret.mp4", 403), ("missing.mp4", 403), ("deep", 403), ("", 403), ("/", 403),
        ("pipe.mp4", 403), ("a%20b.mp4%00.txt", 403), ("large.mp4", 413),
        ("a%20b.mp4?x=1", 400), ("%252e%252e/secret.mp4", 403), (".%2e/secret.mp4", 403),
        ("..\\secret.mp4", 403), ("%c0%ae%c0%ae/secret.mp4", 403), ("a%20b.mp4%0a", 403),
        ("a" * 5000, 403), ("a/" * 3000, 403), ("%ff%fe.mp4", 403),
    ],
)  # fmt: skip
def test_paths_out_of_the_folder_are_refused(name, status, reading, library):
    response = explain(reading, f"file://{library}/{name}")
    assert response.status_code == status, response.text
    assert "secret" not in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "file:///dev/zero",
        "file:///proc/self/environ",
        "file://host/a",
        "file://127.0.0.1/etc/passwd",
        "file://[::1/a",
        "file:a",
        "file:",
    ],
)
def test_other_files_are_refused(url, reading):
    assert explain(reading, url).status_code in (400, 403)


def test_a_file_that_is_swapped_for_a_link_is_never_followed(tmp_path, video):
    """While it is being asked for, a file becomes a link to another one, and back."""
    folder, secret = tmp_path.resolve() / "videos", tmp_path.resolve() / "secret.mp4"
    folder.mkdir()
    secret.write_bytes(b"secret")
    sources = Sources(ServeConfig(allow_paths=[str(folder)]), tmp_path)
    ended = threading.Event()

    def swap():
        while not ended.is_set():
            for make in (lambda p: p.symlink_to(secret), lambda p: p.hardlink_to(video)):
                make(folder / "new")
                os.replace(folder / "new", folder / "a.mp4")
                # Both for as long, so that both are met.
                ended.wait(0.0005)

    swapping = threading.Thread(target=swap)
    swapping.start()
    outcomes = set()
    try:
        for _ in range(300):
            try:
                material = asyncio.run(sources.take(f"file://{folder}/a.mp4"))
                outcomes.add(material.path.read_bytes() == video.read_bytes())
                material.path.unlink()
            except ForbiddenError:
                outcomes.add("refused")
    finally:
        ended.set()
        swapping.join()
    assert outcomes == {True, "refused"}


def test_a_folder_whose_name_begins_alike_is_another(reading, library):
    path = library.parent / "videos-private" / "d.mp4"
    refused(explain(reading, f"file://{path}"), 403, "outside of the allowed folders")


# Content ---------------------------------------------------------------------------------


def data(content: bytes, kind: str = "video/mp4") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def huge_png(side: int) -> bytes:
    """A picture of a few hundred bytes that says it is enormous."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checked = kind + body
        return struct.pack(">I", len(body)) + checked + struct.pack(">I", zlib.crc32(checked))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b"")


def jpeg(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "JPEG")
    return buffer.getvalue()


PLAYLIST = b"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
CONCAT = b"ffconcat version 1.0\nfile '/etc/passwd'\n"


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("data:video/mp4;base64,", 400),
        ("data:video/mp4;base64,####", 400),
        ("data:video/mp4,plain", 400),
        ("data:image/png;base64,AAAA", 400),
        ("data:,", 400),
        ("data:video/jpeg;base64,", 400),
        ("data:video/jpeg;base64,AAAA,", 400),
        ("data:video/jpeg;base64," + ",".join(["AAAA"] * 200), 413),
        ("javascript:alert(1)", 400),
        ("gopher://127.0.0.1:70/", 400),
        ("\0", 400),
        (data(b"this is no video" * 50), 400),
        (data(b"\0" * 5000), 400),
        (data(os.urandom(5000)), 400),
        (data(PLAYLIST), 400),
        (data(PLAYLIST, "video/x-mpegurl"), 400),
        (data(CONCAT), 400),
        (data(huge_png(30_000)), 400),
        (data(jpeg(8, 8), "video/jpeg") + "," + base64.b64encode(huge_png(9)).decode(), 400),
        (data(jpeg(2000, 2000), "video/jpeg"), 400),
    ],
    ids=range(20),
)
def test_hostile_content(url, status, serving_small):
    response = explain(serving_small, url)
    assert response.status_code == status, response.text
    assert "/topa-" not in response.text  # where the server keeps it is its own business


@pytest.fixture(scope="module")
def serving_small(serving):
    with serving(max_pixels=2**20, max_video_bytes=2**20, max_seconds=3.0) as address:
        yield address


@pytest.fixture(scope="module")
def only_sound() -> bytes:
    """An MP4 file without a picture in it."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        for _ in range(8):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), "f4"), "fltp", "mono")
            frame.sample_rate = 8000
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def test_a_file_without_a_picture_is_refused(only_sound, serving_small):
    refused(explain(serving_small, data(only_sound)), 400, "no video stream in the file")


def test_frames_of_any_shape_are_frames(serving_small):
    """One pixel, one line of them, grey, CMYK, and sizes that differ: odd, but pictures."""
    grey, cmyk = io.BytesIO(), io.BytesIO()
    Image.new("L", (9, 7)).save(grey, "JPEG")
    Image.new("CMYK", (5, 8)).save(cmyk, "JPEG")
    frames = [jpeg(1, 1), jpeg(20_000, 1), jpeg(1, 20_000), grey.getvalue(), cmyk.getvalue()]
    texts = [base64.b64encode(frame).decode() for frame in frames]
    response = explain(serving_small, f"data:video/jpeg;base64,{','.join(texts)}")
    assert response.status_code == 200, response.text
    assert len(response.json()["data"]) == len(frames)


def test_a_picture_that_lies_about_its_size_is_refused(serving_small):
    honest = struct.pack(">HH", 8, 8)
    lying = jpeg(8, 8).replace(honest, struct.pack(">HH", 65_500, 65_500), 1)
    refused(explain(serving_small, data(lying, "video/jpeg")), 400, "more than 1048576 pixels")


@pytest.mark.slow
def test_a_picture_of_thousands_of_scans_costs_its_decoder_alone(serving, url):
    """Progressive JPEG: a scan of a few hundred bytes goes over all pixels again."""
    buffer = io.BytesIO()
    Image.new("RGB", (2800, 2800)).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    last = content[content.rindex(b"\xff\xda") : -2]
    bomb = content[:-2] + last * 6000 + b"\xff\xd9"
    with serving(decode_seconds=1.0) as address:
        refused(explain(address, data(bomb, "video/jpeg")), 504, "longer than 1 s")
        assert explain(address, url).status_code == 200


def test_a_video_that_is_cut_off_is_refused(serving_small, video):
    content = video.read_bytes()
    assert explain(serving_small, data(content[: len(content) // 2])).status_code == 400


def test_advice_is_what_a_client_can_do():
    """The library's other advice, to read less of the file, is no use to a client."""
    error = VideoError("cut off", mend="Use a whole copy of the file, or pass an end before.")
    with mock.patch("topa.serve.frame_worker.read_frames", side_effect=error):
        head, images = answer({})
    assert (head, images) == ({"error": "cut off. Use a whole copy of the file"}, [])


def test_a_video_that_is_too_long_is_refused(serving, url):
    with serving(max_seconds=1.0) as address:
        refused(explain(address, url), 400, "2 s long, more than 1 s")


def test_a_video_with_too_many_pixels_is_refused(serving, url):
    with serving(max_pixels=160 * 120 - 1) as address:
        refused(explain(address, url), 400, "160x120")


def test_a_video_that_is_too_large_is_refused(serving, url):
    with serving(max_video_bytes=1000) as address:
        refused(explain(address, url), 413, "larger than 1000 bytes")


# Requests --------------------------------------------------------------------------------


def test_a_request_that_is_too_large_is_refused(serving):
    with serving(max_body_bytes=10_000) as address:
        refused(explain(address, "data:" + "x" * 20_000), 413, "at most 10000 bytes")
        parts = (b"x" * 1000 for _ in range(100))  # sent in chunks, without a length
        headers = {"Content-Type": "application/json"}
        response = httpx2.post(f"{address}/v1/score", content=parts, headers=headers)
        refused(response, 413, "at most 10000 bytes")


@pytest.mark.parametrize(
    "content",
    [
        b"", b"null", b"[]", b"{", b'{"video_url": 1}', b"\xff\xfe", b'"' + b"a" * 5000 + b'"',
        b"[" * 100_000, b'{"video_url": {"url": "\\ud800"}}', b'{"k": NaN}', b'{"k": 1e999}',
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused(content, address):
    headers = {"Content-Type": "application/json"}
    response = httpx2.post(f"{address}/v1/explain", content=content, headers=headers)
    assert response.status_code == 400
    assert "error" in response.json()


@pytest.mark.parametrize("packed", [b"{}", bytes(10**7)])
def test_a_compressed_request_is_not_unpacked(packed, address):
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    content = gzip.compress(packed)
    response = httpx2.post(f"{address}/v1/explain", content=content, headers=headers)
    assert response.status_code == 400


def test_numbers_and_lists_beyond_all_measure_are_refused(address, url):
    def score(**change):
        asked = {"question": "What?", "options": ["a", "b"]}
        body = {"video_url": {"url": url}, "questions": [asked | change]}
        return httpx2.post(f"{address}/v1/score", json=body, timeout=60)

    refused(explain(address, url, num_frames=10**300), 400, "num_frames: Input should be less")
    refused(score(options=["x"] * 10_000), 400, "at most 26 items")
    refused(score(question="a " * 100_000), 400, "at most 8000 characters")
    refused(score(options=[" ", "b"]), 400, "option 1 is empty")
    refused(score(question="\n"), 400, "the question is empty")


def test_a_request_that_trickles_in_is_given_up(serving, monkeypatch):
    """A byte now and then would otherwise keep a place for as long as a request may take."""
    monkeypatch.setattr("topa.serve.gate._BODY_SECONDS", 0.5)
    with serving(max_requests=1) as address:
        port = int(address.rsplit(":", 1)[1])
        head = b"POST /v1/explain HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port), timeout=10) as slow:
            slow.sendall(head)
            for _ in range(15):
                slow.sendall(b" ")
                threading.Event().wait(0.1)
            assert slow.recv(4096).startswith(b"HTTP/1.1 408")
        assert httpx2.get(f"{address}/v1/models").status_code == 200


@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: -5\r\n", b"Content-Length: 1\r\nContent-Length: 2\r\n",
        b"Content-Length: 1" + b"0" * 30 + b"\r\n", b"X: " + b"a" * 200_000 + b"\r\n",
        b"X: a\r\n" * 20_000, b"no header\r\n", b"Content-Length: 99999999999\r\n",
    ],
    ids=range(7),
)  # fmt: skip
def test_headers_that_are_none_or_a_flood_are_refused(lines, address):
    port = int(address.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
        found = b""
        # A server that has refused a flood does not read the rest of it.
        with contextlib.suppress(ConnectionError):
            raw.sendall(b"POST /v1/explain HTTP/1.1\r\nHost: x\r\n" + lines + b"\r\n")
            found = raw.recv(4096)
    assert found[:12] in (b"", b"HTTP/1.1 400", b"HTTP/1.1 413")
    assert httpx2.get(f"{address}/health").status_code == 200


def test_long_prompts_are_refused(serving, url):
    with serving(max_prompt_tokens=200) as address:
        questions = [{"question": "what " * 300, "options": ["a", "b"]}]
        body = {"video_url": {"url": url}, "questions": questions}
        response = httpx2.post(f"{address}/v1/score", json=body, timeout=60)
        refused(response, 413, "at most 200 are taken")


def test_short_keys_are_refused():
    with pytest.raises(ConfigError, match="shorter than 16"):
        ApiKeys(["short"])


def test_an_open_connection_that_sends_nothing_holds_nobody_up(address):
    port = int(address.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port)) as silent:
        silent.sendall(b"POST /v1/explain HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
        assert httpx2.get(f"{address}/health").status_code == 200
