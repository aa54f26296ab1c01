"""Attention for Hopper cards (compute capability 9.0): Gluon kernels, warp-specialised, forward and backward."""

from workbench_kernels.softmax_attention.hopper.launch import attention, refuses

__all__ = ["attention", "refuses"]
