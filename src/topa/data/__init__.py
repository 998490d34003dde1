"""Samples: the one prompt builder, the tasks, and batches."""
