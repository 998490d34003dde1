"""Fetching a video from an allowed host, and from nowhere else.

The address that was checked is the address that is connected to, so a name that resolves
differently the second time gains nothing. Redirects are not followed, proxies of the
environment are not used.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Iterable, Sequence
from urllib.parse import urlsplit

import anyio
import httpcore2
from httpcore2 import AsyncNetworkBackend, AsyncNetworkStream

from topa.errors import ForbiddenError, RequestError, TimeLimitError, TooLargeError
from topa.serve.settings import ServeConfig

PORTS = {"http": 80, "https": 443}
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def is_public(text: str) -> bool:
    """Whether an IP address is one of the public internet.

    IPv6 addresses that carry an IPv4 address inside (mapped, 6to4, Teredo, NAT64) are as
    public as what they carry.
    """
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        carried: list[ipaddress.IPv4Address | None] = [address.ipv4_mapped, address.sixtofour]
        carried += address.teredo or []
        if address in _NAT64:
            carried.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        inside = [str(item) for item in carried if item is not None]
        if inside:
            return all(map(is_public, inside))
        if int(address) < 2**32:  # ::a.b.c.d, long out of use
            return False
    return address.is_global and not address.is_multicast


def is_allowed(host: str, domains: Iterable[str]) -> bool:
    """Whether a host is one of the allowed ones; `*.example.org` allows every host below it."""
    host = host.lower().rstrip(".")
    return any(
        host.endswith(domain[1:]) if domain.startswith("*.") else host == domain
        for domain in domains
    )


class _CheckedStreams(AsyncNetworkBackend):
    """Opens connections to checked addresses only."""

    def __init__(self, accept: Callable[[str], bool]):
        self._accept = accept
        self._plain = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[tuple[int, int, int]] | None = None,  # type: ignore[override]
    ) -> AsyncNetworkStream:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError:
            raise RequestError("the host cannot be found", where=host) from None
        addresses = [str(entry[4][0]) for entry in found]
        for address in addresses:
            if not self._accept(address):
                raise ForbiddenError("the host has an address that is not public", where=host)
        return await self._plain.connect_tcp(
            addresses[0], port, timeout, local_address, socket_options
        )

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


class Fetcher:
    """Fetches videos over HTTP under the limits of the settings.

    Args:
        config: The settings.
        accept: Whether an IP address may be connected to.
        ports: Ports that may be named.
    """

    def __init__(
        self,
        config: ServeConfig,
        accept: Callable[[str], bool] = is_public,
        ports: Sequence[int] = tuple(PORTS.values()),
    ):
        self._config, self._accept, self._ports = config, accept, ports

    def check(self, url: str) -> httpcore2.URL:
        """Return the parts of an address, or refuse it before anything is looked up.

        Raises:
            ForbiddenError: The host is not allowed, or user, password or port are given.
            RequestError: It is not an address.
        """
        if not self._config.allow_domains:
            raise ForbiddenError(
                "this server fetches no videos",
                where="video_url",
                mend="Send the video itself as data:video/mp4;base64,... or start the server"
                " with --allow-domain.",
            )
        if any(ord(letter) <= 32 or ord(letter) >= 127 for letter in url) or "\\" in url:
            raise RequestError("an address holds characters that it may not", where="video_url")
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            raise RequestError("not an address", where="video_url") from None
        if parts.scheme not in PORTS or not host:
            raise RequestError("not an http or https address", where="video_url")
        if parts.username is not None or parts.password is not None:
            raise ForbiddenError("an address may hold no user or password", where="video_url")
        if port is not None and port not in self._ports:
            raise ForbiddenError(f"port {port} is not allowed", where="video_url")
        if not is_allowed(host, self._config.allow_domains):
            raise ForbiddenError(
                f"the host {host[:80]!r} is not allowed",
                where="video_url",
                mend=f"Allowed: {', '.join(self._config.allow_domains)}.",
            )
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        # Taken apart once: no second reader of the address may see another host in it.
        return httpcore2.URL(scheme=parts.scheme, host=host, port=port, target=target)

    async def fetch(self, url: str) -> bytes:
        """Return the content at an address.

        Raises:
            ForbiddenError: The host, or an address of it, is not allowed; or it redirects.
            TooLargeError: There is more than `max_video_bytes` of it.
            TimeLimitError: It took longer than `fetch_seconds`.
            RequestError: The host does not answer, or not with the file.
        """
        checked = self.check(url)
        try:
            async with asyncio.timeout(self._config.fetch_seconds):
                return await self._read(checked)
        except (TimeoutError, httpcore2.TimeoutException):
            raise TimeLimitError(
                f"fetching took longer than {self._config.fetch_seconds:g} s", where="video_url"
            ) from None
        except (
            httpcore2.NetworkError,
            httpcore2.ProtocolError,
            httpcore2.UnsupportedProtocol,
        ) as error:
            raise RequestError(
                f"the video cannot be fetched ({type(error).__name__})", where="video_url"
            ) from None

    async def _read(self, url: httpcore2.URL) -> bytes:
        most = self._config.max_video_bytes
        headers = [("Accept", "video/*"), ("Accept-Encoding", "identity"), ("User-Agent", "topa")]
        backend = _CheckedStreams(self._accept)
        async with (
            httpcore2.AsyncConnectionPool(network_backend=backend) as pool,
            pool.stream("GET", url, headers=headers) as response,
        ):
            if 300 <= response.status < 400:
                raise ForbiddenError("the address redirects", where="video_url")
            if response.status != 200:
                raise RequestError(f"the host answers {response.status}", where="video_url")
            named = {name.lower(): value for name, value in response.headers}
            found = named.get(b"content-length", b"0")
            if found.isdigit() and int(found) > most:
                raise _too_large(most)
            content = bytearray()
            async for part in response.aiter_stream():
                content += part
                if len(content) > most:
                    raise _too_large(most)
            return bytes(content)


def _too_large(most: int) -> TooLargeError:
    return TooLargeError(f"the video is larger than {most} bytes", where="video_url")
