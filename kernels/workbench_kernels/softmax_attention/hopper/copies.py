"""Bulk tensor copies between (B, S, H, D) tensors and two-dimensional tiles in shared memory."""

from __future__ import annotations

from triton._C.libtriton import ir
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language import _core
from triton.experimental.gluon.language.nvidia.hopper import tma

#: Rows of one warpgroup: the M of a warpgroup matrix instruction.
WG_ROWS = gl.constexpr(64)

if hasattr(tma, "async_atomic_add"):
    reduce_add = tma.async_atomic_add
else:  # Triton before 3.7 has the operation in its builder but no word for it in the language

    @_core.builtin
    def reduce_add(tensor_desc, coord, src, _semantic=None):
        coord = _semantic._convert_to_ir_values(coord, require_i64=False)
        kind = ir.DESCRIPTOR_REDUCE_KIND.ADD
        _semantic.builder.create_async_tma_reduce(kind, tensor_desc.handle, coord, src.handle)


load_tile = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
store_tile = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global


@_core.builtin
def recast(buffer, dtype, shape, layout, _semantic=None):
    """The same shared memory under another shape and layout (the method of that name differs between versions)."""
    shape = [_core._unwrap_if_constexpr(x) for x in shape]
    return _semantic.memdesc_reinterpret(
        buffer, _core._unwrap_if_constexpr(dtype), shape, _core._unwrap_if_constexpr(layout)
    )


@gluon.jit
def copy_in(desc, batch, row, head, full, buffer):
    """Copy one (rows, D) tile in; rows and columns outside the tensor arrive as zeros."""
    tile = recast(buffer, desc.dtype, desc.block_shape, desc.layout)
    load_tile(desc, [batch, row, head, 0], full, tile)


@gluon.jit
def copy_out(desc, batch, row, head, buffer):
    """Copy one tile out; what lies outside the tensor is not written."""
    tile = recast(buffer, desc.dtype, desc.block_shape, desc.layout)
    store_tile(desc, [batch, row, head, 0], tile)


@gluon.jit
def add_out(desc, batch, row, head, col, buffer):
    """Add one float32 tile to the tensor, atomically element by element."""
    tile = recast(buffer, desc.dtype, desc.block_shape, desc.layout)
    reduce_add(desc, [batch, row, head, col], tile)
