"""A checkpoint as plain weights and a front: for engines that run an LLM and take embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from topa.data.collate import collate_for_generation
from topa.data.templates import Prompt
from topa.errors import CheckpointError, ConfigError
from topa.model.checkpoint import read_config
from topa.model.config import TopaConfig
from topa.model.front import ProjectorParts, place_frames, project_frames
from topa.model.topa import TopaForConditionalGeneration
from topa.model.words import WordDictionary
from topa.runs import atomic_path

FRONT_NAME = "front.safetensors"
_TOKENS = "embed_tokens.weight"


class EmbeddingFront(nn.Module):
    """What turns a prompt with video into the embeddings that a plain LLM is given.

    Args:
        config: Of the checkpoint.
        embedding: [vocabulary, D] token embeddings of the LLM.
    """

    def __init__(self, config: TopaConfig, embedding: Tensor):
        super().__init__()
        width = embedding.shape[1]
        self.config = config
        self.embed_tokens = nn.Embedding.from_pretrained(embedding, freeze=True)
        self.visual_proj = nn.Linear(config.feature_dim, width * config.slots_per_frame, bias=False)
        self.temporal_emb = nn.Embedding(config.num_frames, width)
        self.words: WordDictionary | None = None
        if config.dictionary_size:
            self.words = WordDictionary(config.dictionary_size, config.feature_dim)
        self.requires_grad_(False)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> EmbeddingFront:
        """Load the front of a folder written by `export_plain`.

        Raises:
            CheckpointError: There is none, or its tensors do not fit its configuration.
        """
        path = Path(folder) / "front" / FRONT_NAME
        config = read_config(path.parent)
        if not path.is_file():
            raise CheckpointError("file not found", where=path, mend="Run topa export again.")
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f"not a whole safetensors file ({error})", where=path) from None
        if _TOKENS not in tensors:
            raise CheckpointError(f"1 missing: {_TOKENS}", where=path)
        front = cls(config, tensors[_TOKENS])
        try:
            front.load_state_dict(tensors)
        except RuntimeError as error:
            raise CheckpointError(str(error).replace("\n", " "), where=path) from None
        return front.eval()

    @torch.inference_mode()
    def forward(self, prompts: Sequence[Prompt], features: Sequence[Tensor]) -> list[Tensor]:
        """Return the embeddings of each prompt, [S_i, D]; slots without a frame are left out.

        Args:
            prompts: B plain prompts, as `PromptBuilder` makes them.
            features: B tensors [n_i, d], projected through the memory.

        Raises:
            ConfigError: More frames than the checkpoint has slots for, or of another width.
        """
        config = self.config
        inputs = collate_for_generation(
            prompts, features, config.num_frames, config.slots_per_frame
        )
        parts = ProjectorParts(
            self.visual_proj, self.temporal_emb.weight, self.words, self.embed_tokens.weight
        )
        video = project_frames(inputs["features"], parts, config)
        embeds = place_frames(self.embed_tokens(inputs["input_ids"]), inputs["slot_index"], video)
        # An engine counts positions by itself: what is masked must not be there at all.
        shown = inputs["attention_mask"].bool()
        return [row[keep] for row, keep in zip(embeds, shown, strict=True)]


@torch.no_grad()
def merge_lora(llm: PreTrainedModel) -> PreTrainedModel:
    """Return an LLM of plain modules, with the low-rank updates added to its weights.

    Raises:
        ConfigError: It carries the paper's adapter, which is no change of weights.
    """
    if any(hasattr(module, "topa_adapter") for module in llm.modules()):
        raise ConfigError(
            "the paper's adapter is part of the attention and cannot be merged into weights",
            where=type(llm).__name__,
            mend='Train with variant "lora" or "projector", or serve with topa serve.',
        )
    for name, module in list(llm.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()  # type: ignore[operator]  # of its subclass
            parent, _, child = name.rpartition(".")
            setattr(llm.get_submodule(parent), child, module.get_base_layer())
    llm.set_attn_implementation("sdpa" if llm._supports_sdpa else "eager")
    return llm


def export_plain(
    model: TopaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a checkpoint as a plain LLM with a front; the model itself is used up.

    Args:
        model: Of variant "lora" or "projector".
        tokenizer: Of its LLM.
        folder: Gets the LLM as transformers saves it, and `front/` with what comes before it.
        dtype: Type of the LLM's weights on disk; as they are if None.

    Raises:
        ConfigError: The model carries the paper's adapter, or an LLM with quantised weights.
    """
    folder = Path(folder)
    if getattr(model.language_model, "is_quantized", False):
        raise ConfigError(
            "quantised weights cannot take the updates exactly",
            where="export",
            mend="Load the model without quantization.",
        )
    llm = merge_lora(model.language_model)
    if dtype is not None:
        llm.to(dtype)  # type: ignore[arg-type]  # transformers takes types as devices
    table = llm.get_input_embeddings()
    # Looked up, not copied: some LLMs scale what they look up (Gemma 3).
    every = torch.arange(llm.config.get_text_config(decoder=True).vocab_size, device=llm.device)
    front = EmbeddingFront(model.config, table(every).float())
    front.visual_proj.weight.data = model.visual_proj.weight.detach().float()
    front.temporal_emb.weight.data = model.temporal_emb.weight.detach().float()
    if front.words is not None and model.words is not None:
        front.words.load_state_dict(model.words.state_dict())
    (folder / "front").mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder / "front")
    tensors = {name: tensor.cpu().contiguous() for name, tensor in front.state_dict().items()}
    with atomic_path(folder / "front" / FRONT_NAME) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", "kind": "topa-front"})
    llm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def load_plain(folder: str | Path) -> tuple[PreTrainedModel, EmbeddingFront]:
    """Load both halves of a folder written by `export_plain`, the LLM by transformers alone."""
    return AutoModelForCausalLM.from_pretrained(str(folder)).eval(), EmbeddingFront.from_pretrained(
        folder
    )
