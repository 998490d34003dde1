"""Evaluation: questions, metrics, and reports."""
