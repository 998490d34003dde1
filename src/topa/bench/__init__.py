"""Speed of the hot paths, each against a plain re-implementation of the paper's own way."""
