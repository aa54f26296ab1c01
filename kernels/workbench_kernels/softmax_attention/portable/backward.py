"""Backward attention (Dao 2023, Algorithm 2), split so that every gradient has one writer and the bits never change.

Three kernels: rowsum(dO * O) once, then dK and dV with one program a key block, then dQ with one program a row block.
Seven products instead of five, no atomics. Scores of the dK, dV kernel are computed transposed, S^T = K Q^T: P^T and
dS^T are then plain left operands, and no accumulator is ever transposed (Triton on Hopper can get that wrong).
"""

from __future__ import annotations

import triton
import triton.language as tl

from workbench_kernels.softmax_attention.portable.tiles import (
    LOG2_E,
    dropped,
    finish_scores,
    head_base,
    key_ranges,
    load_tile,
    lone_tile,
    offsets,
    place_of,
    query_ranges,
    store_tile,
)


@triton.jit
def delta_kernel(out, grad, lse, grad_lse, delta, shift, heads, queries, width, BM: tl.constexpr, BDV: tl.constexpr):
    """delta = rowsum(dO * O) - dLSE, and the exponent's shift: the LSE in log-2 units, +inf where nothing is seen."""
    blocks = tl.cdiv(queries, BM)
    flat = tl.program_id(0) // blocks
    row = tl.program_id(0) % blocks * BM
    batch = flat // heads
    head = flat % heads
    o = lone_tile(out, batch, head, row, queries, width, BM, BDV, False, False, True)
    do = lone_tile(grad, batch, head, row, queries, width, BM, BDV, False, False, True)
    total = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    rows = row + tl.arange(0, BM)
    at = tl.cast(flat, tl.int64) * queries + rows
    level = tl.load(lse + at, mask=rows < queries, other=0.0)
    if grad_lse.data is not None:
        there = head_base(grad_lse, batch, head) + rows.to(tl.int64) * grad_lse.n
        total -= tl.load(there, mask=rows < queries, other=0.0).to(tl.float32)
    empty = level == float("-inf")
    tl.store(delta + at, tl.where(empty, 0.0, total), mask=rows < queries)
    tl.store(shift + at, tl.where(empty, float("inf"), level * LOG2_E), mask=rows < queries)


@triton.jit
def weights_of(s, shift, call, f):
    """Probabilities of a tile from its scores and the rows' shift (broadcast by the caller)."""
    if f.FOLDED:
        return tl.math.exp2(s * call.numbers.scale_log2 - shift)
    else:
        return tl.math.exp2(s - shift)


@triton.jit
def _visit_rows(state, kv, start, bases, tiles, stats, j, batch, head, call, grad, f, EDGE: tl.constexpr):
    """One row block seen from a key block: adds to dK and dV."""
    dk, dv = state
    k, v = kv
    sizes = call.sizes
    q = load_tile(call.q, bases[0], tiles[0], start, sizes.queries, sizes.dim, f.BM, f.BD, True, EDGE, f.EVEN)  # d m
    rows = start + tl.arange(0, f.BM)
    shift = tl.load(stats[0] + rows, mask=rows < sizes.queries, other=float("inf"))
    s = tl.dot(k, q, input_precision=f.PRECISION)  # n m
    s, slope = finish_scores(s, rows[None, :], j, batch, head, call, f, EDGE, False)
    p = weights_of(s, shift[None, :], call, f)
    do = load_tile(grad, bases[1], tiles[1], start, sizes.queries, sizes.value_dim, f.BM, f.BDV, False, EDGE, f.EVEN_V)
    if f.DROPOUT:
        z = dropped(p, rows[None, :], j, batch, head, call).to(do.dtype)
    else:
        z = p.to(do.dtype)
    dv = tl.dot(z, do, dv, input_precision=f.PRECISION)  # n dv
    dp = tl.dot(v, tl.trans(do), input_precision=f.PRECISION)  # n m
    if f.DROPOUT:
        dp = dropped(dp, rows[None, :], j, batch, head, call)
    delta = tl.load(stats[1] + rows, mask=rows < sizes.queries, other=0.0)
    ds = p * (dp - delta[None, :])
    if f.SOFTCAP:
        ds = ds * slope
    dk = tl.dot(ds.to(q.dtype), tl.trans(q), dk, input_precision=f.PRECISION)  # n d
    return dk, dv


