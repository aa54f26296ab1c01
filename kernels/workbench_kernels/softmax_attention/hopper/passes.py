"""The two elementwise passes around the backward kernel, in Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["queries", "heads", "width", "padded"])
def row_terms(
    out, grad, lse, grad_lse, lse_log2, delta, queries, heads, width, padded,
    so_b, so_s, so_h, sg_b, sg_s, sg_h, HAS_GRAD_LSE: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """delta = rowsum(dO * O) - dLSE and the LSE in log-2 units, both (B, H, padded).

    A row that sees nothing, and one beyond the sequence, gets +inf and 0: its weights come out as exp2(-inf) = 0.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(1) % heads
    batch = (tl.program_id(1) // heads).to(tl.int64)
    col = tl.arange(0, D)
    real = row < queries
    cells = real[:, None] & (col < width)[None, :]
    at = row.to(tl.int64)[:, None]
    o = tl.load(out + batch * so_b + head * so_h + at * so_s + col[None, :], mask=cells, other=0.0)
    g = tl.load(grad + batch * sg_b + head * sg_h + at * sg_s + col[None, :], mask=cells, other=0.0)
    term = tl.sum(o.to(tl.float32) * g.to(tl.float32), 1)
    flat = (batch * queries + row) * heads + head
    value = tl.load(lse + flat, mask=real, other=float("-inf"))
    if HAS_GRAD_LSE:
        term -= tl.load(grad_lse + flat, mask=real & (value != float("-inf")), other=0.0)
    target = (batch * heads + head) * padded + row
    tl.store(lse_log2 + target, tl.where(value == float("-inf"), float("inf"), value * 1.4426950408889634))
    tl.store(delta + target, term)


@triton.jit(do_not_specialize=["count", "width"])
def scaled_cast(source, target, scale, count, width, D: tl.constexpr, BLOCK: tl.constexpr):
    """target = source * scale in the target's dtype, rows of ``width`` from rows of D columns.

    Within sixteen columns the source is in the order in which the backward kernel's threads hold them: column
    8 i + 2 t + e (i, e in 0..1, t in 0..3) lies at 4 t + 2 i + e.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = at // width
    col = (at % width).to(tl.int32)
    place = (col & ~15) + ((col >> 1) & 3) * 4 + ((col >> 3) & 1) * 2 + (col & 1)
    value = tl.load(source + row * D + place, mask=at < count, other=0.0)
    tl.store(target + at, (value * scale).to(target.dtype.element_ty), mask=at < count)
