"""Split-KV decode (flash-decoding): all keys of a call in one row, cut into equal shares, one program a share.

Work is a sequence's tiles of keys for one key head; the rows of a tile are the queries x query heads that read this
key head, so keys and values come from memory once. Programs find their share from the lengths themselves, on the
card: ragged batches are balanced, no wave is half empty, and a captured graph follows lengths that grow. A program may
cross from one (sequence, key head) into the next and leaves one piece for each; ``merge_kernel`` joins the pieces.

Memory decides: a tile of N keys streams 4 N D bytes and does 4 M N D operations on them, M = 16 rows at least, far
below what the card can do in that time.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from workbench_kernels.decode.tile import LOG2_E, block_of, first_row, join_sinks, normalised, offsets, online, scaled


@triton.jit
def _span(length, window, QUERIES: tl.constexpr, BLOCK_N: tl.constexpr, WINDOWED: tl.constexpr):
    """(first key, number of tiles) that some query of a sequence sees."""
    low = length * 0
    if WINDOWED:
        low = tl.maximum(length - QUERIES - window + 1, 0) // BLOCK_N * BLOCK_N
    return low, tl.cdiv(tl.maximum(length - low, 0), BLOCK_N)


@triton.jit
def _tiles(lengths, b, batch, capacity, window, QUERIES: tl.constexpr, BLOCK_N: tl.constexpr, WINDOWED: tl.constexpr):
    """Tiles (BLOCK_B,) of one key head of every sequence."""
    length = tl.minimum(tl.load(lengths + b, mask=b < batch, other=0).to(tl.int32), capacity)
    return _span(length, window, QUERIES, BLOCK_N, WINDOWED)[1]


@triton.jit(do_not_specialize=["batch", "capacity", "window"])
def split_kernel(
    q, k, v, part, stats, lengths, where,
    factor, cap, batch, capacity, window,
    q_b, q_i, q_h, k_r, k_n, k_h, v_r, v_n, v_h, table_b,
    QUERIES: tl.constexpr, GROUP: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    ROW_BLOCKS: tl.constexpr, ROWS: tl.constexpr, ADDRESS: tl.constexpr, PAGE: tl.constexpr,
    CAPPED: tl.constexpr, WINDOWED: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Grid (share). A unit is a key head and a block of ROWS rows; pieces are numbered share + unit of the batch."""
    if EARLY:
        gdc_launch_dependents()
    UNITS: tl.constexpr = KV_HEADS * ROW_BLOCKS
    share, shares = tl.program_id(0), tl.num_programs(0)
    b, n, d, m = tl.arange(0, BLOCK_B), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_M)
    tiles = _tiles(lengths, b, batch, capacity, window, QUERIES, BLOCK_N, WINDOWED)
    ends = tl.cumsum(tiles, 0) * UNITS
    everything = tl.max(ends, 0).to(tl.int64)
    shares = tl.minimum(shares.to(tl.int64), everything)  # a share has a tile at least, or nothing to do
    position, stop = 0, 0
    if share < shares:
        position = (share * everything // shares).to(tl.int32)
        stop = ((share + 1) * everything // shares).to(tl.int32)
    while position < stop:
        sequence = tl.sum((ends <= position).to(tl.int32), 0)
        count = tl.sum(tl.where(b == sequence, tiles, 0), 0)
        inside_sequence = position - tl.sum(tl.where(b == sequence, ends, 0), 0) + count * UNITS
        unit = inside_sequence // count
        tile = inside_sequence - unit * count
        taken = tl.minimum(count - tile, stop - position)

        head, block_row = unit // ROW_BLOCKS, unit % ROW_BLOCKS
        row = block_row * BLOCK_M + m  # (BLOCK_M,)
        query, member = row // GROUP, row % GROUP
        real = (row < QUERIES * GROUP)[:, None] & (d < DIM)[None, :]
        length = tl.minimum(tl.load(lengths + sequence).to(tl.int32), capacity)
        last = length - QUERIES + query  # the newest key that each row sees
        low = _span(length, window, QUERIES, BLOCK_N, WINDOWED)[0]
        begin = low + tile * BLOCK_N
        end = tl.minimum(begin + taken * BLOCK_N, length)

        at = q + sequence.to(tl.int64) * q_b + query[:, None].to(tl.int64) * q_i
        at += (head * GROUP + member)[:, None].to(tl.int64) * q_h + d[None, :]
        q_tile = tl.load(at, mask=real, other=0.0)  # m d
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
            loaded = inside[:, None] & (d < DIM)[None, :]
            k_tile = tl.load(k_base + k_at[:, None] + d[None, :], mask=loaded, other=0.0)  # n d
            v_tile = tl.load(v_base + v_at[:, None] + d[None, :], mask=loaded, other=0.0)  # n d
            scores = scaled(tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee"), factor, cap, CAPPED)
            key = start + n
            seen = inside[None, :] & (key[None, :] <= last[:, None])
            if WINDOWED:
                seen = seen & (key[None, :] > last[:, None] - window)
            scores = tl.where(seen, scores, -float("inf"))
            top, total, acc = online(scores, 1.0, v_tile, top, total, acc)

        # part (pieces, ROWS, D), stats (pieces, ROWS, 2)
        place = (share + sequence * UNITS + unit).to(tl.int64) * ROWS + m
        tl.store(stats + place * 2, top, mask=m < ROWS)
        tl.store(stats + place * 2 + 1, total, mask=m < ROWS)
        tl.store(part + place[:, None] * DIM + d[None, :], acc, mask=(m < ROWS)[:, None] & (d < DIM)[None, :])
        position += taken


@triton.jit(do_not_specialize=["shares", "batch", "capacity", "window"])
def merge_kernel(
    out, lse, part, stats, lengths, sinks,
    shares, batch, capacity, window, o_b, o_i, o_h,
    QUERIES: tl.constexpr, GROUP: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr,
    ROW_BLOCKS: tl.constexpr, ROWS: tl.constexpr, WINDOWED: tl.constexpr, SINKS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Grid (sequence x query x query head): one output row from its pieces, BLOCK_P of them at a time."""
    UNITS: tl.constexpr = KV_HEADS * ROW_BLOCKS
    program = tl.program_id(0)
    head, query = program % (KV_HEADS * GROUP), program // (KV_HEADS * GROUP) % QUERIES
    sequence = program // (KV_HEADS * GROUP * QUERIES)
    row = query * GROUP + head % GROUP
    unit = head // GROUP * ROW_BLOCKS + row // BLOCK_M

    b, p, d = tl.arange(0, BLOCK_B), tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_D)
    tiles = _tiles(lengths, b, batch, capacity, window, QUERIES, BLOCK_N, WINDOWED)
    ends = tl.cumsum(tiles, 0) * UNITS
    everything = tl.maximum(tl.max(ends, 0), 1).to(tl.int64)
    shares = tl.minimum(shares.to(tl.int64), everything)
    count = tl.sum(tl.where(b == sequence, tiles, 0), 0)
    begin = tl.sum(tl.where(b == sequence, ends, 0), 0) - count * (UNITS - unit)
    # the shares of its first and its last tile: share * everything // shares <= position
    first = (((begin + 1).to(tl.int64) * shares - 1) // everything).to(tl.int32)
    last = (((begin + count).to(tl.int64) * shares - 1) // everything).to(tl.int32)
    pieces = tl.where(count > 0, last - first + 1, 0)
    place = (first + sequence * UNITS + unit).to(tl.int64) * ROWS + row % BLOCK_M

    if EARLY:
        gdc_wait()
    top = tl.full([1], -float("inf"), tl.float32)
    total = tl.zeros([1], tl.float32)
    acc = tl.zeros([1, BLOCK_D], tl.float32)
    for start in range(0, pieces, BLOCK_P):
        at = place + (start + p).to(tl.int64) * ROWS
        there = start + p < pieces
        tops = tl.load(stats + at * 2, mask=there, other=-float("inf"))
        totals = tl.load(stats + at * 2 + 1, mask=there, other=0.0)
        values = tl.load(part + at[:, None] * DIM + d[None, :], mask=there[:, None] & (d < DIM)[None, :], other=0.0)
        new_top = tl.maximum(top, tl.max(tops, 0))
        shift = tl.where(new_top == -float("inf"), 0.0, new_top)
        weights = tl.exp2(tops - shift)  # a piece in which the row saw nothing weighs 0
        shrink = tl.exp2(top - shift)
        total = total * shrink + tl.sum(weights * totals, 0)
        acc = acc * shrink[:, None] + tl.sum(weights[:, None] * values, 0)[None, :]
        top = new_top
    one = tl.zeros([1], tl.int32)
    if SINKS:
        sink = tl.load(sinks + head + one).to(tl.float32) * LOG2_E
        top, total, acc = join_sinks(sink, top, total, acc)
    value, row_lse = normalised(top, total, acc)
    at = out + sequence.to(tl.int64) * o_b + query.to(tl.int64) * o_i + head.to(tl.int64) * o_h
    tl.store(at + one[:, None] + d[None, :], value.to(out.dtype.element_ty), mask=(d < DIM)[None, :])
    tl.store(lse + program.to(tl.int64) + one, row_lse)
