"""Models of open_clip as encoders: PE-Core, MobileCLIP2, DFN and the rest of its list."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from topa.errors import ConfigError, WeightsError
from topa.features.dual import DualEncoder
from topa.runs import digest

__all__ = ["OpenClipEncoder"]

_SAMPLED = 4096  # values per tensor that name the weights
_SCHEMES = ("hf-hub:", "local-dir:")


class OpenClipEncoder(DualEncoder):
    """A dual encoder of open_clip.

    open_clip reads both towers from one file; they are loaded together, on first use.

    Args:
        name: `MODEL/PRETRAINED` (a tag of open_clip or a file of weights), `hf-hub:OWNER/NAME`,
            or `local-dir:FOLDER` with an open_clip_config.json.
        **options: As `DualEncoder` takes them.

    Raises:
        ConfigError: open_clip is not installed, or cannot be imported, or the name is not one.
        WeightsError: The model cannot be found or loaded.
    """

    def __init__(self, name: str, **options: Any):
        super().__init__(**options)
        self.name = name
        self._open_clip = _import_open_clip()
        self._model_name, self._pretrained = _parse(name)
        try:
            self._tokenizer = self._open_clip.get_tokenizer(self._model_name)
        except (OSError, ValueError, RuntimeError, TypeError) as error:
            raise _unloadable(name, error) from error
        self.context = int(self._tokenizer.context_length)

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """The model and its preprocessing of one image."""
        try:
            # Refuses to go on with random weights, unlike open_clip's other ways to load.
            model, prepare = self._open_clip.create_model_from_pretrained(
                self._model_name, self._pretrained, device=self._device
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise _unloadable(self.name, error) from error
        return model.eval().requires_grad_(False), prepare

    @cached_property
    def dim(self) -> int:
        """Size of a feature."""
        return self._embed_texts(["a"]).shape[-1]

    @cached_property
    def fingerprint(self) -> str:
        """Names weights (a sample of every tensor), preprocessing and tokens."""
        model, prepare = self._loaded
        hashed = hashlib.sha256()
        for name, tensor in sorted(model.state_dict().items()):
            values = tensor.detach().flatten()
            step = max(1, values.numel() // _SAMPLED)
            hashed.update(f"{name}{tuple(tensor.shape)}".encode())
            hashed.update(values[::step].float().cpu().contiguous().numpy().tobytes())
        tokens = self._tokenizer(["The quick brown fox, 1 of 2."])[0].tolist()
        parts = [hashed.hexdigest(), str(prepare), json.dumps(tokens)]
        if self.long_text != "split":
            parts.append(self.long_text)
        return "openclip-" + digest(*parts)

    def _count_tokens(self, text: str) -> int:
        if hasattr(self._tokenizer, "encode"):  # open_clip's own, which knows no special tokens
            return len(self._tokenizer.encode(text)) + 2
        return len(self._tokenizer.tokenizer(text, truncation=False, verbose=False)["input_ids"])

    def _embed_texts(self, texts: list[str]) -> Tensor:
        return self._loaded[0].encode_text(self._tokenizer(texts).to(self._device))

    def _embed_images(self, images: list[Image.Image]) -> Tensor:
        model, prepare = self._loaded
        return model.encode_image(
            torch.stack([prepare(image) for image in images]).to(self._device)
        )


def _import_open_clip() -> Any:
    """Return the module.

    Raises:
        ConfigError: It is not installed, or torchvision, which it imports, does not fit torch.
    """
    try:
        import open_clip
    except ImportError:
        raise ConfigError(
            "open_clip is not installed",
            where="encoder",
            mend="Install it with: pip install -e '.[clip]'",
        ) from None
    except RuntimeError as error:
        # "operator torchvision::nms does not exist": a CUDA build beside a torch for CPUs.
        raise ConfigError(
            f"torchvision, which open_clip imports, does not fit torch {torch.__version__}"
            f" ({' '.join(str(error).split())[:100]})",
            where="encoder",
            mend="Install torch and torchvision from one index: both for CPU, or both for CUDA.",
        ) from None
    return open_clip


def _parse(name: str) -> tuple[str, str | None]:
    """Return the model and the weights that a name says.

    Raises:
        ConfigError: It names no weights.
    """
    if name.startswith(_SCHEMES):
        return name, None
    model, _, pretrained = name.partition("/")
    if not model or not pretrained:
        raise ConfigError(
            "a model and its weights are needed",
            where=f"open_clip:{name}",
            mend="Name them as in open_clip:ViT-B-32/openai, or open_clip:hf-hub:OWNER/NAME.",
        )
    return model, pretrained


def _unloadable(name: str, error: Exception) -> WeightsError:
    return WeightsError(
        f"this encoder cannot be loaded: {' '.join(str(error).split())[:300]}",
        where=f"open_clip:{name}",
        mend="See open_clip.list_pretrained() for its models.",
    )
