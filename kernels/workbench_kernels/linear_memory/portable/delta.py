"""The delta rule's own part: a chunk's writes as one triangular system (WY form), and its gradients.

Written values of a chunk solve (I + L) x = diag(beta) (v - (k exp(G)) state), L = strict lower part of
diag(beta) k k^T exp(G_i - G_j). With T = (I + L)^-1: U = T diag(beta) v, W = T diag(beta exp(G)) k, x = U - W state.
"""

from __future__ import annotations

import triton
import triton.language as tl

from workbench_kernels.linear_memory.portable.tiles import (
    base_of,
    chunk_place,
    chunk_tokens,
    dot,
    features,
    matrix,
    plain,
    put,
    scalar_gate,
    slope,
    state_base,
    values,
)


@triton.jit
def strict_decay(G, i, f, TURNED: tl.constexpr):
    """exp(G_i - G_j) for j < i, else 0; or its transpose."""
    if TURNED:
        below = i[:, None] < i[None, :]
        gap = G[None, :] - G[:, None]
    else:
        below = i[:, None] > i[None, :]
        gap = G[:, None] - G[None, :]
    if f.GATE == 1:
        return tl.where(below, tl.exp(tl.where(below, gap, 0.0)), 0.0)
    else:
        return tl.where(below, 1.0, 0.0)


@triton.jit
def gate_of(g, batch, token, head, i, count, f):
    if f.GATE == 1:
        return scalar_gate(g, base_of(g, batch, token, head), i, count)
    else:
        return tl.zeros([f.C], tl.float32), tl.zeros([], tl.float32)


@triton.jit
def products(k, base, i, count, sizes, f):
    """k k^T of the chunk."""
    kk = tl.zeros([f.C, f.C], tl.float32)
    for d0 in range(0, sizes.dim, f.BK):
        d = d0 + tl.arange(0, f.BK)
        left = features(k, base, i, d, count, sizes, f, False)
        right = features(k, base, i, d, count, sizes, f, True)
        kk += dot(left, right, f)
    return kk


@triton.jit
def exact_dot(a, b, f):
    """In float32 whatever the inputs are: what the solve is made of."""
    return tl.dot(a, b, input_precision=f.SOLVE)