@triton.jit
def _key_block(col, batch, kv_head, call, grad, shift, delta, dk_out, dv_out, f):
    """dK and dV of one key block, summed over the query heads of its group in order."""
    sizes = call.sizes
    kv = (
        lone_tile(call.k, batch, kv_head, col, sizes.keys, sizes.dim, f.BN, f.BD, False, f.EVEN, f.WIDE),
        lone_tile(call.v, batch, kv_head, col, sizes.keys, sizes.value_dim, f.BN, f.BDV, False, f.EVEN_V, f.WIDE),
    )
    tiles = (offsets(call.q, f.BM, f.BD, True, f.WIDE), offsets(grad, f.BM, f.BDV, False, f.WIDE))
    j = col + tl.arange(0, f.BN)[:, None]
    state = (tl.zeros([f.BN, f.BD], tl.float32), tl.zeros([f.BN, f.BDV], tl.float32))
    for member in range(0, sizes.group):
        head = kv_head * sizes.group + member
        bases = (head_base(call.q, batch, head), head_base(grad, batch, head))
        flat = tl.cast(batch * sizes.heads + head, tl.int64) * sizes.queries
        stats = (shift + flat, delta + flat)
        if call.plan.tiles is not None:
            line = tl.cast(batch, tl.int64) * call.plan.b + tl.cast(head, tl.int64) * call.plan.h + col // f.BN
            for t in range(0, tl.load(call.plan.counts + line)):
                start = tl.load(call.plan.tiles + line * call.plan.width + t) * f.BM
                state = _visit_rows(state, kv, start, bases, tiles, stats, j, batch, head, call, grad, f, f.EDGES)
        else:
            low, full_low, full_high, high = query_ranges(col, sizes, f)
            if f.SPLIT:
                if f.CAUSAL:
                    for start in range(low, tl.minimum(full_low, high), f.BM):
                        state = _visit_rows(state, kv, start, bases, tiles, stats, j, batch, head, call, grad, f, True)
                for start in range(full_low, full_high, f.BM):
                    state = _visit_rows(state, kv, start, bases, tiles, stats, j, batch, head, call, grad, f, False)
                for start in range(full_high, high, f.BM):
                    state = _visit_rows(state, kv, start, bases, tiles, stats, j, batch, head, call, grad, f, True)
            else:  # three copies of the loop cost registers
                for start in range(low, high, f.BM):
                    state = _visit_rows(state, kv, start, bases, tiles, stats, j, batch, head, call, grad, f, True)
    dk, dv = state
    dk = dk * call.numbers.scale
    store_tile(dk_out, head_base(dk_out, batch, kv_head), col, sizes.keys, sizes.dim, dk, f.BN, f.BD)
    store_tile(dv_out, head_base(dv_out, batch, kv_head), col, sizes.keys, sizes.value_dim, dv, f.BN, f.BDV)


