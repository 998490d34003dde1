"""From frame features to embeddings in the video slots: what stands before the LLM."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from topa.errors import ConfigError
from topa.model.config import TopaConfig
from topa.model.words import WordDictionary

__all__ = ["ProjectorParts", "check_slots", "place_frames", "project_frames", "resize_positions"]


@dataclass(frozen=True)
class ProjectorParts:
    """The trained parts that turn frames into slot embeddings.

    Attributes:
        projection: Linear layer d -> D * slots_per_frame.
        positions: [T, D] temporal embeddings.
        words: Dictionary that frames are said in; None without one (paper).
        embedding: [vocabulary, D] token embeddings of the LLM, for the words.
        scale: What the LLM multiplies them with when it looks one up (Gemma 3).
    """

    projection: nn.Linear
    positions: Tensor
    words: WordDictionary | None
    embedding: Tensor
    scale: float = 1.0


def project_frames(features: Tensor, parts: ProjectorParts, config: TopaConfig) -> Tensor:
    """Return slot embeddings: projection of each frame, plus its temporal embedding (paper 3.3).

    Args:
        features: [B, T, d], or [B, V, T, d] of V videos, whose positions each start at 0.
        parts: The trained parts.
        config: Of the model.

    Returns:
        [B, T * slots_per_frame, D]; for V videos [B, V * T * slots_per_frame, D].

    Raises:
        ConfigError: More frames than temporal positions, fewer where there are several videos,
            or features of another width.
    """
    *_, frames, width = features.shape
    several = features.ndim == 4
    if frames > config.num_frames or (several and frames != config.num_frames):
        raise ConfigError(
            f"{frames} frames given, the model has {config.num_frames} temporal slots",
            mend="Pad with masked frames."
            if frames < config.num_frames
            else f"Sample fewer frames, or load the model with num_frames={frames}, which "
            "interpolates its temporal embeddings.",
        )
    if width != config.feature_dim:
        raise ConfigError(
            f"features have width {width}, the model was made for {config.feature_dim}",
            mend=f"Use the encoder of the checkpoint ({config.encoder}).",
        )
    slots = config.slots_per_frame
    projected = parts.projection(features.to(parts.projection.weight.dtype))
    projected = projected.unflatten(-1, (slots, -1)) + parts.positions[:frames, None, :]
    if parts.words is not None:
        flat = features.flatten(0, -2)
        words = parts.words.pursue(flat, slots).view(*features.shape[:-1], slots)
        said = parts.words.embed(words, parts.embedding)
        projected = projected + parts.scale * said.to(projected)
    return projected.flatten(1, -2)


def check_slots(slot_index: Tensor, features: Tensor | None, config: TopaConfig) -> None:
    """Refuse slots that no frame would fill.

    Args:
        slot_index: [B, S] slot number, -1 at text.
        features: [B, T, d] or [B, V, T, d].
        config: Of the model.

    Raises:
        ConfigError: Names the last slot and the number of slots that are filled.
    """
    last = int(slot_index.max()) if slot_index.numel() else -1
    frames = features.shape[1:-1].numel() if features is not None else 0
    if last >= frames * config.slots_per_frame:
        raise ConfigError(
            f"the prompt has video slots 0 to {last}, the features of {frames} frames fill "
            f"{frames * config.slots_per_frame}",
            where="features",
            mend="Give the features of every video that the prompt has slots for.",
        )


def place_frames(embeds: Tensor, slot_index: Tensor, video: Tensor) -> Tensor:
    """Return token embeddings [B, S, D] with slot embeddings [B, N, D] where `slot_index` >= 0."""
    index = slot_index.clamp(min=0)[..., None].expand(-1, -1, video.shape[-1])
    placed = video.to(embeds).gather(1, index)
    return torch.where((slot_index >= 0)[..., None], placed, embeds)


def resize_positions(positions: Tensor, count: int) -> Tensor:
    """Return temporal embeddings [T, D] interpolated linearly to [count, D].

    The first and the last stay what they are: more frames are a finer view of the same time.

    Raises:
        ConfigError: `count` is not positive.
    """
    if count < 1:
        raise ConfigError(f"num_frames is {count}", mend="Ask for at least one frame.")
    if len(positions) == 1:
        return positions.expand(count, -1).clone()
    stretched = F.interpolate(
        positions.T[None].float(), size=count, mode="linear", align_corners=True
    )
    return stretched[0].T.to(positions.dtype).contiguous()
