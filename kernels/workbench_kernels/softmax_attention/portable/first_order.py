"""FlashAttention's first loop order, faithfully (Dao et al. 2022, Algorithms 1 and 4): keys outside, queries inside.

One program owns a (batch, head). For every key block it walks over all query blocks, and for each it reads O, l and m
from memory, improves them and writes them back: the traffic that the second version's order saves. The backward pass
reads and writes dQ in the same way. Key heads shared by a group are handled by the program of the group, so that
nothing needs atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from workbench_kernels.softmax_attention.portable.tiles import (
    dropped,
    finish_scores,
    head_base,
    load_tile,
    lone_tile,
    offsets,
    query_ranges,
    store_tile,
)


@triton.jit
def live(call, row, col, batch, head, f):
    """Whether the block mask leaves anything of a tile (True without one)."""
    if call.plan.tiles is None:
        return True
    else:
        line = tl.cast(batch, tl.int64) * call.plan.b + tl.cast(head, tl.int64) * call.plan.h + row // f.BM
        return tl.load(call.plan.tiles + line * call.plan.width + col // f.BN) != 0


@triton.jit
def _improve(row, col, k, v, here, batch, head, call, out, top_all, total_all, f):
    """Lines 8 to 13 of Algorithm 1 for one tile."""
    sizes = call.sizes
    rows = row + tl.arange(0, f.BM)
    base = head_base(call.q, batch, head)
    q = load_tile(call.q, base, here[0], row, sizes.queries, sizes.dim, f.BM, f.BD, False, True, f.EVEN)
    base = head_base(out, batch, head)
    o = load_tile(out, base, here[1], row, sizes.queries, sizes.value_dim, f.BM, f.BDV, False, True, f.EVEN_V)
    flat = tl.cast(batch * sizes.heads + head, tl.int64) * sizes.queries + rows
    top = tl.load(top_all + flat, mask=rows < sizes.queries, other=0.0)
    total = tl.load(total_all + flat, mask=rows < sizes.queries, other=1.0)
    i = rows[:, None]
    j = col + tl.arange(0, f.BN)[None, :]
    s = tl.dot(q, k, input_precision=f.PRECISION)
    s, _ = finish_scores(s, i, j, batch, head, call, f, True, True)
    if f.FOLDED:
        s = s * call.numbers.scale_log2
    tile_top = tl.max(s, 1)
    tile_shift = tl.where(tile_top == float("-inf"), 0.0, tile_top)
    p = tl.math.exp2(s - tile_shift[:, None])
    tile_total = tl.sum(p, 1)
    new_top = tl.maximum(top, tile_top)
    shift = tl.where(new_top == float("-inf"), 0.0, new_top)
    before = tl.math.exp2(top - shift) * total
    now = tl.math.exp2(tile_top - shift)
    new_total = before + now * tile_total
    if f.DROPOUT:
        p = dropped(p, i, j, batch, head, call)
    divide = tl.where(new_total == 0.0, 1.0, new_total)
    o = o * (before / divide)[:, None]
    o += tl.dot(p.to(v.dtype), v, input_precision=f.PRECISION) * (now / divide)[:, None]
    store_tile(out, base, row, sizes.queries, sizes.value_dim, o, f.BM, f.BDV)
    tl.store(top_all + flat, new_top, mask=rows < sizes.queries)
    tl.store(total_all + flat, new_total, mask=rows < sizes.queries)


@triton.jit
def first_forward_kernel(call, out, top, total, f):
    """Grid: one program a (batch, head). ``out`` (float32), ``top`` (m) and ``total`` (l) come in initialised."""
    sizes = call.sizes
    batch = tl.program_id(0) // sizes.heads
    head = tl.program_id(0) % sizes.heads
    kv_head = head // sizes.group
    here = (offsets(call.q, f.BM, f.BD, False, f.WIDE), offsets(out, f.BM, f.BDV, False, f.WIDE))
    for col in range(0, sizes.keys, f.BN):
        k = lone_tile(call.k, batch, kv_head, col, sizes.keys, sizes.dim, f.BN, f.BD, True, f.EVEN, f.WIDE)
        v = lone_tile(call.v, batch, kv_head, col, sizes.keys, sizes.value_dim, f.BN, f.BDV, False, f.EVEN_V, f.WIDE)
        low, _, _, high = query_ranges(col, sizes, f)
        for row in range(low, high, f.BM):
            if live(call, row, col, batch, head, f):
                _improve(row, col, k, v, here, batch, head, call, out, top, total, f)
        tl.debug_barrier()  # what one thread wrote another may read in the next round


@triton.jit
def _descend(state, row, col, kv, here, batch, head, call, tensors, stats, f):
    """Lines 11 to 22 of Algorithm 4 for one tile, scores transposed; dQ^T is read from memory and written back."""
    dk, dv = state
    k, v, k_turned = kv
    out, grad, dq = tensors
    sizes = call.sizes
    rows = row + tl.arange(0, f.BM)
    q = load_tile(
        call.q, head_base(call.q, batch, head), here[0], row, sizes.queries, sizes.dim, f.BM, f.BD, True, True, f.EVEN
    )  # d m
    base = head_base(grad, batch, head)
    do = load_tile(grad, base, here[1], row, sizes.queries, sizes.value_dim, f.BM, f.BDV, False, True, f.EVEN_V)
    base = head_base(out, batch, head)
    o = load_tile(out, base, here[2], row, sizes.queries, sizes.value_dim, f.BM, f.BDV, False, True, f.EVEN_V)
    flat = tl.cast(batch * sizes.heads + head, tl.int64) * sizes.queries + rows
    top = tl.load(stats[0] + flat, mask=rows < sizes.queries, other=float("inf"))
    total = tl.load(stats[1] + flat, mask=rows < sizes.queries, other=1.0)
    blind = total == 0.0
    top = tl.where(blind, float("inf"), top)
    i = rows[None, :]
    j = col + tl.arange(0, f.BN)[:, None]
    s = tl.dot(k, q, input_precision=f.PRECISION)  # n m
    s, slope = finish_scores(s, i, j, batch, head, call, f, True, False)
    if f.FOLDED:
        s = s * call.numbers.scale_log2
    p = tl.math.exp2(s - top[None, :]) / tl.where(blind, 1.0, total)[None, :]
    z = p
    if f.DROPOUT:
        z = dropped(p, i, j, batch, head, call)
    dv = tl.dot(z.to(do.dtype), do, dv, input_precision=f.PRECISION)
    dp = tl.dot(v, tl.trans(do), input_precision=f.PRECISION)  # n m
    if f.DROPOUT:
        dp = dropped(dp, i, j, batch, head, call)
    delta = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
    ds = p * (dp - delta[None, :])
    if f.SOFTCAP:
        ds = ds * slope
    ds = ds.to(q.dtype)
    dk = tl.dot(ds, tl.trans(q), dk, input_precision=f.PRECISION)
    place = dq + tl.cast(batch * sizes.heads + head, tl.int64) * sizes.dim * sizes.queries
    d = tl.arange(0, f.BD)
    place += d.to(tl.int64)[:, None] * sizes.queries + rows[None, :]
    inside = (d[:, None] < sizes.dim) & (rows[None, :] < sizes.queries)
    turned = tl.load(place, mask=inside, other=0.0)
    turned += tl.dot(k_turned, ds, input_precision=f.PRECISION) * call.numbers.scale  # d m
    tl.store(place, turned, mask=inside)
    return dk, dv


@triton.jit
def first_backward_kernel(call, out, grad, top, total, dq, dk_out, dv_out, f):
    """Grid: one program a (batch, key head). ``dq`` comes in as zeros, float32, (B, H, D, Nq)."""
    sizes = call.sizes
    kv_heads = sizes.heads // sizes.group
    batch = tl.program_id(0) // kv_heads
    kv_head = tl.program_id(0) % kv_heads
    here = (
        offsets(call.q, f.BM, f.BD, True, f.WIDE),
        offsets(grad, f.BM, f.BDV, False, f.WIDE),
        offsets(out, f.BM, f.BDV, False, f.WIDE),
    )
    for col in range(0, sizes.keys, f.BN):
        k = lone_tile(call.k, batch, kv_head, col, sizes.keys, sizes.dim, f.BN, f.BD, False, f.EVEN, f.WIDE)
        turned = lone_tile(call.k, batch, kv_head, col, sizes.keys, sizes.dim, f.BN, f.BD, True, f.EVEN, f.WIDE)
        v = lone_tile(call.v, batch, kv_head, col, sizes.keys, sizes.value_dim, f.BN, f.BDV, False, f.EVEN_V, f.WIDE)
        kv = (k, v, turned)
        state = (tl.zeros([f.BN, f.BD], tl.float32), tl.zeros([f.BN, f.BDV], tl.float32))
        low, _, _, high = query_ranges(col, sizes, f)
        for member in range(0, sizes.group):
            head = kv_head * sizes.group + member
            for row in range(low, high, f.BM):
                if live(call, row, col, batch, head, f):
                    state = _descend(state, row, col, kv, here, batch, head, call, (out, grad, dq), (top, total), f)
        dk, dv = state
        dk = dk * call.numbers.scale
        store_tile(dk_out, head_base(dk_out, batch, kv_head), col, sizes.keys, sizes.dim, dk, f.BN, f.BD)
        store_tile(dv_out, head_base(dv_out, batch, kv_head), col, sizes.keys, sizes.value_dim, dv, f.BN, f.BDV)
        tl.debug_barrier()
