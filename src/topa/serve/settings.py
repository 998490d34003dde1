"""What the server allows and how much it takes on; everything remote or local is off at first."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from topa.config import Section
from topa.errors import ConfigError

KEYS_VARIABLE = "TOPA_API_KEYS"
_DOMAIN = re.compile(r"(\*\.)?([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]*[a-z0-9])?")


class ServeConfig(Section):
    """Settings of `topa serve` and `topa ui`.

    Attributes:
        allow_domains: Hosts that videos may be fetched from; `*.example.org` stands for every
            host below. None at first.
        allow_paths: Folders that `file://` videos may lie in. None at first.
        max_body_bytes: Largest request.
        max_video_bytes: Largest video, fetched or local.
        max_seconds: Longest video, in seconds.
        max_pixels: Most pixels of a frame (width x height).
        max_list_frames: Most frames in a list of JPEG frames.
        fetch_seconds: Most time for fetching a video.
        decode_seconds: Most time for decoding one; its process is killed after it.
        decoders: Decoding processes.
        decoder_bytes: Most address space of a decoding process.
        max_requests: Requests taken on at once; the next one is told 429.
        request_seconds: Most time for one request, waiting included.
        batch_rows: Answers written, or prompts scored, at once.
        max_tokens: Longest answer.
        max_prompt_tokens: Longest prompt, all options of a question together.
        max_answers: Most answers to one request (`n`).
        cached_videos: Videos whose features are kept.
        cached_prefixes: Videos whose part of the LLM's cache is kept, by instruction.
        engine: Address of another engine that writes the answers, with the LLM of `topa merge`.
    """

    allow_domains: list[str] = Field(default_factory=list)
    allow_paths: list[str] = Field(default_factory=list)
    max_body_bytes: PositiveInt = 32 * 2**20
    max_video_bytes: PositiveInt = 64 * 2**20
    max_seconds: PositiveFloat = 3600.0
    max_pixels: PositiveInt = 2**23  # 3840 x 2160 is just below
    max_list_frames: PositiveInt = 128
    fetch_seconds: PositiveFloat = 20.0
    decode_seconds: PositiveFloat = 20.0
    decoders: PositiveInt = 2
    decoder_bytes: PositiveInt = Field(4 * 2**30, ge=2**29)
    max_requests: PositiveInt = 64
    request_seconds: PositiveFloat = 120.0
    batch_rows: PositiveInt = 16
    max_tokens: PositiveInt = 512
    max_prompt_tokens: PositiveInt = 2048
    max_answers: PositiveInt = 8
    cached_videos: PositiveInt = 256
    cached_prefixes: PositiveInt = 32
    engine: str | None = Field(None, pattern=r"^https?://")

    @field_validator("allow_domains")
    @classmethod
    def _domains_are_names(cls, domains: list[str]) -> list[str]:
        lowered = [domain.lower().rstrip(".") for domain in domains]
        for domain in lowered:
            if not _DOMAIN.fullmatch(domain):
                raise ValueError(f"{domain!r} is not a host such as example.org or *.example.org")
        return lowered

    @field_validator("allow_paths")
    @classmethod
    def _paths_are_folders(cls, paths: list[str]) -> list[str]:
        for path in paths:
            if not Path(path).is_dir():
                raise ValueError(f"{path!r} is not a folder")
        return [str(Path(path).resolve()) for path in paths]


class ApiKeys:
    """Keys of which a request must bring one; without any, every request is let in.

    Args:
        keys: The keys.

    Raises:
        ConfigError: A key is shorter than 16 characters.
    """

    def __init__(self, keys: Sequence[str] = ()):
        if any(len(key) < 16 for key in keys):
            raise ConfigError(
                "an API key is shorter than 16 characters",
                where=KEYS_VARIABLE,
                mend="Make one with: openssl rand -hex 24",
            )
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    @classmethod
    def from_environment(cls) -> ApiKeys:
        """Read the keys, parted by commas, from the environment variable TOPA_API_KEYS."""
        text = os.environ.get(KEYS_VARIABLE, "")
        return cls([key.strip() for key in text.split(",") if key.strip()])

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accept(self, authorization: str | None) -> bool:
        """Whether a header `Bearer KEY` holds a known key, in time that tells nothing of it."""
        if not self._digests:
            return True
        scheme, _, key = (authorization or "").partition(" ")
        given = hashlib.sha256(key.strip().encode()).digest()
        # Every key is compared, so that the time does not tell which one was near.
        matches = [hmac.compare_digest(given, known) for known in self._digests]
        return scheme.lower() == "bearer" and any(matches)
