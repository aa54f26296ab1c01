"""Split-KV decode (flash-decoding): the keys of a sequence are shared by several programs, then merged.

A program owns one part of the keys of one (sequence, key head); its rows are the queries x query heads that read this
key head, so keys and values come from memory once. Memory decides: a program streams 4 * N * D bytes and does 4 * M *
N * D operations on them, M = 16 rows at least, far below what the card can do in that time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from workbench_kernels.decode.tile import LOG2_E, block_of, first_row, join_sinks, normalised, offsets, online, scaled


@triton.jit
def split_kernel(
    q, k, v, out, lse, part, stats, lengths, where, sinks,
    factor, cap, capacity, window,
    q_b, q_i, q_h, k_r, k_n, k_h, v_r, v_n, v_h, o_b, o_i, o_h, table_b,
    QUERIES: tl.constexpr, GROUP: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    ADDRESS: tl.constexpr, PAGE: tl.constexpr, ONE_PART: tl.constexpr,
    CAPPED: tl.constexpr, WINDOWED: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    """Grid (sequence x key head x row block, part)."""
    ROWS: tl.constexpr = QUERIES * GROUP
    ROW_BLOCKS: tl.constexpr = (ROWS + BLOCK_M - 1) // BLOCK_M
    tile, piece, pieces = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    sequence = tile // (KV_HEADS * ROW_BLOCKS)
    head = tile // ROW_BLOCKS % KV_HEADS
    row = tile % ROW_BLOCKS * BLOCK_M + tl.arange(0, BLOCK_M)
    query, member = row // GROUP, row % GROUP  # (BLOCK_M,)
    n, d = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    real_row, real_d = row < ROWS, d < DIM

    length = tl.minimum(tl.load(lengths + sequence).to(tl.int32), capacity)
    last = length - QUERIES + query  # the newest key that each row sees
    low = 0
    if WINDOWED:
        low = tl.maximum(length - QUERIES - window + 1, 0) // BLOCK_N * BLOCK_N
    span = (tl.cdiv(tl.cdiv(tl.maximum(length - low, 0), BLOCK_N), pieces)) * BLOCK_N
    begin = low + piece * span
    end = tl.minimum(begin + span, length)

    at = q + sequence.to(tl.int64) * q_b + query[:, None].to(tl.int64) * q_i
    at += (head * GROUP + member)[:, None].to(tl.int64) * q_h + d[None, :]
    q_tile = tl.load(at, mask=real_row[:, None] & real_d[None, :], other=0.0)  # m d
    home = first_row(where, sequence, ADDRESS)
    k_base = k + home * k_r + head.to(tl.int64) * k_h
    v_base = v + home * v_r + head.to(tl.int64) * v_h
    table = where + sequence.to(tl.int64) * table_b

    top = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    block = block_of(table, begin, n, end, ADDRESS, PAGE, BLOCK_N)
    for start in tl.range(begin, end, BLOCK_N):
        inside = start + n < end
        k_at = offsets(block, start, n, k_r, k_n, ADDRESS, PAGE, BLOCK_N)
        v_at = offsets(block, start, n, v_r, v_n, ADDRESS, PAGE, BLOCK_N)
        block = block_of(table, start + BLOCK_N, n, end, ADDRESS, PAGE, BLOCK_N)
        loaded = inside[:, None] & real_d[None, :]
        k_tile = tl.load(k_base + k_at[:, None] + d[None, :], mask=loaded, other=0.0)  # n d
        v_tile = tl.load(v_base + v_at[:, None] + d[None, :], mask=loaded, other=0.0)  # n d
        scores = scaled(tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee"), factor, cap, CAPPED)
        position = start + n
        seen = inside[None, :] & (position[None, :] <= last[:, None])
        if WINDOWED:
            seen = seen & (position[None, :] > last[:, None] - window)
        scores = tl.where(seen, scores, -float("inf"))
        top, total, acc = online(scores, v_tile, top, total, acc)

    if ONE_PART:
        if SINKS:
            sink = tl.load(sinks + head * GROUP + member, mask=real_row, other=-float("inf")).to(tl.float32) * LOG2_E
            top, total, acc = join_sinks(sink, top, total, acc)
        value, row_lse = normalised(top, total, acc)
        heads = head * GROUP + member
        at = out + sequence.to(tl.int64) * o_b + query[:, None].to(tl.int64) * o_i
        at += heads[:, None].to(tl.int64) * o_h + d[None, :]
        tl.store(at, value.to(out.dtype.element_ty), mask=real_row[:, None] & real_d[None, :])
        at_lse = lse + (sequence.to(tl.int64) * QUERIES + query) * (KV_HEADS * GROUP) + heads
        tl.store(at_lse, row_lse, mask=real_row)
    else:
        # part (B, Hkv, parts, rows, D), stats (B, Hkv, parts, rows, 2); an empty part leaves its values unwritten
        place = ((sequence * KV_HEADS + head).to(tl.int64) * pieces + piece) * ROWS + row
        tl.store(stats + place * 2, top, mask=real_row)
        tl.store(stats + place * 2 + 1, total, mask=real_row)
        if begin < end:
            tl.store(part + place[:, None] * DIM + d[None, :], acc, mask=real_row[:, None] & real_d[None, :])


@triton.jit
def merge_kernel(
    out, lse, part, stats, sinks, pieces, o_b, o_i, o_h,
    QUERIES: tl.constexpr, GROUP: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    """Grid (sequence x key head x row): one output row from its parts, BLOCK_P of them at a time."""
    ROWS: tl.constexpr = QUERIES * GROUP
    place = tl.program_id(0)
    row, tile = place % ROWS, place // ROWS
    sequence, head = tile // KV_HEADS, tile % KV_HEADS * GROUP + row % GROUP
    p, d = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_D)
    top = tl.full([1], -float("inf"), tl.float32)
    total = tl.zeros([1], tl.float32)
    acc = tl.zeros([1, BLOCK_D], tl.float32)
    for start in range(0, pieces, BLOCK_P):
        piece = start + p
        at = (tile.to(tl.int64) * pieces + piece) * ROWS + row
        tops = tl.load(stats + at * 2, mask=piece < pieces, other=-float("inf"))
        totals = tl.load(stats + at * 2 + 1, mask=piece < pieces, other=0.0)
        filled = tops != -float("inf")
        values = tl.load(part + at[:, None] * DIM + d[None, :], mask=filled[:, None] & (d < DIM)[None, :], other=0.0)
        new_top = tl.maximum(top, tl.max(tops, 0))
        shift = tl.where(new_top == -float("inf"), 0.0, new_top)
        weights = tl.exp2(tops - shift)  # -inf tops weigh 0
        shrink = tl.exp2(top - shift)
        total = total * shrink + tl.sum(weights * totals, 0)
        acc = acc * shrink[:, None] + tl.sum(weights[:, None] * values, 0)[None, :]
        top = new_top
    if SINKS:
        sink = tl.load(sinks + head).to(tl.float32) * LOG2_E + tl.zeros([1], tl.float32)
        top, total, acc = join_sinks(sink, top, total, acc)
    value, row_lse = normalised(top, total, acc)
    query = row // GROUP
    at = out + sequence.to(tl.int64) * o_b + query.to(tl.int64) * o_i + head.to(tl.int64) * o_h
    one = tl.zeros([1], tl.int32)
    tl.store(at + one[:, None] + d[None, :], value.to(out.dtype.element_ty), mask=(d < DIM)[None, :])
    at_lse = lse + (sequence.to(tl.int64) * QUERIES + query) * (KV_HEADS * GROUP) + head
    tl.store(at_lse + one, row_lse)
