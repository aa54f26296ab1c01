"""Gradients of q, k and a scalar gate through the Taylor map, which is never written to memory.

Inside a chunk they go through s = q.k / sqrt(f) (the score is 1 + s + s^2/2); the part that reads or writes the state
goes through tiles of features, folded back onto the f components by products with 0/1 matrices.
"""

from __future__ import annotations

import triton
import triton.language as tl

from workbench_kernels.linear_memory.portable.reads import decayed
from workbench_kernels.linear_memory.portable.tiles import (
    base_of,
    chunk_place,
    chunk_tokens,
    dot,
    matrix,
    pair_of,
    plain,
    put,
    scalar_gate,
    state_base,
    taylor,
    values,
)


@triton.jit
def folded(x, base, grad, i, d, j, count, sizes, f):
    """The gradient of the raw components j from that of the features d: (C, BK) -> (C, BR)."""
    a, b = pair_of(d, sizes)
    root = tl.sqrt(tl.cast(sizes.raw, tl.float32))
    inside = (i[:, None] < count) & (d[None, :] < sizes.dim)
    lone = d <= sizes.raw
    xa = tl.load(base + i[:, None] * x.n + a[None, :], mask=inside & ~lone[None, :], other=0.0).to(tl.float32)
    xb = tl.load(base + i[:, None] * x.n + b[None, :], mask=inside & ~lone[None, :], other=1.0).to(tl.float32)
    size = tl.where(lone, 1.0 / tl.sqrt(root), 0.7071067811865476 / root)
    grad = grad * size[None, :]
    first = tl.where((a[:, None] == j[None, :]) & (d[:, None] > 0) & (d[:, None] < sizes.dim), 1.0, 0.0)
    second = tl.where((b[:, None] == j[None, :]) & ~lone[:, None] & (d[:, None] < sizes.dim), 1.0, 0.0)
    return dot(grad * xb, first, f) + dot(grad * xa, second, f)


@triton.jit
def value_pair(v, grad, batch, token, head, i, e, count, sizes, scale, f):
    out = plain(grad, base_of(grad, batch, token, head), i, e, count, sizes.value_dim, False)
    written = values(v, base_of(v, batch, token, head // sizes.group), i, e, count, sizes, f)
    return (out.to(tl.float32) * scale).to(f.X), written.to(f.X)


@triton.jit
def taylor_gradients_kernel(q, k, v, g, grad, h, dh, dq_out, dk_out, dg_out, tile_step, rows, sizes, scale, f):
    """One chunk and head; BK covers at least the raw components."""
    pid = tl.program_id(0)
    head = pid % sizes.heads
    r, n = chunk_place(rows, pid // sizes.heads, f)
    if r < 0:
        return
    batch, token, count, first = chunk_tokens(rows, r, n, f)
    i = tl.arange(0, f.C)
    j = tl.arange(0, f.BR)
    q_base = base_of(q, batch, token, head)
    k_base = base_of(k, batch, token, head // sizes.group)
    state = state_base(h, first + n, head, sizes)
    state_grad = state_base(dh, first + n, head, sizes)
    da = tl.zeros([f.C, f.C], tl.float32)
    da_turned = tl.zeros([f.C, f.C], tl.float32)
    for e0 in range(0, sizes.value_dim, f.BV):
        e = e0 + tl.arange(0, f.BV)
        out, written = value_pair(v, grad, batch, token, head, i, e, count, sizes, scale, f)
        da += dot(out, tl.trans(written), f)
        da_turned += dot(written, tl.trans(out), f)
    G = tl.zeros([f.C], tl.float32)
    total = tl.zeros([], tl.float32)
    if f.GATE == 1:
        G, total = scalar_gate(g, base_of(g, batch, token, head), i, count)
    root = tl.sqrt(tl.cast(sizes.raw, tl.float32))
    x = plain(q, q_base, i, j, count, sizes.raw, False)
    y = plain(k, k_base, i, j, count, sizes.raw, False)
    s = dot(x, plain(k, k_base, i, j, count, sizes.raw, True), f) / root
    da = decayed(da, G, i, f, False)
    each = tl.sum(da * (1.0 + s + 0.5 * s * s), 1)
    dq = dot(da * (1.0 + s), y, f) / root
    s = dot(y, plain(q, q_base, i, j, count, sizes.raw, True), f) / root
    da_turned = decayed(da_turned, G, i, f, True)
    each -= tl.sum(da_turned * (1.0 + s + 0.5 * s * s), 1)
    dk = dot(da_turned * (1.0 + s), x, f) / root

    end_part = tl.zeros([], tl.float32)
    for d0 in range(0, sizes.dim, f.BK):
        d = d0 + tl.arange(0, f.BK)
        dx = tl.zeros([f.C, f.BK], tl.float32)
        dy = tl.zeros([f.C, f.BK], tl.float32)
        for e0 in range(0, sizes.value_dim, f.BV):
            e = e0 + tl.arange(0, f.BV)
            out, written = value_pair(v, grad, batch, token, head, i, e, count, sizes, scale, f)
            held = matrix(state, d, e, sizes, True)
            held_grad = matrix(state_grad, d, e, sizes, True)
            dx += dot(out, held, f)
            dy += dot(written, held_grad, f)
            if f.GATE == 1:
                end_part += tl.exp(total) * tl.sum(held.to(tl.float32) * held_grad.to(tl.float32))
        dx *= tl.exp(G)[:, None]
        dy *= tl.exp(total - G)[:, None]
        if f.GATE == 1:
            own = tl.sum(taylor(k, k_base, i, d, count, sizes, False) * dy, 1)
            each += tl.sum(taylor(q, q_base, i, d, count, sizes, False) * dx, 1) - own
            end_part += tl.sum(own, 0)
        dq += folded(q, q_base, dx, i, d, j, count, sizes, f)
        dk += folded(k, k_base, dy, i, d, j, count, sizes, f)
    if f.GATE == 1:
        dg = tl.cumsum(each, 0, reverse=True) + end_part
        tl.store(base_of(dg_out, batch, token, head) + i * dg_out.n, dg, mask=i < count)
    put(dq_out, base_of(dq_out, batch, token, head), i, j, count, sizes.raw, dq)
    put(dk_out, base_of(dk_out, batch, token, head), i, j, count, sizes.raw, dk)
