"""What the Triton kernels are given, as named tuples, and how they are built from a problem and its tensors.

Nothing is copied: every tensor goes in as a pointer with its strides (in elements, broadcast dimensions with stride 0).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from workbench_kernels.masking import Masking
from workbench_kernels.softmax_attention.portable.configurations import Tiles
from workbench_kernels.softmax_attention.portable.plan import Plan
from workbench_kernels.softmax_attention.problem import Problem

LOG2_E = 1.4426950408889634
#: Keys and values of the heads that run side by side should stay in the second-level cache (50 MB on H100, 40 on A100).
CACHE_BYTES = 16 << 20


class Strided(NamedTuple):
    """(B, S, H, D) with the last dimension contiguous."""

    data: Any
    b: int
    n: int
    h: int


class Plane(NamedTuple):
    """(B, H, I, J), broadcast dimensions with stride 0; ``data`` None = not there."""

    data: Any
    b: int
    h: int
    i: int
    j: int


class Masks(NamedTuple):
    padding: Plane
    mask: Plane
    blocks: Plane


class Sizes(NamedTuple):
    heads: int
    group: int
    queries: int
    keys: int
    dim: int
    value_dim: int
    window: int
    block_rows: int
    block_cols: int
    span: int  # heads of one section of the grid
    flat_heads: int  # batch x heads of the grid


class Numbers(NamedTuple):
    scale: float
    scale_log2: float
    inner: float  # scale / softcap
    outer: float  # softcap in log-2 units
    seed: int
    threshold: int  # of 2^24: draws below are dropped
    kept: float  # 1 / (1 - dropout)


class Call(NamedTuple):
    q: Strided
    k: Strided
    v: Strided
    masks: Masks
    plan: Plan
    sizes: Sizes
    numbers: Numbers


class Flags(NamedTuple):
    """Compile-time constants (each wrapped in ``tl.constexpr``)."""

    BM: Any  # query positions of a tile
    BN: Any  # key positions of a tile
    BD: Any  # head dim, padded to a power of two
    BDV: Any
    EVEN: Any  # no padding of the head dim
    EVEN_V: Any
    CAUSAL: Any
    WINDOW: Any
    SOFTCAP: Any
    ADDITIVE: Any
    FOLDED: Any  # the scale joins the exponent's multiply-add
    DROPOUT: Any
    HEADS: Any  # grid of batch x heads
    SPLIT: Any  # a loop of its own for the tiles that need no band mask
    EDGES: Any  # tiles that a block mask leaves may cross the diagonal, a window's edge or the last position
    WIDE: Any  # 64-bit offsets inside a tile
    PRECISE: Any
    PRECISION: Any


def strided(x: Tensor) -> Strided:
    return Strided(x, x.stride(0), x.stride(1), x.stride(2))


def plane(x: Tensor | None) -> Plane:
    if x is None:
        return Plane(None, 0, 0, 0, 0)
    data = x.view(torch.uint8) if x.dtype == torch.bool else x
    return Plane(data, *(0 if n == 1 else s for n, s in zip(x.shape, x.stride(), strict=True)))


def masks_of(masking: Masking, blocks: Tensor | None) -> Masks:
    padding = None if masking.key_padding is None else masking.key_padding[:, None, None]
    mask = masking.allowed if masking.bias is None else masking.bias
    return Masks(plane(padding), plane(None if mask is None else mask.detach()), plane(blocks))


def numbers_of(problem: Problem) -> Numbers:
    cap = problem.softcap or 1.0
    drop = np.float32(problem.dropout)  # compared in float32, as the specification does
    threshold = int(np.ceil(drop * np.float32(1 << 24)))
    kept = float(np.float32(1.0) / np.float32(1.0 - problem.dropout))
    scale = problem.scale
    return Numbers(scale, scale * LOG2_E, scale / cap, cap * LOG2_E, problem.seed * 0x1F123BB5, threshold, kept)


def sizes_of(problem: Problem, q: Tensor, k: Tensor, v: Tensor, *, keys_grid: bool = False) -> Sizes:
    batch, queries, heads, dim = q.shape
    keys, kv_heads = k.shape[1], k.shape[2]
    group = heads // kv_heads
    length = queries * group if keys_grid else keys
    fits = max(1, CACHE_BYTES // max(1, length * (dim + v.shape[3]) * q.element_size()))
    per_key_head = 1 if keys_grid else group
    flat = batch * kv_heads * per_key_head
    rows, cols = problem.masking.block_size if problem.masking.blocks is not None else (1, 1)
    window = problem.masking.window or 0
    span = min(fits * per_key_head, max(flat, 1))
    return Sizes(heads, group, queries, keys, dim, v.shape[3], window, rows, cols, span, flat)


def flags_of(problem: Problem, tensors: Sequence[Tensor], tiles: Tiles, *, heads_grid: bool = False) -> Flags:
    """``tensors`` begins with q, k, v; the others are only asked for their strides."""
    q, _, v = tensors[:3]
    masking, dim, value_dim = problem.masking, padded(q.shape[3]), padded(v.shape[3])
    ragged = masking.queries % tiles.rows or masking.keys % tiles.cols
    masked = any(x is not None for x in (masking.key_padding, masking.allowed, masking.bias))
    folded = problem.softcap is None and masking.bias is None and problem.scale > 0
    found = Flags(
        BM=tiles.rows,
        BN=tiles.cols,
        BD=dim,
        BDV=value_dim,
        EVEN=dim == q.shape[3],
        EVEN_V=value_dim == v.shape[3],
        CAUSAL=masking.causal,
        WINDOW=masking.window is not None,
        SOFTCAP=problem.softcap is not None,
        ADDITIVE=masking.bias is not None,
        FOLDED=folded,
        DROPOUT=problem.dropout > 0,
        HEADS=heads_grid,
        SPLIT=tiles.split and not masked,
        EDGES=masking.causal or masking.window is not None or bool(ragged),
        WIDE=any(x.stride(1) >= 1 << 22 for x in tensors),
        PRECISE=q.dtype == torch.float32,
        PRECISION=precision_of(q.dtype),
    )
    return Flags(*map(tl.constexpr, found))


def padded(dim: int) -> int:
    """The next power of two, at least the 16 that a tensor-core product needs."""
    return max(16, triton.next_power_of_2(dim))


def precision_of(dtype: torch.dtype) -> str:
    """float32 products are exact unless torch was told otherwise (``torch.set_float32_matmul_precision``)."""
    if dtype != torch.float32 or torch.get_float32_matmul_precision() == "highest":
        return "ieee"
    return "tf32"
