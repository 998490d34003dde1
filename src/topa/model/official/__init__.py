"""The authors' checkpoints: reading, converting, checking and writing them (docs/official.md)."""
