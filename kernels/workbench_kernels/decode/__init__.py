"""Attention of new tokens over a cache that is contiguous, slot-strided or cut into blocks."""

from workbench_kernels.decode.api import IMPLEMENTATIONS, decode_attention, paged_attention

__all__ = ["IMPLEMENTATIONS", "decode_attention", "paged_attention"]
