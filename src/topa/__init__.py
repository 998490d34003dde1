"""Teach a text-only LLM to understand video without a single training video.

Names are imported when they are first used: `import topa` itself loads neither torch nor
transformers.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from topa.answer import Answer, Topa
    from topa.config import AlignConfig, load_config
    from topa.data.dataset import TideoDataset
    from topa.data.questions import VideoQuestion, read_questions
    from topa.data.templates import PromptBuilder
    from topa.errors import TopaError
    from topa.eval.run import Report, evaluate
    from topa.features.encoder import Encoder, load_encoder
    from topa.features.memory import Memory
    from topa.features.store import encode_tideos
    from topa.features.video import Clip, read_clip
    from topa.model.config import TopaConfig
    from topa.model.processor import TopaProcessor
    from topa.model.topa import TopaForConditionalGeneration
    from topa.tideo.schema import Frame, Question, Tideo, read_tideos, write_tideos
    from topa.tideo.textvid import load_textvid, load_tideos
    from topa.train.align import align

_MODULES = {
    "AlignConfig": "topa.config",
    "Answer": "topa.answer",
    "Clip": "topa.features.video",
    "Encoder": "topa.features.encoder",
    "Frame": "topa.tideo.schema",
    "Memory": "topa.features.memory",
    "PromptBuilder": "topa.data.templates",
    "Question": "topa.tideo.schema",
    "Report": "topa.eval.run",
    "Tideo": "topa.tideo.schema",
    "TideoDataset": "topa.data.dataset",
    "Topa": "topa.answer",
    "TopaConfig": "topa.model.config",
    "TopaError": "topa.errors",
    "TopaForConditionalGeneration": "topa.model.topa",
    "TopaProcessor": "topa.model.processor",
    "VideoQuestion": "topa.data.questions",
    "align": "topa.train.align",
    "encode_tideos": "topa.features.store",
    "evaluate": "topa.eval.run",
    "load_config": "topa.config",
    "load_encoder": "topa.features.encoder",
    "load_textvid": "topa.tideo.textvid",
    "load_tideos": "topa.tideo.textvid",
    "read_clip": "topa.features.video",
    "read_questions": "topa.data.questions",
    "read_tideos": "topa.tideo.schema",
    "write_tideos": "topa.tideo.schema",
}

__all__ = [
    "AlignConfig",
    "Answer",
    "Clip",
    "Encoder",
    "Frame",
    "Memory",
    "PromptBuilder",
    "Question",
    "Report",
    "Tideo",
    "TideoDataset",
    "Topa",
    "TopaConfig",
    "TopaError",
    "TopaForConditionalGeneration",
    "TopaProcessor",
    "VideoQuestion",
    "align",
    "encode_tideos",
    "evaluate",
    "load_config",
    "load_encoder",
    "load_textvid",
    "load_tideos",
    "read_clip",
    "read_questions",
    "read_tideos",
    "write_tideos",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use; `__version__` is that of the installed package."""
    if name == "__version__":
        try:
            value = metadata.version("topa")
        except metadata.PackageNotFoundError:
            value = "0+source"  # run from a source tree that is not installed
    elif name in _MODULES:
        value = getattr(import_module(_MODULES[name]), name)
    else:
        raise AttributeError(f"module 'topa' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
