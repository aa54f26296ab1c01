"""Sequence layers with a streaming state."""
