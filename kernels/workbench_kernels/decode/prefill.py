"""Causal tile kernel over a cache: a row block of one query head walks over its keys, wherever they lie.

The loop order of FlashAttention-2, forward only: tiles that every row sees first, without a mask; then those that the
diagonal, the window or the end of the sequence cuts.
"""

from __future__ import annotations

import triton
import triton.language as tl

from workbench_kernels.decode.tile import (
    LOG2_E,
    block_of,
    first_row,
    join_sinks,
    normalised,
    online,
    scaled,
    tile_at,
    tokens_at,
)


@triton.jit
def _walk(
    begin, end, length, last, q_tile, k_base, v_base, table, n, d, top, total, acc,
    factor, cap, window, k_r, k_n, v_r, v_n,
    DIM: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    ADDRESS: tl.constexpr, PAGE: tl.constexpr, CAPPED: tl.constexpr, WINDOWED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    block = block_of(table, begin, n, length, ADDRESS, PAGE, BLOCK_N)
    for start in tl.range(begin, end, BLOCK_N):
        inside = start + n < length
        k_at = k_base + tile_at(block, start, k_r, k_n, ADDRESS, PAGE, BLOCK_N)
        v_at = v_base + tile_at(block, start, v_r, v_n, ADDRESS, PAGE, BLOCK_N)
        k_at = k_at + (tokens_at(block, n, k_r, k_n, ADDRESS, PAGE, BLOCK_N)[:, None] + d[None, :])
        v_at = v_at + (tokens_at(block, n, v_r, v_n, ADDRESS, PAGE, BLOCK_N)[:, None] + d[None, :])
        block = block_of(table, start + BLOCK_N, n, length, ADDRESS, PAGE, BLOCK_N)
        if MASKED or DIM != BLOCK_D:
            loaded = inside[:, None] & (d < DIM)[None, :]
            k_tile, v_tile = tl.load(k_at, mask=loaded, other=0.0), tl.load(v_at, mask=loaded, other=0.0)
        else:
            k_tile, v_tile = tl.load(k_at), tl.load(v_at)
        scores = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee")
        unit = factor
        if CAPPED:
            scores = scaled(scores, factor, cap, CAPPED)
            unit = 1.0
        if MASKED:
            position = start + n
            seen = inside[None, :] & (position[None, :] <= last[:, None])
            if WINDOWED:
                seen = seen & (position[None, :] > last[:, None] - window)
            scores = tl.where(seen, scores, -float("inf"))
        top, total, acc = online(scores, unit, v_tile, top, total, acc)
    return top, total, acc


@triton.jit(do_not_specialize=["capacity", "window", "queries"])
def prefill_kernel(
    q, k, v, out, lse, lengths, where, sinks,
    factor, cap, capacity, window, queries,
    q_b, q_i, q_h, k_r, k_n, k_h, v_r, v_n, v_h, o_b, o_i, o_h, table_b,
    GROUP: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    ADDRESS: tl.constexpr, PAGE: tl.constexpr,
    CAPPED: tl.constexpr, WINDOWED: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    """Grid (row block, sequence x query head); the longest rows first."""
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    sequence, head = tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
    query = block * BLOCK_M + tl.arange(0, BLOCK_M)
    n, d = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    stored = (query < queries)[:, None] & (d < DIM)[None, :]

    length = tl.minimum(tl.load(lengths + sequence).to(tl.int32), capacity)
    behind = length - queries  # keys before the first query's own
    last = behind + query
    # keys [low, high) are seen by some row of this block, keys [whole_low, whole_high) by all of them
    high = tl.minimum(behind + block * BLOCK_M + BLOCK_M, length)
    whole_high = tl.maximum(tl.minimum(behind + block * BLOCK_M + 1, length), 0) // BLOCK_N * BLOCK_N
    low, whole_low = 0, 0
    if WINDOWED:
        low = tl.maximum(behind + block * BLOCK_M - window + 1, 0) // BLOCK_N * BLOCK_N
        whole_low = tl.cdiv(tl.maximum(behind + block * BLOCK_M + BLOCK_M - window, 0), BLOCK_N) * BLOCK_N
        whole_low = tl.minimum(tl.maximum(whole_low, low), tl.maximum(whole_high, low))
        whole_high = tl.maximum(whole_high, whole_low)

    at = sequence.to(tl.int64) * q_b + head.to(tl.int64) * q_h + query[:, None].to(tl.int64) * q_i + d[None, :]
    q_tile = tl.load(q + at, mask=stored, other=0.0)
    home, kv_head = first_row(where, sequence, ADDRESS), (head // GROUP).to(tl.int64)
    k_base, v_base = k + home * k_r + kv_head * k_h, v + home * v_r + kv_head * v_h
    table = where + sequence.to(tl.int64) * table_b

    top = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if WINDOWED:
        top, total, acc = _walk(
            low, whole_low, length, last, q_tile, k_base, v_base, table, n, d, top, total, acc,
            factor, cap, window, k_r, k_n, v_r, v_n,
            DIM, BLOCK_N, BLOCK_D, ADDRESS, PAGE, CAPPED, WINDOWED, True,
        )  # fmt: skip
    top, total, acc = _walk(
        whole_low, whole_high, length, last, q_tile, k_base, v_base, table, n, d, top, total, acc,
        factor, cap, window, k_r, k_n, v_r, v_n,
        DIM, BLOCK_N, BLOCK_D, ADDRESS, PAGE, CAPPED, WINDOWED, False,
    )  # fmt: skip
    top, total, acc = _walk(
        whole_high, high, length, last, q_tile, k_base, v_base, table, n, d, top, total, acc,
        factor, cap, window, k_r, k_n, v_r, v_n,
        DIM, BLOCK_N, BLOCK_D, ADDRESS, PAGE, CAPPED, WINDOWED, True,
    )  # fmt: skip
    if SINKS:
        sink = tl.load(sinks + head).to(tl.float32) * LOG2_E + tl.zeros([BLOCK_M], tl.float32)
        top, total, acc = join_sinks(sink, top, total, acc)
    value, row_lse = normalised(top, total, acc)
    at = sequence.to(tl.int64) * o_b + head.to(tl.int64) * o_h + query[:, None].to(tl.int64) * o_i + d[None, :]
    tl.store(out + at, value.to(out.dtype.element_ty), mask=stored)
    tl.store(lse + (sequence.to(tl.int64) * queries + query) * HEADS + head, row_lse, mask=query < queries)
