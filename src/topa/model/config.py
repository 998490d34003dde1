"""What a TOPA model is made of, as a Hugging Face configuration."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PretrainedConfig

from topa.errors import ConfigError

VARIANTS = ("adapter", "lora", "projector")


def _refuse_unknown(fields: dict[str, Any]) -> None:
    """Refuse fields that neither a TOPA model nor transformers knows: typos, or a newer version.

    Raises:
        ConfigError: Names them.
    """
    plain = PretrainedConfig()
    known = {"torch_dtype", "num_labels", "name_or_path", "attn_implementation", "model_type"}
    unknown = [
        name
        for name in sorted(fields)
        if name not in known and not name.startswith("_") and not hasattr(plain, name)
    ]
    if unknown:
        raise ConfigError(
            f"unknown fields: {', '.join(unknown)}",
            where="TopaConfig",
            mend="Correct them, or use the version of topa that wrote them.",
        )


class TopaConfig(PretrainedConfig):
    """Configuration of `TopaForConditionalGeneration`.

    Args:
        text_config: Configuration of the frozen LLM.
        llm: Where the LLM comes from: "embedded", a hub id, a folder or a GGUF file.
        llm_fingerprint: Identity of the LLM the trainables were trained on.
        encoder: Name of the encoder, as `load_encoder` takes it.
        encoder_fingerprint: Identity of the encoder of the training features.
        tideos: The Tideos of training, by name or file; the memory is built from them.
        template_version: Version of the prompts of training.
        feature_dim: Width of a frame feature.
        num_frames: T, temporal positions.
        slots_per_frame: LLM positions per frame (1 in the paper).
        dictionary_size: Words of the dictionary that frames are said in; 0 = none (paper).
        variant: "adapter" (paper), "lora" or "projector".
        adapter_length: Prompts per layer of the adapter.
        adapter_layers: Layers from the top that carry the adapter; all if None.
        bias: Strength g2 starts at -bias (3.5 in the paper).
        lora_rank: Rank of LoRA.
        lora_alpha: Scale of LoRA times its rank.
        scoring: Default scoring of options: "likelihood" or "selection".
        subtract_blind: Whether the blind likelihood is subtracted by default.
        skipped_layers: Lower layers of the LLM that are left out (authors' checkpoints).
        rope_theta: Base of the rotary positions, if not the LLM's own (authors' checkpoints).
        keep_slot_positions: Whether slots of missing frames count as positions, as in the
            authors' code, instead of the text moving up.
    """

    model_type = "topa"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012 (declared so by transformers)

    def __init__(
        self,
        text_config: PretrainedConfig | dict[str, Any] | None = None,
        llm: str = "embedded",
        llm_fingerprint: str = "",
        encoder: str = "embedded",
        encoder_fingerprint: str = "",
        tideos: list[str] | None = None,
        template_version: str = "",
        feature_dim: int = 384,
        num_frames: int = 10,
        slots_per_frame: int = 1,
        dictionary_size: int = 0,
        variant: str = "adapter",
        adapter_length: int = 50,
        adapter_layers: int | None = None,
        bias: float = 3.5,
        lora_rank: int = 16,
        lora_alpha: int = 32,
        scoring: str = "likelihood",
        subtract_blind: bool = True,
        skipped_layers: int = 0,
        rope_theta: float | None = None,
        keep_slot_positions: bool = False,
        **kwargs: Any,
    ):
        _refuse_unknown(kwargs)
        if isinstance(text_config, dict):
            text_config = AutoConfig.for_model(**text_config)
        if variant not in VARIANTS:
            raise ConfigError(f"unknown variant {variant!r}", mend=f"Use one of {VARIANTS}.")
        self.text_config = text_config
        self.llm = llm
        self.llm_fingerprint = llm_fingerprint
        self.encoder = encoder
        self.encoder_fingerprint = encoder_fingerprint
        self.tideos = list(tideos or [])
        self.template_version = template_version
        self.feature_dim = feature_dim
        self.num_frames = num_frames
        self.slots_per_frame = slots_per_frame
        self.dictionary_size = dictionary_size
        self.variant = variant
        self.adapter_length = adapter_length
        self.adapter_layers = adapter_layers
        self.bias = bias
        self.lora_rank = lora_rank
        self.lora_alpha = lora_alpha
        self.scoring = scoring
        self.subtract_blind = subtract_blind
        self.skipped_layers = skipped_layers
        self.rope_theta = rope_theta
        self.keep_slot_positions = keep_slot_positions
        super().__init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON; where the LLM lay on this machine is no part of them."""
        fields = super().to_dict()
        if isinstance(fields.get("text_config"), dict):
            fields["text_config"].pop("_name_or_path", None)
        return fields

    @property
    def num_slots(self) -> int:
        """Video positions in a prompt."""
        return self.num_frames * self.slots_per_frame


AutoConfig.register(TopaConfig.model_type, TopaConfig, exist_ok=True)
