"""Pre-alignment: losses, the trainer, and validation."""
