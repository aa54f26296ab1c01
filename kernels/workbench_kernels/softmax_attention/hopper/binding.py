"""Binding tensors to the bulk copy engine: which it can address, and descriptors over them."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor


def copyable(x: Tensor) -> bool:
    """Whether the bulk copy engine can address the tensor: aligned base, strides of whole 16 bytes, no broadcast."""
    unit = 16 // x.element_size()
    steps = [(n, s) for n, s in zip(x.shape[:3], x.stride()[:3], strict=True) if n > 1]
    return x.data_ptr() % 16 == 0 and x.stride(3) == 1 and all(s > 0 and s % unit == 0 for _n, s in steps)


def descriptor(x: Tensor, rows: int, width: int) -> Any:
    """A bulk copy descriptor over (B, S, H, D) with tiles (1, rows, 1, width); size-one axes get a legal stride."""
    far = 16 * max(1, x.numel())
    strides = [s if n > 1 else far for n, s in zip(x.shape[:3], x.stride()[:3], strict=True)]
    return _descriptor(x, [*x.shape], [*strides, 1], [1, rows, 1, width], _layout(128, 8 * x.element_size(), 4))


def row_descriptor(x: Tensor, rows: int) -> Any:
    """A descriptor over (N, S) float32 with tiles (1, rows)."""
    return _descriptor(x, [*x.shape], [*x.stride()], [1, rows], _layout(0, 32, 2))


def _descriptor(x: Tensor, shape: list[int], strides: list[int], block: list[int], layout: Any) -> Any:
    """A ``TensorDescriptor`` without the checks of its constructor, which :func:`copyable` has made."""
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    made = TensorDescriptor.__new__(TensorDescriptor)
    made.__dict__.update(
        base=x, shape=shape, strides=strides, block_shape=block, layout=layout, padding="zero", round_f32_to_tf32=False
    )
    return made


@functools.cache
def _layout(swizzle: int, bits: int, rank: int) -> Any:
    from triton.experimental.gluon import language as gl

    return gl.NVMMASharedLayout(swizzle_byte_width=swizzle, element_bitwidth=bits, rank=rank)