@triton.jit
def keys_kernel(call, grad, shift, delta, dk, dv, f):
    """Grid: one program a (key block, batch, key head), or with HEADS one a (batch, key head)."""
    sizes = call.sizes
    kv_heads = sizes.heads // sizes.group
    blocks = tl.cdiv(sizes.keys, f.BN)
    if f.HEADS:
        flat = tl.program_id(0)
        for n in range(0, blocks):
            _key_block(n * f.BN, flat // kv_heads, flat % kv_heads, call, grad, shift, delta, dk, dv, f)
    else:  # under a causal mask the first keys have the most queries: the longest programs come first
        block, flat = place_of(tl.program_id(0), blocks, sizes)
        _key_block(block * f.BN, flat // kv_heads, flat % kv_heads, call, grad, shift, delta, dk, dv, f)


@triton.jit
def _visit_keys(dq, q, do, stats, start, bases, tiles, i, batch, head, call, f, BAND: tl.constexpr):
    """One key block seen from a row block: adds to dQ."""
    sizes = call.sizes
    k = load_tile(call.k, bases[0], tiles[0], start, sizes.keys, sizes.dim, f.BN, f.BD, True, BAND, f.EVEN)  # d n
    s = tl.dot(q, k, input_precision=f.PRECISION)  # m n
    j = start + tl.arange(0, f.BN)[None, :]
    s, slope = finish_scores(s, i, j, batch, head, call, f, BAND, BAND)
    p = weights_of(s, stats[0][:, None], call, f)
    v = load_tile(call.v, bases[1], tiles[1], start, sizes.keys, sizes.value_dim, f.BN, f.BDV, True, BAND, f.EVEN_V)
    dp = tl.dot(do, v, input_precision=f.PRECISION)  # m n
    if f.DROPOUT:
        dp = dropped(dp, i, j, batch, head, call)
    ds = p * (dp - stats[1][:, None])
    if f.SOFTCAP:
        ds = ds * slope
    return tl.dot(ds.to(k.dtype), tl.trans(k), dq, input_precision=f.PRECISION)  # m d


@triton.jit
def _row_block(row, batch, head, call, grad, shift, delta, dq_out, f):
    sizes = call.sizes
    tiles = (offsets(call.k, f.BN, f.BD, True, f.WIDE), offsets(call.v, f.BN, f.BDV, True, f.WIDE))
    bases = (head_base(call.k, batch, head // sizes.group), head_base(call.v, batch, head // sizes.group))
    q = lone_tile(call.q, batch, head, row, sizes.queries, sizes.dim, f.BM, f.BD, False, f.EVEN, f.WIDE)
    do = lone_tile(grad, batch, head, row, sizes.queries, sizes.value_dim, f.BM, f.BDV, False, f.EVEN_V, f.WIDE)
    rows = row + tl.arange(0, f.BM)
    i = rows[:, None]
    flat = tl.cast(batch * sizes.heads + head, tl.int64) * sizes.queries + rows
    stats = (
        tl.load(shift + flat, mask=rows < sizes.queries, other=float("inf")),
        tl.load(delta + flat, mask=rows < sizes.queries, other=0.0),
    )
    dq = tl.zeros([f.BM, f.BD], tl.float32)
    if call.plan.tiles is not None:
        line = tl.cast(batch, tl.int64) * call.plan.b + tl.cast(head, tl.int64) * call.plan.h + row // f.BM
        for t in range(0, tl.load(call.plan.counts + line)):
            start = tl.load(call.plan.tiles + line * call.plan.width + t) * f.BN
            dq = _visit_keys(dq, q, do, stats, start, bases, tiles, i, batch, head, call, f, f.EDGES)
    else:
        low, full_low, full_high, high = key_ranges(row, sizes, f)
        if f.SPLIT:
            if f.WINDOW:
                for start in range(low, tl.minimum(full_low, high), f.BN):
                    dq = _visit_keys(dq, q, do, stats, start, bases, tiles, i, batch, head, call, f, True)
            for start in range(full_low, full_high, f.BN):
                dq = _visit_keys(dq, q, do, stats, start, bases, tiles, i, batch, head, call, f, False)
            for start in range(full_high, high, f.BN):
                dq = _visit_keys(dq, q, do, stats, start, bases, tiles, i, batch, head, call, f, True)
        else:
            for start in range(low, high, f.BN):
                dq = _visit_keys(dq, q, do, stats, start, bases, tiles, i, batch, head, call, f, True)
    dq = dq * call.numbers.scale
    store_tile(dq_out, head_base(dq_out, batch, head), row, sizes.queries, sizes.dim, dq, f.BM, f.BD)


@triton.jit
def queries_kernel(call, grad, shift, delta, dq, f):
    """Grid as in the forward kernel."""
    sizes = call.sizes
    blocks = tl.cdiv(sizes.queries, f.BM)
    if f.HEADS:
        flat = tl.program_id(0)
        for n in range(0, blocks):
            _row_block(n * f.BM, flat // sizes.heads, flat % sizes.heads, call, grad, shift, delta, dq, f)
    else:
        block, flat = place_of(tl.program_id(0), blocks, sizes)
        if f.CAUSAL:
            block = blocks - 1 - block
        _row_block(block * f.BM, flat // sizes.heads, flat % sizes.heads, call, grad, shift, delta, dq, f)
