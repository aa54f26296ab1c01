"""What all map kernels share: rows of Q or K into a tile, and log-2 probabilities of a tile from Q, K and LSE.

A probability is exp2(factor q.k - lse), lse in log-2 units: one fused multiply-add and one exp2 a cell.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
INF = tl.constexpr(float("inf"))


@triton.jit
def head_of(n, heads, count, GROUP: tl.constexpr):
    """Batch row, query head and key head of the n-th plane of the result (int64)."""
    b = (n // count).to(tl.int64)
    h = tl.load(heads + n % count).to(tl.int64)
    return b, h, h // GROUP


@triton.jit
def rows_of(base, index, stride, ok, D: tl.constexpr, BD: tl.constexpr, WHOLE: tl.constexpr):
    """(len(index), BD): rows ``index`` of one head, zeros where not ``ok`` and beyond D."""
    d = tl.arange(0, BD)
    where = base + index.to(tl.int64)[:, None] * stride + d[None, :]
    if WHOLE:
        if D == BD:
            rows = tl.load(where)
        else:
            rows = tl.load(where, mask=d[None, :] < D, other=0.0)
    else:
        rows = tl.load(where, mask=ok[:, None] & (d[None, :] < D), other=0.0)
    return rows


@triton.jit
def run_of(base, first, stride, stop, SIZE: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, WHOLE: tl.constexpr):
    """(SIZE, BD): consecutive rows from ``first``, zeros from ``stop`` on (none where WHOLE) and beyond D.

    Only the start needs 64 bits, which spares registers in a loop.
    """
    d, at = tl.arange(0, BD), tl.arange(0, SIZE)
    where = base + tl.cast(first, tl.int64) * stride + (at[:, None] * stride + d[None, :])
    if WHOLE:
        if D == BD:
            rows = tl.load(where)
        else:
            rows = tl.load(where, mask=d[None, :] < D, other=0.0)
    else:
        rows = tl.load(where, mask=(first + at < stop)[:, None] & (d[None, :] < D), other=0.0)
    return rows


@triton.jit
def log2_lse(base, index, stride, ok):
    """The row LSE in log-2 units, +inf (probability 0 everywhere) where not ``ok`` and for rows that see nothing."""
    lse = tl.load(base + index.to(tl.int64) * stride, mask=ok, other=INF).to(tl.float32) * LOG2_E
    return tl.where(lse == -INF, INF, lse)


@triton.jit
def log2_scores(q, k, factor, cap, CAPPED: tl.constexpr, PRECISION: tl.constexpr):
    """(M, N) scores in log-2 units. Capped: cap tanh(x), with factor turning q.k into 2 x log2(e)."""
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * factor
    if CAPPED:
        s = cap * (1.0 - 2.0 / (tl.exp2(s) + 1.0))
    return s


@triton.jit
def seen(i, j, real, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    """(M, N): which cells count; ``i`` are the query positions counted from the first key (aligned bottom-right)."""
    cells = real[None, :] & (i[:, None] == i[:, None])
    if CAUSAL:
        cells = cells & (j[None, :] <= i[:, None])
    if WINDOW:
        cells = cells & (j[None, :] > i[:, None] - window)
    return cells


@triton.jit
def real_keys(j, stop, padding, PADDED: tl.constexpr):
    """(N,): positions below ``stop`` that are no padding."""
    real = j < stop
    if PADDED:
        real = real & (tl.load(padding + j, mask=real, other=0) != 0)
    return real


@triton.jit
def key_range(first, last, left, right, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    """Keys of left..right-1 that any of the query positions first..last sees, and those that all of them see."""
    low, high, low_all, high_all = left, right, left, right
    if CAUSAL:
        high = tl.minimum(right, last + 1)
        high_all = tl.minimum(right, first + 1)
    if WINDOW:
        low = tl.maximum(left, first - window + 1)
        low_all = tl.maximum(left, last - window + 1)
    return low, high, low_all, high_all
