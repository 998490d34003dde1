"""What a request names as its video, brought into the server's own folder."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import os
import stat
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from topa.errors import ForbiddenError, RequestError, TooLargeError
from topa.serve.fetching import PORTS, Fetcher
from topa.serve.settings import ServeConfig

FRAME_LIST = "video/jpeg"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Material:
    """A video in the server's own folder.

    Attributes:
        path: The file.
        digest: sha256 of what is in it, and of how it is cut.
        pieces: Bytes of each JPEG frame one after the other; empty for a video file.
    """

    path: Path
    digest: str
    pieces: tuple[int, ...] = ()


class Sources:
    """Turns addresses of videos into files, within what the settings allow.

    Args:
        config: The settings.
        folder: Where files are written; they are private to this process's user.
        fetcher: Fetches from allowed hosts.
    """

    def __init__(self, config: ServeConfig, folder: Path, fetcher: Fetcher | None = None):
        self._config, self._folder = config, folder
        self._fetcher = fetcher or Fetcher(config)

    async def take(self, url: str) -> Material:
        """Return the video that a `data:`, `http(s):` or `file:` address names.

        The caller deletes its file.

        Raises:
            ForbiddenError: The settings do not allow it.
            TooLargeError: It is larger than a limit.
            TimeLimitError: It could not be fetched in time.
            RequestError: It is not such an address, or holds no video.
        """
        scheme = url[:8].partition(":")[0].lower()
        if scheme == "data":
            return await asyncio.to_thread(self._take_data, url)
        if scheme in PORTS:
            return self._keep([await self._fetcher.fetch(url)], is_list=False)
        if scheme == "file":
            return await asyncio.to_thread(self._take_file, url)
        raise RequestError(
            "an address of this kind cannot be used",
            where="video_url",
            mend="Send data:video/mp4;base64,..., https://... or file://...",
        )

    def take_upload(self, path: str | Path) -> Material:
        """Return a file that the page has received, which needs no allowing.

        Raises:
            TooLargeError: It is larger than `max_video_bytes`.
            RequestError: It cannot be opened, or is no file.
        """
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise RequestError(f"the file cannot be opened ({error.strerror})") from None
        return self._copy(descriptor)

    def _keep(self, parts: Sequence[bytes], is_list: bool) -> Material:
        if not any(parts):
            raise RequestError("the video is empty", where="video_url")
        sizes = tuple(len(part) for part in parts) if is_list else ()
        hashed = hashlib.sha256(repr(sizes).encode())
        handle, name = tempfile.mkstemp(dir=self._folder, prefix="video-")
        with open(handle, "wb") as file:
            for part in parts:
                hashed.update(part)
                file.write(part)
        return Material(Path(name), hashed.hexdigest(), sizes)

    def _take_data(self, url: str) -> Material:
        head, comma, body = url[5:].partition(",")
        kind, *attributes = head.lower().split(";")
        if not comma or attributes[-1:] != ["base64"] or not kind.startswith("video/"):
            raise RequestError(
                "a data address must read data:video/...;base64,...", where="video_url"
            )
        is_list = kind == FRAME_LIST
        texts = body.split(",") if is_list else [body]
        if len(texts) > self._config.max_list_frames:
            raise TooLargeError(
                f"{len(texts)} frames, at most {self._config.max_list_frames} are taken",
                where="video_url",
            )
        if len(body) * 3 // 4 > self._config.max_video_bytes + 2:
            raise _too_large(self._config.max_video_bytes)
        try:
            parts = [base64.b64decode(text, validate=True) for text in texts]
        except (binascii.Error, ValueError):
            raise RequestError("not valid base64", where="video_url") from None
        if is_list and not all(parts):
            raise RequestError("a frame of the list is empty", where="video_url")
        return self._keep(parts, is_list)

    def _take_file(self, url: str) -> Material:
        if not self._config.allow_paths:
            raise ForbiddenError(
                "this server reads no local files",
                where="video_url",
                mend="Send the video itself as data:video/mp4;base64,... or start the server"
                " with --allow-path.",
            )
        try:
            parts = urlsplit(url)
        except ValueError:
            raise RequestError("not an address", where="video_url") from None
        path = unquote(parts.path)
        if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
            raise RequestError("a file address must read file:///path", where="video_url")
        if not path.startswith("/") or "\0" in path or ".." in path.split("/"):
            raise ForbiddenError("the path is not plain", where="video_url")
        for root in self._config.allow_paths:
            if path.startswith(root.rstrip("/") + "/"):
                inside = path[len(root.rstrip("/")) + 1 :]
                return self._copy(_open_below(root, [p for p in inside.split("/") if p]))
        raise ForbiddenError("the path is outside of the allowed folders", where="video_url")

    def _copy(self, descriptor: int) -> Material:
        """Copy an open file: what is hashed is then what is decoded, whoever changes it."""
        most = self._config.max_video_bytes
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise ForbiddenError("not a regular file", where="video_url")
        with open(descriptor, "rb") as source:
            if status.st_size > most:
                raise _too_large(most)
            content = source.read(most + 1)
        if len(content) > most:
            raise _too_large(most)
        return self._keep([content], is_list=False)


def _open_below(root: str, names: Sequence[str]) -> int:
    """Open a file below a folder step by step, refusing every symbolic link on the way.

    Raises:
        ForbiddenError: There is no such file, or a link on the way to it; one message for both,
            so that it does not tell what lies outside.
    """
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in names[:-1]:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
            inner = os.open(name, flags, dir_fd=folder)
            os.close(folder)
            folder = inner
        # Not blocking: opening a named pipe would wait for its writer.
        return os.open(names[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except (OSError, IndexError):
        raise ForbiddenError("no such file in the allowed folders", where="video_url") from None
    finally:
        os.close(folder)


def _too_large(most: int) -> TooLargeError:
    return TooLargeError(f"the video is larger than {most} bytes", where="video_url")
