"""What a result came from: fingerprints of all parts, and the commit of the code."""

from __future__ import annotations

import hashlib
import subprocess
from functools import cache
from pathlib import Path

from topa.answer import Topa
from topa.model.topa import TopaForConditionalGeneration


def fingerprints_of(topa: Topa, use_memory: bool = True) -> dict[str, str | None]:
    """Return the identity of checkpoint, LLM, encoder and memory (None where not used)."""
    memory = topa.memory if use_memory else None
    return {
        "checkpoint": fingerprint_of_trainables(topa.model),
        "llm": topa.model.config.llm_fingerprint,
        "encoder": topa.encoder.fingerprint,
        "memory": None if memory is None else memory.fingerprint_of_content,
    }


def fingerprint_of_trainables(model: TopaForConditionalGeneration) -> str:
    """Return a short hash of names, shapes and float32 values of the trained tensors."""
    hashed = hashlib.sha256()
    for name, parameter in sorted(model.trainable_parameters()):
        values = parameter.detach().float().cpu().contiguous()
        hashed.update(f"{name}{list(values.shape)}".encode())
        hashed.update(values.numpy().data)
    return f"checkpoint-{hashed.hexdigest()[:16]}"


@cache
def commit_of_code() -> str | None:
    """Return the git commit that topa runs from, "-dirty" if files differ; None if unknown."""
    return commit_of(Path(__file__))


def commit_of(file: Path) -> str | None:
    """Return the git commit of a file's repository; None where the file is no part of one.

    An environment often lies within the repository of its user: that is not topa's commit.
    """
    try:
        _ask_git(file.parent, "ls-files", "--error-unmatch", file.name)
        return _ask_git(file.parent, "describe", "--always", "--dirty", "--abbrev=12") or None
    except (OSError, subprocess.SubprocessError):
        return None  # not a checkout, or no git: the version of the package is recorded too


def _ask_git(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()
