"""A few tokens after a known state (decoding): token by token, every rule, no gradients."""

from __future__ import annotations

import triton
import triton.language as tl

from workbench_kernels.linear_memory.portable.tiles import (
    base_of,
    matrix,
    put_matrix,
    row_place,
    state_base,
    taylor,
)


@triton.jit
def feature_row(x, base, d, sizes, f):
    if f.MAP == 3:
        one = tl.arange(0, 1)
        return tl.sum(taylor(x, base, one, d, 1, sizes, False), 0)
    y = tl.load(base + d, mask=d < sizes.dim, other=0.0).to(tl.float32)
    if f.MAP == 1:
        y = tl.where(d < sizes.dim, tl.where(y > 0, y + 1.0, tl.exp(y)), 0.0)
    elif f.MAP == 2:
        y = tl.maximum(y, 0.0)
    return y


@triton.jit
def step_kernel(q, k, v, g, beta, start, out, final, rows, sizes, scale, f):
    """Decay, write, read, as the recurrence is written; one program holds all key features of a tile of values."""
    pid = tl.program_id(0)
    across = tl.cdiv(sizes.value_dim, f.BV)
    head = pid // across % sizes.heads
    r = pid // across // sizes.heads
    d = tl.arange(0, f.BK)
    e = pid % across * f.BV + tl.arange(0, f.BV)
    batch, begin, end, _first = row_place(rows, r, f)
    index = tl.cast(r, tl.int64)
    key_head = head // sizes.group
    state = tl.zeros([f.BK, f.BV], tl.float32)
    if start is not None:
        state += matrix(state_base(start, index, head, sizes), d, e, sizes, False)
    for t in range(0, (end - begin).to(tl.int32)):
        token = begin + t
        x = feature_row(q, base_of(q, batch, token, head), d, sizes, f)
        y = feature_row(k, base_of(k, batch, token, key_head), d, sizes, f)
        written = tl.load(base_of(v, batch, token, key_head) + e, mask=e < sizes.width, other=0.0).to(tl.float32)
        if f.ONES:
            written = tl.where(e == sizes.width, 1.0, written)
        if f.GATE == 1:
            state *= tl.exp(tl.load(base_of(g, batch, token, head)).to(tl.float32))
        elif f.GATE == 2:
            place = base_of(g, batch, token, head) + d
            state *= tl.exp(tl.load(place, mask=d < sizes.dim, other=0.0).to(tl.float32))[:, None]
        if f.DELTA:
            rate = tl.load(base_of(beta, batch, token, head)).to(tl.float32)
            written = rate * (written - tl.sum(y[:, None] * state, 0))
        state += y[:, None] * written[None, :]
        read = tl.sum(x[:, None] * state, 0) * scale
        tl.store(base_of(out, batch, token, head) + e, read.to(out.data.dtype.element_ty), mask=e < sizes.value_dim)
    put_matrix(state_base(final, index, head, sizes), d, e, sizes, state)
