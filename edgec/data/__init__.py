"""Readers of the standard text formats, and metrics. Nothing here imports torch."""
