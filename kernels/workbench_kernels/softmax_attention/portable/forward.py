"""Forward attention in the order of FlashAttention-2 (Dao 2023, Algorithm 1): one program a row block, keys inside."""

from __future__ import annotations

import triton
import triton.language as tl

from workbench_kernels.softmax_attention.portable.tiles import (
    LOG2_E,
    dropped,
    finish_scores,
    guarded,
    head_base,
    key_ranges,
    load_tile,
    lone_tile,
    offsets,
    place_of,
    store_tile,
)


@triton.jit
def _visit(state, q, start, bases, tiles, i, batch, head, call, f, BAND: tl.constexpr):
    """One key block: the online softmax of Algorithm 1, output unscaled until the end."""
    acc, top, total = state
    sizes = call.sizes
    k = load_tile(call.k, bases[0], tiles[0], start, sizes.keys, sizes.dim, f.BN, f.BD, True, BAND, f.EVEN)  # d n
    s = tl.dot(q, k, input_precision=f.PRECISION)  # m n
    j = start + tl.arange(0, f.BN)[None, :]
    s, _ = finish_scores(s, i, j, batch, head, call, f, BAND, BAND)
    if f.FOLDED:
        new_top = tl.maximum(top, tl.max(s, 1) * call.numbers.scale_log2)
    else:
        new_top = tl.maximum(top, tl.max(s, 1))
    shift = new_top
    if guarded(call, BAND):
        shift = tl.where(new_top == float("-inf"), 0.0, new_top)
    if f.FOLDED:
        p = tl.math.exp2(s * call.numbers.scale_log2 - shift[:, None])
    else:
        p = tl.math.exp2(s - shift[:, None])
    shrink = tl.math.exp2(top - shift)
    total = total * shrink + tl.sum(p, 1)
    if f.DROPOUT:
        p = dropped(p, i, j, batch, head, call)
    v = load_tile(call.v, bases[1], tiles[1], start, sizes.keys, sizes.value_dim, f.BN, f.BDV, False, BAND, f.EVEN_V)
    acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=f.PRECISION)  # m dv
    return acc, new_top, total


@triton.jit
def _row_block(row, batch, head, call, out, lse, sinks, f):
    """All live key blocks of one row block; writes out and the row LSE once."""
    sizes = call.sizes
    tiles = (offsets(call.k, f.BN, f.BD, True, f.WIDE), offsets(call.v, f.BN, f.BDV, False, f.WIDE))
    bases = (head_base(call.k, batch, head // sizes.group), head_base(call.v, batch, head // sizes.group))
    q = lone_tile(call.q, batch, head, row, sizes.queries, sizes.dim, f.BM, f.BD, False, f.EVEN, f.WIDE)
    rows = row + tl.arange(0, f.BM)
    i = rows[:, None]
    top = tl.full([f.BM], float("-inf"), tl.float32)
    total = tl.zeros([f.BM], tl.float32)
    if sinks is not None:  # a logit without a value: the running softmax starts with it
        sink = tl.load(sinks + head).to(tl.float32) * LOG2_E
        top = tl.zeros([f.BM], tl.float32) + sink
        total += tl.where(sink == float("-inf"), 0.0, 1.0)
    state = (tl.zeros([f.BM, f.BDV], tl.float32), top, total)
    if call.plan.tiles is not None:
        line = tl.cast(batch, tl.int64) * call.plan.b + tl.cast(head, tl.int64) * call.plan.h + row // f.BM
        for t in range(0, tl.load(call.plan.counts + line)):
            start = tl.load(call.plan.tiles + line * call.plan.width + t) * f.BN
            state = _visit(state, q, start, bases, tiles, i, batch, head, call, f, f.EDGES)
    else:
        low, full_low, full_high, high = key_ranges(row, sizes, f)
        if f.SPLIT:
            if f.WINDOW:
                for start in range(low, tl.minimum(full_low, high), f.BN):
                    state = _visit(state, q, start, bases, tiles, i, batch, head, call, f, True)
            for start in range(full_low, full_high, f.BN):
                state = _visit(state, q, start, bases, tiles, i, batch, head, call, f, False)
            for start in range(full_high, high, f.BN):
                state = _visit(state, q, start, bases, tiles, i, batch, head, call, f, True)
        else:
            for start in range(low, high, f.BN):
                state = _visit(state, q, start, bases, tiles, i, batch, head, call, f, True)
    acc, top, total = state
    empty = total == 0.0
    acc = acc / tl.where(empty, 1.0, total)[:, None]
    store_tile(out, head_base(out, batch, head), row, sizes.queries, sizes.value_dim, acc, f.BM, f.BDV)
    value = tl.where(empty, float("-inf"), (top + tl.math.log2(total)) / LOG2_E)
    flat = tl.cast(batch * sizes.heads + head, tl.int64) * sizes.queries
    tl.store(lse + flat + rows, value, mask=rows < sizes.queries)


@triton.jit
def forward_kernel(call, out, lse, sinks, f):
    """Grid: one program a (row block, batch, head), or with HEADS one a (batch, head) that walks its row blocks."""
    sizes = call.sizes
    blocks = tl.cdiv(sizes.queries, f.BM)
    if f.HEADS:
        flat = tl.program_id(0)
        for n in range(0, blocks):
            _row_block(n * f.BM, flat // sizes.heads, flat % sizes.heads, call, out, lse, sinks, f)
    else:
        block, flat = place_of(tl.program_id(0), blocks, sizes)
        if f.CAUSAL:  # the longest rows first
            block = blocks - 1 - block
        _row_block(block * f.BM, flat // sizes.heads, flat % sizes.heads, call, out, lse, sinks, f)
