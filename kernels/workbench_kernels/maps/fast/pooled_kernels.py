"""Pooled maps in one pass. Every cell of the result belongs to one program, which adds to it in a fixed order.

``coarse``: bins at least as wide as a tile, so a tile meets at most two of them each way and is reduced in registers
to one to four numbers. ``fine``: narrower bins; each gets a power of two of slots, some of them empty, so that a tile
is a regular grid of cells.
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

#: Numbers that a kernel is not compiled anew for.
_COUNTS = ["queries", "keys", "window", "plane0"]
_BINS = ["row_bins", "col_bins", "row_groups", "chunks"]
_PLACES = ["bins_each", "cols_each", "row_start", "row_stop", "col_start", "col_stop"]
_PLACES += ["desc_batch", "desc_head", "desc_column"]


@triton.jit
def _reduced(x, axis: tl.constexpr, MAX: tl.constexpr):
    if MAX:
        r = tl.max(x, axis)
    else:
        r = tl.sum(x, axis)
    return r


@triton.jit
def _into(cell, value, mask, MAX: tl.constexpr):
    """Add to a cell, or raise it; probabilities are not negative, so their bits order as integers."""
    if MAX:
        tl.atomic_max(cell, value.to(tl.int32, bitcast=True), mask=mask, sem="relaxed")
    else:
        tl.atomic_add(cell, value, mask=mask, sem="relaxed")


@triton.jit
def _bin_of(position, span, count):
    """The bin of a position counted from the start: the last b with floor(b span / count) <= position."""
    return (((position + 1).to(tl.int64) * count - 1) // span).to(tl.int32)


@triton.jit
def _column(out, part, row, row_edge, split, out_row, MAX: tl.constexpr, EVEN: tl.constexpr):
    """One column of cells from the rows' parts (M,): the cell of the first row bin and, past its edge, of the next."""
    if EVEN:
        _into(out, _reduced(part, 0, MAX), None, MAX)
    else:
        _into(out, _reduced(tl.where(row < row_edge, part, 0.0), 0, MAX), None, MAX)
        if split:
            _into(out + out_row, _reduced(tl.where(row >= row_edge, part, 0.0), 0, MAX), None, MAX)


