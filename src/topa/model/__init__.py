"""The model: a frozen LLM with projector, adapter or LoRA; checkpoints; scores of options.

Importing it tells the Auto classes of transformers about TopaConfig, the model and the processor.
"""

from topa.model.config import TopaConfig
from topa.model.processor import TopaProcessor
from topa.model.topa import TopaForConditionalGeneration

__all__ = ["TopaConfig", "TopaForConditionalGeneration", "TopaProcessor"]
