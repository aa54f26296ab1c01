"""The forward pass in one kernel, for rules whose states need no help: no state but the last is ever written."""

from __future__ import annotations

import triton
import triton.language as tl

from workbench_kernels.linear_memory.portable.reads import decayed
from workbench_kernels.linear_memory.portable.states import before
from workbench_kernels.linear_memory.portable.tiles import (
    base_of,
    dot,
    features,
    matrix,
    put,
    put_matrix,
    row_place,
    scalar_gate,
    segment_range,
    state_base,
    values,
)


@triton.jit
def forward_kernel(q, k, v, g, start, totals, decays, out, final, rows, sizes, scale, f):
    """One segment of a row and a tile of values, chunk after chunk, with all key features of the state at hand."""
    pid = tl.program_id(0)
    across = tl.cdiv(sizes.value_dim, f.BV)
    segment = pid // across % sizes.segments
    head = pid // across // sizes.segments % sizes.heads
    r = pid // across // sizes.segments // sizes.heads
    d = tl.arange(0, f.BK)
    e = pid % across * f.BV + tl.arange(0, f.BV)
    i = tl.arange(0, f.C)
    key_head = head // sizes.group
    batch, begin, end, _first = row_place(rows, r, f)
    low, high = segment_range(tl.cdiv(end - begin, f.C).to(tl.int32), segment, sizes)
    index = tl.cast(r, tl.int64)
    state = tl.zeros([f.BK, f.BV], tl.float32)
    if start is not None:
        state += matrix(state_base(start, index, head, sizes), d, e, sizes, False)
    if totals is not None:
        state = before(state, totals, decays, index, 0, segment, 1, d, e, head, sizes, f)
    for n in range(low, high):
        token = begin + n * f.C
        count = tl.minimum(end - token, f.C).to(tl.int32)
        x = features(q, base_of(q, batch, token, head), i, d, count, sizes, f, False)
        y = features(k, base_of(k, batch, token, key_head), i, d, count, sizes, f, False).to(f.X)
        written = values(v, base_of(v, batch, token, key_head), i, e, count, sizes, f)
        scores = dot(x, tl.trans(y), f)
        read = dot(x, state, f)
        G = tl.zeros([f.C], tl.float32)
        if f.GATE == 1:
            G, total = scalar_gate(g, base_of(g, batch, token, head), i, count)
            read *= tl.exp(G)[:, None]
        read += dot(decayed(scores, G, i, f, False), written, f)
        put(out, base_of(out, batch, token, head), i, e, count, sizes.value_dim, read * scale)
        if f.GATE == 1:
            written = written.to(tl.float32) * tl.exp(total - G)[:, None]
            state *= tl.exp(total)
        state += dot(tl.trans(y), written, f)
    if segment == sizes.segments - 1:
        put_matrix(state_base(final, index, head, sizes), d, e, sizes, state)
