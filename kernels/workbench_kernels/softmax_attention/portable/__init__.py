"""Triton attention for any CUDA card: FlashAttention-2's order (``flash2``) and the first one (``flash1``)."""