@triton.jit
def _sweep(
    q, lse, i, row, row_edge, split, out, out_row, k, k_row, desc, desc_row, desc_col, padding, edges, width, c, low,
    high, start, right, window, factor, cap,
    MASKED: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr, CAPPED: tl.constexpr, PADDED: tl.constexpr, PRECISION: tl.constexpr, MAX: tl.constexpr,
    EVEN: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Key tiles from low to high of one tile of rows; ``c`` is the column bin of the first; returns the next one's."""
    for j0 in tl.range(low, high, BN):
        j = j0 + tl.arange(0, BN)
        if TMA:
            tile = desc.load([desc_row + j0, desc_col])
        else:
            tile = run_of(k, j0, k_row, right, BN, D, BD, not MASKED)
        t = log2_scores(q, tile, factor, cap, CAPPED, PRECISION) - lse[:, None]
        if MASKED:
            t = tl.where(seen(i, j, real_keys(j, right, padding, PADDED), window, CAUSAL, WINDOW), t, -INF)
        p = tl.exp2(t)
        if EVEN:
            c = (j0 - start) // width
            _column(out + c, _reduced(p, 1, MAX), row, row_edge, split, out_row, MAX, EVEN)
        else:
            edge = tl.load(edges + c + 1)
            stop = tl.minimum(j0 + BN, right)
            if edge < stop:
                before, after = tl.where(j[None, :] < edge, p, 0.0), tl.where(j[None, :] >= edge, p, 0.0)
                _column(out + c, _reduced(before, 1, MAX), row, row_edge, split, out_row, MAX, EVEN)
                _column(out + c + 1, _reduced(after, 1, MAX), row, row_edge, split, out_row, MAX, EVEN)
            else:
                _column(out + c, _reduced(p, 1, MAX), row, row_edge, split, out_row, MAX, EVEN)
            c += (edge <= j0 + BN).to(tl.int32)
    return c


@triton.jit(do_not_specialize=[*_COUNTS, *_BINS, *_PLACES])
def coarse(
    q, k, lse, heads, padding, out, row_edges, col_edges, desc, desc_batch, desc_head, desc_column,
    q_batch, q_row, q_head, k_batch, k_row, k_head, l_batch, l_row, l_head, count, queries, keys, window, factor, cap,
    plane0, row_bins, col_bins, row_groups, bins_each, chunks, cols_each, row_start, row_stop, col_start, col_stop,
    GROUP: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr, CAPPED: tl.constexpr, PADDED: tl.constexpr, PRECISION: tl.constexpr, MAX: tl.constexpr,
    EVEN: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """A program owns ``bins_each`` row bins x ``cols_each`` column bins of one head; the longest rows come first."""
    pid = tl.program_id(0)
    chunk = pid % chunks
    group = row_groups - 1 - (pid // chunks) % row_groups
    n = plane0 + pid // (chunks * row_groups)
    b, h, kh = head_of(n, heads, count, GROUP)
    q += b * q_batch + h * q_head
    k += b * k_batch + kh * k_head
    desc_row, desc_col = (b * desc_batch + kh * desc_head).to(tl.int32), (kh * desc_column).to(tl.int32)
    lse += b * l_batch + h * l_head
    padding += b * keys
    out += n.to(tl.int64) * row_bins * col_bins

    top, bottom = _owned(row_edges, group, bins_each, row_bins)
    left, right = _owned(col_edges, chunk, cols_each, col_bins)
    rows_span, cols_span = row_stop - row_start, col_stop - col_start
    offset = keys - queries
    for i0 in tl.range(top, bottom, BM, num_stages=1):
        row = i0 + tl.arange(0, BM)
        last = tl.minimum(i0 + BM, bottom) - 1
        i = row + offset
        tile = run_of(q, i0, q_row, bottom, BM, D, BD, False)
        norm = log2_lse(lse, row, l_row, row < bottom)
        r = _bin_of(i0 - row_start, rows_span, row_bins)
        row_edge = tl.load(row_edges + r + 1)
        place = out + r.to(tl.int64) * col_bins
        low, high, low_all, high_all = key_range(i0 + offset, last + offset, left, right, window, CAUSAL, WINDOW)
        low = left + (low - left) // BN * BN
        whole = tl.minimum(left + (tl.maximum(low_all, low) - left + BN - 1) // BN * BN, tl.maximum(high, low))
        ragged = tl.maximum(left + (tl.maximum(high_all, left) - left) // BN * BN, whole)
        c = _bin_of(low - col_start, cols_span, col_bins)
        if PADDED:
            whole, ragged = low, low
        if WINDOW:
            c = _sweep(
                tile, norm, i, row, row_edge, row_edge <= last, place, col_bins, k, k_row, desc, desc_row, desc_col,
                padding, col_edges, cols_span // col_bins, c, low, whole, col_start, right, window, factor, cap,
                True, D, BD, BN, CAUSAL, WINDOW, CAPPED, PADDED, PRECISION, MAX, EVEN, TMA,
            )  # fmt: skip
        if not PADDED:
            c = _sweep(
                tile, norm, i, row, row_edge, row_edge <= last, place, col_bins, k, k_row, desc, desc_row, desc_col,
                padding, col_edges, cols_span // col_bins, c, whole, ragged, col_start, right, window, factor, cap,
                False, D, BD, BN, CAUSAL, WINDOW, CAPPED, PADDED, PRECISION, MAX, EVEN, TMA,
            )  # fmt: skip
        c = _sweep(
            tile, norm, i, row, row_edge, row_edge <= last, place, col_bins, k, k_row, desc, desc_row, desc_col,
            padding, col_edges, cols_span // col_bins, c, ragged, high, col_start, right, window, factor, cap,
            True, D, BD, BN, CAUSAL, WINDOW, CAPPED, PADDED, PRECISION, MAX, EVEN, TMA,
        )  # fmt: skip


@triton.jit
def _owned(edges, group, each, bins):
    """First and last + 1 position of the bins that a program owns."""
    return tl.load(edges + group * each), tl.load(edges + tl.minimum((group + 1) * each, bins))


@triton.jit
def _runs(low, high, span, bins, CB: tl.constexpr):
    """Runs of CB bins that the positions low..high-1 touch (none where high <= low)."""
    first = _bin_of(tl.maximum(low, 0), span, bins) // CB
    last = _bin_of(tl.maximum(high - 1, 0), span, bins) // CB + 1
    return first, tl.where(high > low, last, first)


@triton.jit
def _slots(edges, bins, first, sub, WIDE: tl.constexpr, SIZE: tl.constexpr):
    """Positions of SIZE slots, WIDE of them a bin (the sub-th WIDE of each), and whether a position stands there."""
    at = tl.arange(0, SIZE)
    which = first + at // WIDE
    inside = which < bins
    position = tl.load(edges + which, mask=inside, other=0) + sub * WIDE + at % WIDE
    return position, inside & (position < tl.load(edges + which + 1, mask=inside, other=0))


@triton.jit(do_not_specialize=[*_COUNTS, *_BINS, "row_subs", "col_subs", "col_start", "col_stop"])
def fine(
    q, k, lse, heads, padding, out, row_edges, col_edges,
    q_batch, q_row, q_head, k_batch, k_row, k_head, l_batch, l_row, l_head, count, queries, keys, window, factor, cap,
    plane0, row_bins, col_bins, row_groups, row_subs, chunks, col_subs, col_start, col_stop,
    ROW_SLOTS: tl.constexpr, COL_SLOTS: tl.constexpr,
    GROUP: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr, CAPPED: tl.constexpr, PADDED: tl.constexpr, PRECISION: tl.constexpr, MAX: tl.constexpr,
):  # fmt: skip
    """A program owns BM / ROW_SLOTS row bins and its chunk of the runs of BN / COL_SLOTS column bins."""
    pid = tl.program_id(0)
    chunk = pid % chunks
    group = row_groups - 1 - (pid // chunks) % row_groups
    n = plane0 + pid // (chunks * row_groups)
    b, h, kh = head_of(n, heads, count, GROUP)
    q += b * q_batch + h * q_head
    k += b * k_batch + kh * k_head
    lse += b * l_batch + h * l_head
    padding += b * keys
    out += n.to(tl.int64) * row_bins * col_bins

    RB: tl.constexpr = BM // ROW_SLOTS
    CB: tl.constexpr = BN // COL_SLOTS
    offset = keys - queries
    top, bottom = _owned(row_edges, group, RB, row_bins)
    low, high, _, _ = key_range(top + offset, bottom - 1 + offset, col_start, col_stop, window, CAUSAL, WINDOW)
    first, last = _runs(low - col_start, high - col_start, col_stop - col_start, col_bins, CB)
    each = tl.cdiv(tl.cdiv(col_bins, CB), chunks)
    first, last = tl.maximum(first, chunk * each), tl.minimum(last, (chunk + 1) * each)
    r = group * RB + tl.arange(0, RB)
    for row_sub in tl.range(0, row_subs, num_stages=1):
        row, ok = _slots(row_edges, row_bins, group * RB, row_sub, ROW_SLOTS, BM)
        tile = rows_of(q, row, q_row, ok, D, BD, False)
        norm = log2_lse(lse, row, l_row, ok)
        for step in tl.range(first * col_subs, last * col_subs):
            cg, sub = step // col_subs, step % col_subs
            j, real = _slots(col_edges, col_bins, cg * CB, sub, COL_SLOTS, BN)
            keys_tile = rows_of(k, j, k_row, real, D, BD, False)
            if PADDED:
                real = real & (tl.load(padding + j, mask=real, other=0) != 0)
            t = log2_scores(tile, keys_tile, factor, cap, CAPPED, PRECISION) - norm[:, None]
            p = tl.exp2(tl.where(seen(row + offset, j, real, window, CAUSAL, WINDOW), t, -INF))
            cells = _reduced(tl.reshape(p, (BM * CB, COL_SLOTS)), 1, MAX)
            cells = _reduced(tl.reshape(cells, (RB, ROW_SLOTS, CB)), 1, MAX)
            c = cg * CB + tl.arange(0, CB)
            place = out + r.to(tl.int64)[:, None] * col_bins + c[None, :]
            _into(place, cells, (r[:, None] < row_bins) & (c[None, :] < col_bins), MAX)
