"""What each row does, streamed over key tiles: its LSE, its mass on chosen keys, its statistics, its strongest keys.

A program owns one tile of rows of one head; the tiles that see most keys come first.
"""

import triton
import triton.language as tl

from workbench_kernels.maps.fast.tiles import (
    INF,
    head_of,
    key_range,
    log2_lse,
    log2_scores,
    real_keys,
    rows_of,
    run_of,
    seen,
)

#: Bins of a distance profile: distance 0, then one for each power of two.
PROFILE = tl.constexpr(32)
_SIZES = ["queries", "keys", "window", "row_tiles"]


@triton.jit
def _rows(row_tiles, BM: tl.constexpr):
    """Plane and rows of this program."""
    pid = tl.program_id(0)
    return pid // row_tiles, (row_tiles - 1 - pid % row_tiles) * BM


@triton.jit
def _exponent(x):
    """floor(log2 x) of integers in 1 .. 2^24, from the bits of the float; -127 for 0."""
    return (x.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127


@triton.jit(do_not_specialize=_SIZES)
def lse_rows(
    q, k, lse, heads, padding,
    q_batch, q_row, q_head, k_batch, k_row, k_head, l_batch, l_row, l_head, count, queries, keys, window, factor, cap,
    row_tiles,
    GROUP: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr, CAPPED: tl.constexpr, PADDED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes the natural LSE of each row into ``lse``: the online softmax without its output."""
    n, i0 = _rows(row_tiles, BM)
    b, h, kh = head_of(n, heads, count, GROUP)
    k += b * k_batch + kh * k_head
    padding += b * keys
    row = i0 + tl.arange(0, BM)
    ok = row < queries
    i = row + keys - queries
    tile = run_of(q + b * q_batch + h * q_head, i0, q_row, queries, BM, D, BD, False)
    last = tl.minimum(i0 + BM, queries) - 1 + keys - queries
    low, high, low_all, high_all = key_range(i0 + keys - queries, last, 0, keys, window, CAUSAL, WINDOW)
    most = tl.full((BM,), -INF, tl.float32)
    total = tl.zeros((BM,), tl.float32)
    for j0 in tl.range(low // BN * BN, high, BN):
        j = j0 + tl.arange(0, BN)
        t = log2_scores(tile, run_of(k, j0, k_row, keys, BN, D, BD, False), factor, cap, CAPPED, PRECISION)
        if PADDED or (j0 < low_all) | (j0 + BN > high_all):
            t = tl.where(seen(i, j, real_keys(j, keys, padding, PADDED), window, CAUSAL, WINDOW), t, -INF)
        higher = tl.maximum(most, tl.max(t, 1))
        safe = tl.where(higher == -INF, 0.0, higher)
        total = total * tl.exp2(most - safe) + tl.sum(tl.exp2(t - safe[:, None]), 1)
        most = higher
    found = (most + tl.log2(total)) * 0.6931471805599453
    tl.store(lse + b * l_batch + h * l_head + row.to(tl.int64) * l_row, found, mask=ok)


@triton.jit(do_not_specialize=[*_SIZES, "chosen", "chosen_batch"])
def mass_rows(
    q, k, lse, heads, padding, out, index, ends,
    q_batch, q_row, q_head, k_batch, k_row, k_head, l_batch, l_row, l_head, count, queries, keys, window, factor, cap,
    row_tiles, chosen_batch, chosen,
    GROUP: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr, CAPPED: tl.constexpr, PADDED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Probability of each row on the keys of ``index`` (batch|1, chosen), ascending, -1 for none.

    ``ends`` (row tiles,) says how many of them a tile of rows can see.
    """
    n, i0 = _rows(row_tiles, BM)
    b, h, kh = head_of(n, heads, count, GROUP)
    k += b * k_batch + kh * k_head
    padding += b * keys
    index += b * chosen_batch
    row = i0 + tl.arange(0, BM)
    ok = row < queries
    i = row + keys - queries
    tile = run_of(q + b * q_batch + h * q_head, i0, q_row, queries, BM, D, BD, False)
    norm = log2_lse(lse + b * l_batch + h * l_head, row, l_row, ok)
    total = tl.zeros((BM,), tl.float32)
    for c0 in tl.range(0, tl.load(ends + i0 // BM), BN):
        at = c0 + tl.arange(0, BN)
        j = tl.load(index + at, mask=at < chosen, other=-1)
        real = j >= 0
        if PADDED:
            real = real & (tl.load(padding + j, mask=real, other=0) != 0)
        t = log2_scores(tile, rows_of(k, j, k_row, real, D, BD, False), factor, cap, CAPPED, PRECISION)
        t = tl.where(seen(i, j, real, window, CAUSAL, WINDOW), t - norm[:, None], -INF)
        total += tl.sum(tl.exp2(t), 1)
    tl.store(out + n.to(tl.int64) * queries + row, total, mask=ok)


@triton.jit(do_not_specialize=_SIZES)
def statistics_rows(
    q, k, lse, heads, padding, entropy, mass, distance, profile,
    q_batch, q_row, q_head, k_batch, k_row, k_head, l_batch, l_row, l_head, count, queries, keys, window, factor, cap,
    row_tiles,
    NEAR: tl.constexpr,
    GROUP: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr, CAPPED: tl.constexpr, PADDED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Entropy in bits, mass and mean distance x mass of each row; per tile of rows the mass by distance.

    NEAR bins hold the distances below 2 (BM + BN), which tiles near the diagonal spread over.
    """
    n, i0 = _rows(row_tiles, BM)
    b, h, kh = head_of(n, heads, count, GROUP)
    k += b * k_batch + kh * k_head
    padding += b * keys
    row = i0 + tl.arange(0, BM)
    ok = row < queries
    offset = keys - queries
    i = row + offset
    tile = run_of(q + b * q_batch + h * q_head, i0, q_row, queries, BM, D, BD, False)
    norm = log2_lse(lse + b * l_batch + h * l_head, row, l_row, ok)
    first, last = i0 + offset, tl.minimum(i0 + BM, queries) - 1 + offset
    low, high, low_all, high_all = key_range(first, last, 0, keys, window, CAUSAL, WINDOW)
    bits, total, far = tl.zeros((BM,), tl.float32), tl.zeros((BM,), tl.float32), tl.zeros((BM,), tl.float32)
    bins = tl.arange(0, PROFILE)
    profiled = tl.zeros((PROFILE,), tl.float32)
    for j0 in tl.range(low // BN * BN, high, BN):
        j = j0 + tl.arange(0, BN)
        t = log2_scores(tile, run_of(k, j0, k_row, keys, BN, D, BD, False), factor, cap, CAPPED, PRECISION)
        t -= norm[:, None]
        if PADDED or (j0 < low_all) | (j0 + BN > high_all):
            t = tl.where(seen(i, j, real_keys(j, keys, padding, PADDED), window, CAUSAL, WINDOW), t, -INF)
        p = tl.exp2(t)
        t = tl.maximum(t, -1e30)  # 0 x -inf would be NaN
        away = tl.abs(i[:, None] - j[None, :])
        here = tl.sum(p, 1)
        total += here
        bits -= tl.sum(p * t, 1)
        far += tl.sum(p * away.to(tl.float32), 1)
        nearest = tl.maximum(tl.maximum(first - (j0 + BN - 1), j0 - (first + BM - 1)), 0)
        if nearest >= BM + BN:  # at most one power of two falls into a tile
            power = _exponent(nearest)
            closer = tl.sum(tl.where(away < (2 << power), p, 0.0), 1)
            profiled += tl.where(bins == power + 1, tl.sum(closer, 0), 0.0)
            profiled += tl.where(bins == power + 2, tl.sum(here - closer, 0), 0.0)
        else:
            which = tl.maximum(_exponent(away) + 1, 0)
            for d in tl.static_range(0, NEAR):
                profiled += tl.where(bins == d, tl.sum(tl.sum(tl.where(which == d, p, 0.0), 1), 0), 0.0)
    place = n.to(tl.int64) * queries + row
    tl.store(entropy + place, bits, mask=ok)
    tl.store(mass + place, total, mask=ok)
    tl.store(distance + place, far, mask=ok)
    tl.store(profile + (n.to(tl.int64) * row_tiles + i0 // BM) * PROFILE + bins, profiled)


@triton.jit(do_not_specialize=_SIZES)
def top_rows(
    q, k, lse, heads, padding, scores, where,
    q_batch, q_row, q_head, k_batch, k_row, k_head, l_batch, l_row, l_head, count, queries, keys, window, factor, cap,
    row_tiles,
    TOP: tl.constexpr,
    GROUP: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr, CAPPED: tl.constexpr, PADDED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The TOP highest log-2 probabilities of each row and their keys, unordered; -inf and -1 where fewer are seen.

    A tile is searched only while one of its maxima beats the lowest that is kept, which after the first tiles is rare:
    one comparison a cell is the rule.
    """
    n, i0 = _rows(row_tiles, BM)
    b, h, kh = head_of(n, heads, count, GROUP)
    k += b * k_batch + kh * k_head
    padding += b * keys
    row = i0 + tl.arange(0, BM)
    ok = row < queries
    i = row + keys - queries
    tile = run_of(q + b * q_batch + h * q_head, i0, q_row, queries, BM, D, BD, False)
    norm = log2_lse(lse + b * l_batch + h * l_head, row, l_row, ok)
    last = tl.minimum(i0 + BM, queries) - 1 + keys - queries
    low, high, low_all, high_all = key_range(i0 + keys - queries, last, 0, keys, window, CAUSAL, WINDOW)
    slots = tl.arange(0, TOP)
    best = tl.full((BM, TOP), -INF, tl.float32)
    best_key = tl.full((BM, TOP), -1, tl.int32)
    for j0 in tl.range(low // BN * BN, high, BN):
        j = j0 + tl.arange(0, BN)
        t = log2_scores(tile, run_of(k, j0, k_row, keys, BN, D, BD, False), factor, cap, CAPPED, PRECISION)
        t -= norm[:, None]
        if PADDED or (j0 < low_all) | (j0 + BN > high_all):
            t = tl.where(seen(i, j, real_keys(j, keys, padding, PADDED), window, CAUSAL, WINDOW), t, -INF)
        most, kept = tl.max(t, 1), tl.min(best, 1)
        while tl.max((most > kept).to(tl.int32), 0) > 0:
            better = most > kept
            at = tl.argmax(t, 1)
            slot = tl.argmin(best, 1)
            swap = better[:, None] & (slots[None, :] == slot[:, None])
            best = tl.where(swap, most[:, None], best)
            best_key = tl.where(swap, (j0 + at)[:, None], best_key)
            t = tl.where(better[:, None] & ((j - j0)[None, :] == at[:, None]), -INF, t)
            most, kept = tl.max(t, 1), tl.min(best, 1)
    place = (n.to(tl.int64) * queries + row)[:, None] * TOP + slots[None, :]
    tl.store(scores + place, best, mask=ok[:, None])
    tl.store(where + place, best_key, mask=ok[:, None])


@triton.jit(do_not_specialize=["queries", "keys", "window", "row_tiles", "rows_chosen", "cols_chosen", "col_tiles"])
def region_cells(
    q, k, lse, heads, padding, out, rows, cols,
    q_batch, q_row, q_head, k_batch, k_row, k_head, l_batch, l_row, l_head, count, queries, keys, window, factor, cap,
    row_tiles, col_tiles, rows_chosen, cols_chosen,
    GROUP: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr, CAPPED: tl.constexpr, PADDED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Exact probabilities of the positions ``rows`` x ``cols`` (int32 vectors); a program writes one tile."""
    pid = tl.program_id(0)
    n = pid // (row_tiles * col_tiles)
    at = (pid // col_tiles) % row_tiles * BM + tl.arange(0, BM)
    across = pid % col_tiles * BN + tl.arange(0, BN)
    b, h, kh = head_of(n, heads, count, GROUP)
    padding += b * keys
    row = tl.load(rows + at, mask=at < rows_chosen, other=0)
    j = tl.load(cols + across, mask=across < cols_chosen, other=0)
    ok, real = at < rows_chosen, across < cols_chosen
    tile = rows_of(q + b * q_batch + h * q_head, row, q_row, ok, D, BD, False)
    norm = log2_lse(lse + b * l_batch + h * l_head, row, l_row, ok)
    columns = rows_of(k + b * k_batch + kh * k_head, j, k_row, real, D, BD, False)
    t = log2_scores(tile, columns, factor, cap, CAPPED, PRECISION) - norm[:, None]
    if PADDED:
        real = real & (tl.load(padding + j, mask=real, other=0) != 0)
    p = tl.exp2(tl.where(seen(row + keys - queries, j, real, window, CAUSAL, WINDOW), t, -INF))
    place = (n.to(tl.int64) * rows_chosen + at)[:, None] * cols_chosen + across[None, :]
    tl.store(out + place, p, mask=ok[:, None] & (across < cols_chosen)[None, :])
