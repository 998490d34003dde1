"""What a TOPA model shares with transformers: loading, saving, and the way to the hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from topa.errors import CheckpointError, ConfigError
from topa.model.checkpoint import (
    check_fingerprint,
    checkpoint_folder,
    load_trainables,
    read_config,
    save_trainables,
)
from topa.model.config import TopaConfig
from topa.model.front import resize_positions
from topa.model.hub import push_checkpoint, take_hub_options
from topa.model.language import Language, Quantization, load_language
from topa.model.words import WordDictionary


class TopaPreTrainedModel(PreTrainedModel):
    """A model whose checkpoint holds what was trained, and names the LLM it was trained on.

    Attributes:
        checkpoint: Folder that it was loaded from, None if it was not.
        language_model: The LLM.
        temporal_emb: One embedding for each frame.
        words: Dictionary of the video slots, None without one.
    """

    checkpoint: Path | None
    language_model: PreTrainedModel
    temporal_emb: nn.Embedding
    words: WordDictionary | None
    config: TopaConfig
    config_class = TopaConfig
    base_model_prefix = "language_model"
    main_input_name = "input_ids"
    _supports_sdpa = True
    _supports_attention_backend = True
    _is_stateful = False

    def _init_weights(self, module: nn.Module) -> None:
        """Leave every weight as its constructor made it: the LLM comes loaded."""

    def trainable_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield name and tensor of what is trained."""
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                yield name, parameter

    def saved_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield name and tensor of what a checkpoint holds: the trained ones, and the words."""
        yield from self.trainable_parameters()
        if self.words is not None:
            yield from self.words.named_buffers(prefix="words")

    # Checkpoints ----------------------------------------------------------------------

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | Path, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> None:
        """Write the configuration and the trained tensors (not the LLM) to a folder.

        Args:
            save_directory: Folder, made if it is not there.
            dtype: Type of the tensors on disk; as they are if None.
            **kwargs: `is_main_process` and `state_dict`, as the Trainer passes them.
        """
        unknown = set(kwargs) - {"is_main_process", "state_dict"}
        if unknown:
            raise ConfigError(f"unknown arguments {sorted(unknown)}", where="save_pretrained")
        if kwargs.get("is_main_process", True):
            self.config.save_pretrained(save_directory)
            save_trainables(self, save_directory, dtype)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        config: TopaConfig | None = None,
        language: Language | None = None,
        llm: str | None = None,
        dtype: torch.dtype = torch.float32,
        device_map: str | dict[str, Any] | None = None,
        quantization: Quantization | None = None,
        num_frames: int | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load a checkpoint and the LLM that it names.

        Args:
            pretrained_model_name_or_path: "embedded", a folder or a hub id.
            config: Instead of the one of the checkpoint.
            language: The LLM, where it is already loaded.
            llm: Where to find the LLM, if not where the checkpoint says.
            dtype: Type of the LLM's weights.
            device_map: Where its layers go, as transformers takes it.
            quantization: "8bit" or "4bit" weights of the LLM, through bitsandbytes.
            num_frames: Interpolate the temporal embeddings to so many frames.
            **kwargs: `revision`, `token`, `cache_dir`, `local_files_only` and `force_download` of
                a checkpoint on the hub, and what Auto classes pass along.

        Raises:
            CheckpointError: There is no checkpoint, or it does not fit the LLM.
            FingerprintError: The LLM is another one than the checkpoint was trained on.
            ConfigError: Unknown arguments, or bitsandbytes is asked for and not installed.
        """
        folder = checkpoint_folder(pretrained_model_name_or_path, **take_hub_options(kwargs))
        config = config or read_config(folder)
        if language is None:
            language = load_language(
                llm or config.llm, dtype, device_map=device_map, quantization=quantization
            )
        check_fingerprint("LLM", config.llm_fingerprint, language.fingerprint, folder)
        _check_width(config, language.model, folder)
        model = cls(config, language.model)
        load_trainables(model, folder)
        model.checkpoint = folder
        if num_frames is not None:
            model.resize_frames(num_frames)
        return model.eval()

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:  # type: ignore[override]
        """Upload the checkpoint with a model card; the arguments are those of `push_checkpoint`.

        Returns:
            The address of the commit.
        """
        return push_checkpoint(self, repo_id, **kwargs)

    def resize_frames(self, count: int) -> None:
        """Let the model take `count` frames, by interpolating its temporal embeddings."""
        positions = resize_positions(self.temporal_emb.weight.detach(), count)
        learning = self.temporal_emb.weight.requires_grad
        self.temporal_emb = nn.Embedding.from_pretrained(positions, freeze=not learning)
        self.config.num_frames = count


def _check_width(config: TopaConfig, llm: PreTrainedModel, where: Path) -> None:
    """Refuse an LLM of another width before tensors are compared.

    Raises:
        CheckpointError: Names both widths.
    """
    made_for = getattr(config.text_config, "hidden_size", None)
    width = llm.config.get_text_config(decoder=True).hidden_size
    if made_for is not None and made_for != width:
        raise CheckpointError(
            f"the checkpoint was made for an LLM of width {made_for}, this one has width {width}",
            where=where,
            mend="Use the LLM of the checkpoint, or train again on this one.",
        )
