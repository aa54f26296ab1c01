"""Exact softmax attention: ``api`` validates and picks one of the implementations, which never import each other."""

from workbench_kernels.softmax_attention.api import IMPLEMENTATIONS, attention

__all__ = ["IMPLEMENTATIONS", "attention"]
