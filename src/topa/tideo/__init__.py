"""Tideos: what they are, reading and checking them, and the bundled TextVid-mini."""