@triton.jit
def inverse(lower, scratch, i, f):
    """(I + lower)^-1: blocks of 16 by substitution, row after row; then halves joined, 16 -> 32 -> 64.

    ``scratch`` is C x C floats of this program; rows of the blocks are read back from it, because a row of a tile
    lies in many threads.
    """
    cell = scratch + i[:, None] * f.C + i[None, :]
    tl.store(cell, lower)
    tl.debug_barrier()
    b = tl.arange(0, f.C // 16)
    r = tl.arange(0, 16)
    block = scratch + (b[:, None, None] * 16 + r[None, :, None]) * f.C + (b[:, None, None] * 16 + r[None, None, :])
    inner = -tl.load(block)
    for row in range(2, 16):
        line = -tl.load(scratch + (b[:, None] * 16 + row) * f.C + (b[:, None] * 16 + r[None, :]))  # b c
        line += tl.sum(line[:, :, None] * inner, 1)
        inner = tl.where((r == row)[None, :, None], line[:, None, :], inner)
    inner += tl.where((r[:, None] == r[None, :])[None, :, :], 1.0, 0.0)
    tl.debug_barrier()
    tl.store(block, inner)
    tl.debug_barrier()
    made = tl.load(cell, mask=(i[:, None] // 16) == (i[None, :] // 16), other=0.0)
    for level in tl.static_range(4, f.LEVELS):
        half = 1 << level
        joint = (i[:, None] // (2 * half) == i[None, :] // (2 * half)) & (i[:, None] // half > i[None, :] // half)
        made -= exact_dot(made, exact_dot(tl.where(joint, lower, 0.0), made, f), f)
    return made


@triton.jit
def prepare_kernel(k, v, g, beta, inverses, w, u, grown, left, rows, sizes, f):
    """T (C x C floats a chunk and head), W and U; if asked for, the decays up to a token and from it to the end."""
    pid = tl.program_id(0)
    head = pid % sizes.heads
    c = pid // sizes.heads
    r, n = chunk_place(rows, c, f)
    if r < 0:
        return
    batch, token, count, _first = chunk_tokens(rows, r, n, f)
    i = tl.arange(0, f.C)
    k_base = base_of(k, batch, token, head // sizes.group)
    rate = tl.load(base_of(beta, batch, token, head) + i * beta.n, mask=i < count, other=0.0).to(tl.float32)
    G, total = gate_of(g, batch, token, head, i, count, f)
    if grown is not None:
        tl.store(base_of(grown, batch, token, head) + i * grown.n, tl.exp(G), mask=i < count)
        tl.store(base_of(left, batch, token, head) + i * left.n, tl.exp(total - G), mask=i < count)
    lower = products(k, k_base, i, count, sizes, f) * strict_decay(G, i, f, False) * rate[:, None]
    scratch = inverses + (tl.cast(c, tl.int64) * sizes.heads + head) * (f.C * f.C)
    made = inverse(lower, scratch, i, f)
    tl.debug_barrier()
    tl.store(scratch + i[:, None] * f.C + i[None, :], made)
    for d0 in range(0, sizes.dim, f.BK):
        d = d0 + tl.arange(0, f.BK)
        y = features(k, k_base, i, d, count, sizes, f, False).to(tl.float32) * (rate * tl.exp(G))[:, None]
        put(w, base_of(w, batch, token, head), i, d, count, sizes.dim, dot(made, y, f))
    for e0 in range(0, sizes.value_dim, f.BV):
        e = e0 + tl.arange(0, f.BV)
        x = values(v, base_of(v, batch, token, head // sizes.group), i, e, count, sizes, f)
        x = x.to(tl.float32) * rate[:, None]
        put(u, base_of(u, batch, token, head), i, e, count, sizes.value_dim, dot(made, x, f))


@triton.jit
def solved_gradients(
    v, du, new_v, state, dv, batch, token, head, turned, inverse, rate, i, d, count, sizes, f, WHOLE: tl.constexpr
):
    """Minus the gradient of L, its transpose, part of beta's, minus the gradient of k exp(G) over beta (WHOLE alone).

    The chunk's writes x solve (I + L) x = b, so with z = T^T dx the gradient of b is z and that of L is -z x^T: no
    other product of T is needed, and x is kept (new_v). The transpose is made of products of its own, x dx^T T. Signs
    come last: a product that is subtracted takes registers of its own.
    """
    d_lower = tl.zeros([f.C, f.C], tl.float32)
    pairs = tl.zeros([f.C, f.C], tl.float32)
    d_rate = tl.zeros([f.C], tl.float32)
    d_key = tl.zeros([f.C, f.BK], tl.float32)
    for e0 in range(0, sizes.value_dim, f.BV):
        e = e0 + tl.arange(0, f.BV)
        d_x = plain(du, base_of(du, batch, token, head), i, e, count, sizes.value_dim, False).to(f.X)
        x = plain(new_v, base_of(new_v, batch, token, head), i, e, count, sizes.value_dim, False).to(f.X)
        z = dot(turned, d_x, f)
        pairs += dot(x, tl.trans(d_x), f)
        d_lower += dot(z, tl.trans(x), f)
        if WHOLE:
            d_key += dot(z, matrix(state, d, e, sizes, True), f)
        y = values(v, base_of(v, batch, token, head // sizes.group), i, e, count, sizes, f).to(tl.float32)
        d_rate += tl.sum(z * y, 1)
        put(dv, base_of(dv, batch, token, head), i, e, count, sizes.value_dim, z * rate[:, None])
    return d_lower, dot(pairs, inverse, f), d_rate, d_key


@triton.jit
def key_gradients(du, state, batch, token, head, turned, i, d, count, sizes, f):
    """Minus the gradient of k exp(G) over beta, features d: z h^T."""
    d_w = tl.zeros([f.C, f.BK], tl.float32)
    for e0 in range(0, sizes.value_dim, f.BV):
        e = e0 + tl.arange(0, f.BV)
        d_x = plain(du, base_of(du, batch, token, head), i, e, count, sizes.value_dim, False)
        d_w += dot(d_x, matrix(state, d, e, sizes, True), f)
    return dot(turned, d_w, f)


@triton.jit
def prepare_gradients_kernel(
    k, v, g, beta, inverses, h, new_v, du, dk, dv, dg, dbeta, rows, sizes, f
):  # fmt: skip
    """From du (the gradient of new_v) to k (added), v, g (added) and beta.

    The slope of the feature map is applied here, to all of k's gradient.
    """
    pid = tl.program_id(0)
    head = pid % sizes.heads
    c = pid // sizes.heads
    r, n = chunk_place(rows, c, f)
    if r < 0:
        return
    batch, token, count, first = chunk_tokens(rows, r, n, f)
    i = tl.arange(0, f.C)
    k_base = base_of(k, batch, token, head // sizes.group)
    state = state_base(h, first + n, head, sizes)
    rate = tl.load(base_of(beta, batch, token, head) + i * beta.n, mask=i < count, other=0.0).to(tl.float32)
    G, _total = gate_of(g, batch, token, head, i, count, f)
    grown = tl.exp(G)
    place = (tl.cast(c, tl.int64) * sizes.heads + head) * (f.C * f.C)
    inverse = tl.load(inverses + place + i[:, None] * f.C + i[None, :]).to(f.X)
    turned = tl.trans(inverse)

    d = tl.arange(0, f.BK)
    d_lower, d_lower_turned, d_rate, d_key = solved_gradients(
        v, du, new_v, state, dv, batch, token, head, turned, inverse, rate, i, d, count, sizes, f, f.BR <= f.BK
    )
    scores = products(k, k_base, i, count, sizes, f)
    d_lower *= -strict_decay(G, i, f, False)
    d_rate += tl.sum(d_lower * scores, 1)
    d_lower *= rate[:, None]
    d_gate = tl.zeros([f.C], tl.float32)
    if f.GATE == 1:
        d_gate += tl.sum(d_lower * scores, 1) - tl.sum(d_lower * scores, 0)
    both = d_lower.to(f.X)
    both_turned = (d_lower_turned * -strict_decay(G, i, f, True) * rate[None, :]).to(f.X)
    for d0 in range(0, sizes.dim, f.BK):
        d = d0 + tl.arange(0, f.BK)
        if f.BR > f.BK:
            d_key = key_gradients(du, state, batch, token, head, turned, i, d, count, sizes, f)
        d_key *= -grown[:, None]
        y = features(k, k_base, i, d, count, sizes, f, False)
        one = tl.sum(d_key * y.to(tl.float32), 1)
        d_rate += one
        d_gate += one * rate
        at = base_of(dk, batch, token, head)
        whole = d_key * rate[:, None] + plain(dk, at, i, d, count, sizes.dim, False)
        whole += dot(both, y, f)
        whole += dot(both_turned, y, f)
        put(dk, at, i, d, count, sizes.dim, whole * slope(y, f))
    tl.store(base_of(dbeta, batch, token, head) + i * dbeta.n, d_rate, mask=i < count)
    if f.GATE == 1:
        gate_at = base_of(dg, batch, token, head) + i * dg.n
        other = tl.load(gate_at, mask=i < count, other=0.0)
        tl.store(gate_at, other + tl.cumsum(d_gate, 0, reverse=True), mask=i < count)
