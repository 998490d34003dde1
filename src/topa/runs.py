"""Files that are never half-written, the cache folder, and what is recorded of a run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import platformdirs

from topa.errors import DataError

_RECORDED_PACKAGES = ("topa", "torch", "transformers", "peft", "safetensors", "numpy", "av")


def cache_dir(*parts: str) -> Path:
    """Return (and make) a folder for files that can be made again: `$TOPA_CACHE` or the user's."""
    root = Path(os.environ.get("TOPA_CACHE") or platformdirs.user_cache_dir("topa"))
    folder = root.joinpath(*parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it there only if the block succeeds.

    The file is flushed to disk before the rename, so that a crash leaves either the old
    file or the new one, never a part of it. The suffix is kept for writers that look at it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        # mkstemp makes files private; the final one gets what a plain open() would give.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def path_below(folder: str | Path, name: str) -> Path:
    """Return the path of a file that is named after an id out of somebody's file.

    Raises:
        DataError: It would lie outside the folder.
    """
    path = Path(folder) / name
    if not path.resolve().is_relative_to(Path(folder).resolve()):
        raise DataError(
            f"the id leads out of the folder {folder}",
            where=name,
            mend="Give it another id, or write one file that holds them all.",
        )
    return path


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: The file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError("file not found", where=path) from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"not valid JSON ({error})", where=path) from None


def read_jsonl(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) of a JSONL file; blank lines are skipped.

    Raises:
        DataError: The file is missing, or a line is not a JSON object (with its number).
    """
    path = Path(path)
    if not path.is_file():
        raise DataError("file not found", where=path, mend="Check the path.")
    with open(path, encoding="utf-8", errors="strict") as file:
        try:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    value = json.loads(line)
                except json.JSONDecodeError as error:
                    raise DataError(
                        f"not valid JSON ({error.msg}, column {error.colno})",
                        where=f"{path}, line {number}",
                        mend="Each line must be one JSON object.",
                    ) from None
                except RecursionError as error:
                    raise DataError(
                        f"not valid JSON ({error})", where=f"{path}, line {number}"
                    ) from None
                if not isinstance(value, dict):
                    raise DataError(
                        f"a JSON object is needed, got {type(value).__name__}",
                        where=f"{path}, line {number}",
                    )
                yield number, value
        except UnicodeDecodeError as error:
            raise DataError(f"not a UTF-8 text file ({error.reason})", where=path) from None


def append_jsonl(path: str | Path, row: dict[str, Any]) -> None:
    """Append one row to a JSONL log."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def sha256_of(path: str | Path) -> str:
    """Return the hex sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(*parts: str) -> str:
    """Return a short stable hash (16 hex digits) of strings, for fingerprints and cache keys."""
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:16]


def environment() -> dict[str, Any]:
    """Return what a reader needs to repeat a run: versions, machine, threads."""
    import torch

    versions = {}
    for name in _RECORDED_PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "packages": versions,
    }
