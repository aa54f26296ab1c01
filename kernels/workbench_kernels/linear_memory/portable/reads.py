"""The parallel part, a program a chunk: reads, and the gradients of values, queries, keys and gates."""

from __future__ import annotations

import triton
import triton.language as tl

from workbench_kernels.linear_memory.portable.tiles import (
    base_of,
    chunk_place,
    chunk_tokens,
    dot,
    features,
    level_pairs,
    level_scores,
    level_scores_turned,
    matrix,
    plain,
    put,
    scalar_gate,
    slope,
    state_base,
    towards,
    values,
)


@triton.jit
def raw_scores(q, k, batch, token, head, i, count, sizes, f, TURNED: tl.constexpr):
    """1 + s + s^2/2 with s = q.k / sqrt(f), or its transpose (rows are keys): the Taylor map without its features."""
    d = tl.arange(0, f.BK)
    q_base = base_of(q, batch, token, head)
    k_base = base_of(k, batch, token, head // sizes.group)
    if TURNED:
        left = plain(k, k_base, i, d, count, sizes.raw, False)
        right = plain(q, q_base, i, d, count, sizes.raw, True)
    else:
        left = plain(q, q_base, i, d, count, sizes.raw, False)
        right = plain(k, k_base, i, d, count, sizes.raw, True)
    s = dot(left, right, f) / tl.sqrt(tl.cast(sizes.raw, tl.float32))
    return 1.0 + s + 0.5 * s * s


@triton.jit
def decayed(scores, G, i, f, TURNED: tl.constexpr):
    """Scores of j <= i, times exp(G_i - G_j) with a scalar gate; the decay is masked before it is taken."""
    if TURNED:
        seen = i[:, None] <= i[None, :]
        gap = G[None, :] - G[:, None]
    else:
        seen = i[:, None] >= i[None, :]
        gap = G[:, None] - G[None, :]
    if f.GATE == 1:
        scores *= tl.exp(tl.where(seen, gap, 0.0))
    return tl.where(seen, scores, 0.0)


@triton.jit
def reads_kernel(q, k, v, g, h, out, rows, sizes, scale, f):
    """out = (q exp(G)) h + (q k^T, decayed, causal) v; with the delta rule v is new_v."""
    pid = tl.program_id(0)
    across = tl.cdiv(sizes.value_dim, f.BV)
    head = pid // across % sizes.heads
    c = pid // across // sizes.heads
    r, n = chunk_place(rows, c, f)
    if r < 0:
        return
    batch, token, count, first = chunk_tokens(rows, r, n, f)
    i = tl.arange(0, f.C)
    e = pid % across * f.BV + tl.arange(0, f.BV)
    key_head = head // sizes.group
    state = state_base(h, first + n, head, sizes)
    g_base = base_of(g, batch, token, head) if f.GATE > 0 else 0

    read = tl.zeros([f.C, f.BV], tl.float32)
    scores = tl.zeros([f.C, f.C], tl.float32)
    if f.MAP == 3:
        scores += raw_scores(q, k, batch, token, head, i, count, sizes, f, False)
    for d0 in range(0, sizes.dim, f.BK):
        d = d0 + tl.arange(0, f.BK)
        x = features(q, base_of(q, batch, token, head), i, d, count, sizes, f, False)
        seen = x
        if f.MAP != 3:
            kt = features(k, base_of(k, batch, token, key_head), i, d, count, sizes, f, True)
            if f.GATE == 2:
                G = plain(g, g_base, i, d, count, sizes.dim, False)
                Gt = plain(g, g_base, i, d, count, sizes.dim, True)
                scores += level_scores(x, kt, G, Gt, g, g_base, i, d, count, sizes, f)
                seen = x * tl.exp(G)
            else:
                scores += dot(x, kt, f)
        read += dot(seen, matrix(state, d, e, sizes, False), f)
    G = tl.zeros([f.C], tl.float32)
    if f.GATE == 1:
        G, _total = scalar_gate(g, g_base, i, count)
        read *= tl.exp(G)[:, None]
    if f.DELTA:
        written = plain(v, base_of(v, batch, token, head), i, e, count, sizes.value_dim, False)
    else:
        written = values(v, base_of(v, batch, token, key_head), i, e, count, sizes, f)
    read += dot(decayed(scores, G, i, f, False), written, f)
    put(out, base_of(out, batch, token, head), i, e, count, sizes.value_dim, read * scale)


@triton.jit
def value_gradients_kernel(q, k, g, grad, dh, dv, rows, sizes, scale, f):
    """dv = (k q^T, decayed) grad + (k exp(total - G)) dh; with the delta rule the first part alone."""
    pid = tl.program_id(0)
    across = tl.cdiv(sizes.value_dim, f.BV)
    head = pid // across % sizes.heads
    r, n = chunk_place(rows, pid // across // sizes.heads, f)
    if r < 0:
        return
    batch, token, count, first = chunk_tokens(rows, r, n, f)
    i = tl.arange(0, f.C)
    e = pid % across * f.BV + tl.arange(0, f.BV)
    key_head = head // sizes.group
    g_base = base_of(g, batch, token, head) if f.GATE > 0 else 0

    made = tl.zeros([f.C, f.BV], tl.float32)
    scores = tl.zeros([f.C, f.C], tl.float32)
    if f.MAP == 3:
        scores += raw_scores(q, k, batch, token, head, i, count, sizes, f, True)
    for d0 in range(0, sizes.dim, f.BK):
        d = d0 + tl.arange(0, f.BK)
        x = features(k, base_of(k, batch, token, key_head), i, d, count, sizes, f, False)
        kept = x
        if f.MAP != 3:
            qt = features(q, base_of(q, batch, token, head), i, d, count, sizes, f, True)
            if f.GATE == 2:
                G = plain(g, g_base, i, d, count, sizes.dim, False)
                Gt = plain(g, g_base, i, d, count, sizes.dim, True)
                scores += level_scores_turned(qt, x, G, Gt, g, g_base, i, d, count, sizes, f)
                total_d = tl.load(g_base + (count - 1) * g.n + d, mask=d < sizes.dim, other=0.0)
                kept = x * tl.exp(total_d[None, :] - G)
            else:
                scores += dot(x, qt, f)
        if not f.DELTA:
            made += dot(kept, matrix(state_base(dh, first + n, head, sizes), d, e, sizes, False), f)
    G = tl.zeros([f.C], tl.float32)
    if f.GATE == 1:
        G, total = scalar_gate(g, g_base, i, count)
        made *= tl.exp(total - G)[:, None]
    out = plain(grad, base_of(grad, batch, token, head), i, e, count, sizes.value_dim, False).to(tl.float32) * scale
    made += dot(decayed(scores, G, i, f, True), out, f)
    put(dv, base_of(dv, batch, token, head), i, e, count, sizes.value_dim, made)


@triton.jit
def score_gradients(v, grad, h, dh, batch, token, head, chunk, i, d, count, sizes, scale, f):
    """(dA, dA^T, grad h^T, v dh^T, sum_v h dh) of one chunk, before decays: what the tiles of values add up to."""
    da = tl.zeros([f.C, f.C], tl.float32)
    da_turned = tl.zeros([f.C, f.C], tl.float32)
    dq = tl.zeros([f.C, f.BK], tl.float32)
    dk = tl.zeros([f.C, f.BK], tl.float32)
    held = tl.zeros([f.BK], tl.float32)
    for e0 in range(0, sizes.value_dim, f.BV):
        e = e0 + tl.arange(0, f.BV)
        out = plain(grad, base_of(grad, batch, token, head), i, e, count, sizes.value_dim, False)
        out = (out.to(tl.float32) * scale).to(f.X)
        if f.DELTA:
            written = plain(v, base_of(v, batch, token, head), i, e, count, sizes.value_dim, False).to(f.X)
        else:
            written = values(v, base_of(v, batch, token, head // sizes.group), i, e, count, sizes, f).to(f.X)
        da += dot(out, tl.trans(written), f)
        da_turned += dot(written, tl.trans(out), f)
        state = matrix(state_base(h, chunk, head, sizes), d, e, sizes, True)
        state_grad = matrix(state_base(dh, chunk, head, sizes), d, e, sizes, True)
        dq += dot(out, state, f)
        dk += dot(written, state_grad, f)
        if f.GATE > 0:
            held += tl.sum(state.to(tl.float32) * state_grad.to(tl.float32), 0)
    return da, da_turned, dq, dk, held


@triton.jit
def gradients_kernel(q, k, v, g, grad, h, dh, dq_out, dk_out, dg_out, tile_step, rows, sizes, scale, f):
    """Gradients of q, k and the log decay of one chunk, a tile of features; dg of a scalar gate: (tiles, B, S, H)."""
    pid = tl.program_id(0)
    tiles = tl.cdiv(sizes.dim, f.BK)
    head = pid // tiles % sizes.heads
    r, n = chunk_place(rows, pid // tiles // sizes.heads, f)
    if r < 0:
        return
    batch, token, count, first = chunk_tokens(rows, r, n, f)
    i = tl.arange(0, f.C)
    d = pid % tiles * f.BK + tl.arange(0, f.BK)
    da, da_turned, dq, dk, held = score_gradients(
        v, grad, h, dh, batch, token, head, first + n, i, d, count, sizes, scale, f
    )
    x = features(q, base_of(q, batch, token, head), i, d, count, sizes, f, False)
    y = features(k, base_of(k, batch, token, head // sizes.group), i, d, count, sizes, f, False)
    if f.GATE == 2:
        g_base = base_of(g, batch, token, head)
        G = plain(g, g_base, i, d, count, sizes.dim, False)
        total_d = tl.load(g_base + (count - 1) * g.n + d, mask=d < sizes.dim, other=0.0)
        dq *= tl.exp(G)
        dk *= tl.exp(total_d[None, :] - G)
        last = tl.sum(y * dk, 0) + tl.exp(total_d) * held
        own = i[:, None] == i[None, :]
        dq += dot(tl.where(own, da, 0.0), y, f)
        dk += dot(tl.where(own, da_turned, 0.0), x, f)
        for level in range(f.LEVELS):
            half = 1 << level
            ahead = towards(g, g_base, G, i, d, count, sizes.dim, half, False, False)
            behind = towards(g, g_base, G, i, d, count, sizes.dim, half, True, False)
            pairs = level_pairs(i[:, None], i[None, :], half)
            turned = level_pairs(i[None, :], i[:, None], half)
            dq += ahead * dot(tl.where(pairs, da, 0.0), y * behind, f)
            dk += behind * dot(tl.where(turned, da_turned, 0.0), x * ahead, f)
        dg = tl.cumsum(x * dq - y * dk, 0, reverse=True) + last[None, :]
        put(dg_out, base_of(dg_out, batch, token, head), i, d, count, sizes.dim, dg)
    else:
        G = tl.zeros([f.C], tl.float32)
        if f.GATE == 1:
            G, total = scalar_gate(g, base_of(g, batch, token, head), i, count)
            dq *= tl.exp(G)[:, None]
            dk *= tl.exp(total - G)[:, None]
            end_part = tl.sum(tl.sum(y * dk, 1), 0) + tl.exp(total) * tl.sum(held, 0)
        dq += dot(decayed(da, G, i, f, False), y, f)
        dk += dot(decayed(da_turned, G, i, f, True), x, f)
        if f.GATE == 1:
            each = tl.sum(x * dq - y * dk, 1)
            dg1 = tl.cumsum(each, 0, reverse=True) + end_part
            place = base_of(dg_out, batch, token, head) + tl.cast(pid % tiles, tl.int64) * tile_step
            tl.store(place + i * dg_out.n, dg1, mask=i < count)
    put(dq_out, base_of(dq_out, batch, token, head), i, d, count, sizes.dim, dq * slope(x, f))
    put(dk_out, base_of(dk_out, batch, token, head), i, d, count, sizes.dim, dk if f.DELTA else dk * slope(y, f))
