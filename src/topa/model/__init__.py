"""The model: a frozen LLM with projector, adapter or LoRA; checkpoints; scores of options."""
