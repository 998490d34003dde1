"""The model: a frozen LLM, a projector of frame features, temporal embeddings, and a variant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from topa.data.collate import Batch
from topa.errors import ConfigError
from topa.linear import unpack
from topa.model.adapter import ATTENTION
from topa.model.attention import span_video
from topa.model.config import TopaConfig
from topa.model.front import (
    ProjectorParts,
    check_slots,
    place_frames,
    project_frames,
)
from topa.model.official.quirks import count_slots, fit_language
from topa.model.packing import (
    check_language,
    check_length,
    finish_logits,
    mask_layers,
    span_means,
    tree_mask,
)
from topa.model.placement import device_of, is_placed
from topa.model.pretrained import TopaPreTrainedModel
from topa.model.variants import add_variant
from topa.model.words import WordDictionary


class TopaForConditionalGeneration(TopaPreTrainedModel, GenerationMixin):
    """A causal LM that reads frame features in the video slots of its prompt.

    Position t of the video gets visual_proj(f_t) + temporal_emb_t (DESIGN section 2). The
    LLM is frozen; the projector, the temporal embeddings and the variant's own weights
    are trained and saved.

    Args:
        config: The configuration.
        language_model: The LLM to wrap; built with random weights from `config.text_config`
            if None (for tests).
    """

    def __init__(self, config: TopaConfig, language_model: PreTrainedModel | None = None):
        super().__init__(config)
        if language_model is None:
            language_model = AutoModelForCausalLM.from_config(config.text_config)
        fit_language(language_model, config.skipped_layers, config.rope_theta)
        text = language_model.config.get_text_config(decoder=True)
        check_language(text)
        check_length(config.num_slots, "video slots", text)
        language_model.requires_grad_(False)
        language_model.set_attn_implementation(ATTENTION)
        width = text.hidden_size
        self.visual_proj = nn.Linear(config.feature_dim, width * config.slots_per_frame, bias=False)
        self.temporal_emb = nn.Embedding(config.num_frames, width)
        nn.init.normal_(self.visual_proj.weight, std=0.02)
        nn.init.zeros_(self.temporal_emb.weight)
        self.words: WordDictionary | None = None
        if config.dictionary_size:
            self.words = WordDictionary(config.dictionary_size, config.feature_dim)
        add_variant(language_model, config)
        self.language_model = language_model
        self.checkpoint: Path | None = None
        if is_placed(language_model):
            # Layers lie where a device map put them: what stands before them goes with the first.
            start = device_of(language_model.get_input_embeddings())
            for part in (self.visual_proj, self.temporal_emb, self.words):
                if part is not None:
                    part.to(start)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the LLM's token embedding."""
        return self.language_model.get_input_embeddings()

    @property
    def language_config(self) -> PretrainedConfig:
        """Configuration of the decoder: of an LLM that also reads images, its text part."""
        return self.language_model.config.get_text_config(decoder=True)

    def get_output_embeddings(self) -> nn.Module:
        """Return the LLM's head."""
        return self.language_model.get_output_embeddings()

    def train(self, mode: bool = True) -> TopaForConditionalGeneration:
        """Set the mode; the frozen LLM never uses dropout of its own."""
        super().train(mode)
        self.language_model.eval()
        if mode:
            unpack(self.language_model)  # training needs the memory, and changes the updates
        return self

    # Inputs ---------------------------------------------------------------------------

    def project_frames(self, features: Tensor) -> Tensor:
        """Return slot embeddings [B, N, D] of frame features [B, T, d] or [B, V, T, d].

        Raises:
            ConfigError: More frames than temporal positions, or features of another width.
        """
        table = self.get_input_embeddings()
        assert isinstance(table.weight, Tensor)
        scale = float(getattr(table, "embed_scale", 1.0))  # type: ignore[arg-type]
        parts = ProjectorParts(
            self.visual_proj, self.temporal_emb.weight, self.words, table.weight, scale
        )
        return project_frames(features, parts, self.config)

    def embed(
        self, input_ids: Tensor, slot_index: Tensor | None, features: Tensor | None
    ) -> Tensor:
        """Return input embeddings [B, S, D]: tokens, and frames where `slot_index` >= 0."""
        embeds = self.get_input_embeddings()(input_ids)
        if slot_index is None or features is None:
            return embeds
        return place_frames(embeds, slot_index, self.project_frames(features))

    def slot_visible(self, slot_index: Tensor, frame_mask: Tensor) -> Tensor:
        """Return [B, S] True at tokens that carry something: text, and slots of real frames.

        Args:
            slot_index: [B, S] slot number, -1 at text.
            frame_mask: [B, T] or [B, V, T] True where there is a frame.
        """
        frame = slot_index.clamp(min=0) // self.config.slots_per_frame
        return (slot_index < 0) | frame_mask.flatten(1).gather(1, frame)

    # Forward --------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor | None = None,
        slot_index: Tensor | None = None,
        features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Run the LLM on a prompt with video, as `generate()` does.

        Args:
            input_ids: [B, S] token ids; what stands in slots is not read.
            slot_index: [B, P] slot number at each position of the prompt, -1 elsewhere; of
                several videos, the second one's start at T * slots_per_frame, and so on.
            features: [B, T, d] frame features, [B, V, T, d] of several videos; needed in the
                pass that reads the slots.
            attention_mask: [B, K] 1 where a key may be seen; 0 at padding and masked frames.
            position_ids: [B, S]; by default the count of visible tokens before.
            past_key_values: Cache of earlier positions.
            labels: [B, S] token ids to learn, -100 elsewhere (shifted inside).
            use_cache: Whether to return a cache.
            logits_to_keep: Only the last so many logits (0 = all).

        Raises:
            ConfigError: Slots without features, or features that do not fit the model.
        """
        if input_ids is None:
            raise ConfigError("input_ids are needed", where="TopaForConditionalGeneration")
        past = int(past_key_values.get_seq_length()) if past_key_values is not None else 0
        if past == 0:
            check_length(input_ids.shape[1], "prompt", self.language_config)
        here = None
        if slot_index is not None and past < slot_index.shape[1]:
            here = slot_index[:, past : past + input_ids.shape[1]]
            check_slots(here, features, self.config)
        if position_ids is None and attention_mask is not None and attention_mask.ndim == 2:
            counted = attention_mask
            if self.config.keep_slot_positions:
                counted = count_slots(counted, slot_index)
            position_ids = (counted.long().cumsum(-1) - 1).clamp(min=0)
            position_ids = position_ids[:, past : past + input_ids.shape[1]]
        return self.language_model(
            inputs_embeds=self.embed(input_ids, here, features),
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            topa_video=span_video(slot_index, past, input_ids.shape[1], past_key_values),
            **kwargs,
        )

    def _prepare_position_ids_for_generation(
        self, inputs_tensor: Tensor, model_kwargs: dict[str, Any]
    ) -> Tensor:
        """Return the positions that `generate()` starts from."""
        mask = model_kwargs.get("attention_mask")
        if self.config.keep_slot_positions and mask is not None:
            counted = count_slots(mask, model_kwargs.get("slot_index"))
            model_kwargs = {**model_kwargs, "attention_mask": counted}
        return super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)

    @torch.inference_mode()
    def score(self, batch: Batch) -> list[Tensor]:
        """Return the mean token log-likelihood of the options of every question of a batch.

        The video and the text before the options are read once, whatever the number of
        questions and options: all of them are one packed pass.

        Returns:
            For each question, in order, [number of options].
        """
        means = span_means(self.target_log_probs(batch), batch.target_spans, len(batch.span_groups))
        return [
            means[batch.span_groups == question] for question in range(len(batch.group_answers))
        ]

    def target_log_probs(self, batch: Batch) -> Tensor:
        """Return log P(token | its prefix) of every target token of a batch of prompts, [N].

        Every prompt is one packed pass: shared prefixes are computed once, siblings do
        not see each other, and only target positions go through the LLM's head. Prompts of a
        batch that begin alike share their instruction, and outside attention no padding is
        computed: all tokens are one row.
        """
        visible = self.slot_visible(batch.slot_index, batch.frame_mask)
        mask = tree_mask(batch.segment_ids, batch.visible_segments, visible)
        slots = batch.slot_index.shape[1]
        decoder = self.language_model.get_decoder()
        config = self.language_config
        seen = mask
        if self.config.keep_slot_positions:
            everything = torch.ones_like(visible)
            seen = tree_mask(batch.segment_ids, batch.visible_segments, everything)
        position_ids = seen.sum(-1) - 1
        layers = mask_layers(mask, position_ids, config)
        embeds = self.embed(batch.input_ids, batch.slot_index, batch.features)
        span = span_video(batch.slot_index, 0, slots)
        if span is not None and batch.tokens is not None and batch.places is not None:
            span.tokens, span.places = batch.tokens, batch.places
            embeds = F.embedding(batch.tokens, embeds.flatten(0, 1))[None]
            position_ids = position_ids.flatten()[batch.tokens][None]
        hidden = decoder(
            inputs_embeds=embeds,
            attention_mask=layers,
            position_ids=position_ids,
            use_cache=False,
            topa_video=span,
        ).last_hidden_state
        # A device map leaves them where the last layer lies, which need not be the batch's place.
        hidden = hidden.to(visible.device)
        if batch.places is not None:
            hidden = F.embedding(batch.places, hidden[0])
        return self.log_probs_of(hidden, batch)

    def log_probs_of(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Return log P of every target token of a batch, [N], from hidden states [B, S, D]."""
        picked = hidden[batch.target_rows, batch.target_sources]
        logits = self.get_output_embeddings()(picked).float().to(batch.target_ids.device)
        logits = finish_logits(logits, self.language_config)
        return -F.cross_entropy(logits, batch.target_ids, reduction="none")


AutoModelForMultimodalLM.register(TopaConfig, TopaForConditionalGeneration, exist_ok=True)
AutoModelForImageTextToText.register(TopaConfig, TopaForConditionalGeneration, exist_ok=True)
