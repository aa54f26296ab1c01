"""Pieces of device code that the kernels share: where a row lies, tiles of features and values, gates, level scores.

A tile is named by the positions ``i`` of its tokens inside the chunk and its components ``d``.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def row_place(rows, r, f):
    """(batch, first token, end, first chunk) of a row of the memory."""
    if rows.offsets is not None:
        begin = tl.load(rows.offsets + r).to(tl.int64)
        end = tl.load(rows.offsets + r + 1).to(tl.int64)
        first = tl.load(rows.chunks + r).to(tl.int64)
        batch = tl.zeros([], tl.int64)
    else:
        begin = tl.zeros([], tl.int64)
        end = begin + rows.length
        batch = tl.cast(r, tl.int64)
        first = batch * tl.cdiv(rows.length, f.C)
    return batch, begin, end, first


@triton.jit
def chunk_place(rows, c, f):
    """(row, chunk in the row) of a chunk; row -1: there is none."""
    if rows.offsets is not None:
        r = tl.load(rows.places + 2 * c)
        n = tl.load(rows.places + 2 * c + 1)
    else:
        per = tl.cdiv(rows.length, f.C)
        r = c // per
        n = c % per
    return r, n


@triton.jit
def chunk_tokens(rows, r, n, f):
    """(batch, first token, how many tokens, first chunk of the row) of chunk n of a row."""
    batch, begin, end, first = row_place(rows, r, f)
    token = begin + n * f.C
    return batch, token, tl.minimum(end - token, f.C).to(tl.int32), first


@triton.jit
def base_of(x, batch, token, head):
    return x.data + batch * x.b + token * x.n + tl.cast(head, tl.int64) * x.h


@triton.jit
def state_base(x, index, head, sizes):
    """Of one (D, Dv) matrix of (index, head)."""
    place = index * sizes.heads + head
    return x + place * (tl.cast(sizes.dim, tl.int64) * sizes.value_dim)


@triton.jit
def matrix(x, d, e, sizes, TURNED: tl.constexpr):
    """Rows d, columns e of a (D, Dv) matrix at x; TURNED: transposed."""
    if TURNED:
        rows = d[None, :]
        cols = e[:, None]
    else:
        rows = d[:, None]
        cols = e[None, :]
    return tl.load(x + rows * sizes.value_dim + cols, mask=(rows < sizes.dim) & (cols < sizes.value_dim), other=0.0)


@triton.jit
def put_matrix(x, d, e, sizes, value):
    inside = (d[:, None] < sizes.dim) & (e[None, :] < sizes.value_dim)
    tl.store(x + d[:, None] * sizes.value_dim + e[None, :], value.to(x.dtype.element_ty), mask=inside)


@triton.jit
def plain(x, base, i, d, count, limit, TURNED: tl.constexpr):
    """Tokens i < count, components d < limit; zeros elsewhere."""
    if TURNED:
        rows = i[None, :]
        cols = d[:, None]
    else:
        rows = i[:, None]
        cols = d[None, :]
    return tl.load(base + rows * x.n + cols, mask=(rows < count) & (cols < limit), other=0.0)


@triton.jit
def put(x, base, i, d, count, limit, value):
    inside = (i[:, None] < count) & (d[None, :] < limit)
    tl.store(base + i[:, None] * x.n + d[None, :], value.to(x.data.dtype.element_ty), mask=inside)


@triton.jit
def values(x, base, i, d, count, sizes, f):
    """A tile of values; with ONES the column after the last one is made of ones (the denominator)."""
    v = plain(x, base, i, d, count, sizes.width, False)
    if f.ONES:
        v = tl.where((d[None, :] == sizes.width) & (i[:, None] < count), 1.0, v.to(tl.float32))
    return v


@triton.jit
def features(x, base, i, d, count, sizes, f, TURNED: tl.constexpr):
    """phi of the tokens' vectors, features d, in float32 unless the map is the identity."""
    if f.MAP == 3:
        return taylor(x, base, i, d, count, sizes, TURNED)
    elif f.MAP == 0:
        return plain(x, base, i, d, count, sizes.dim, TURNED)
    elif f.MAP == 2:
        return tl.maximum(plain(x, base, i, d, count, sizes.dim, TURNED).to(tl.float32), 0.0)
    else:
        return elu_plus_one(x, base, i, d, count, sizes, TURNED)


@triton.jit
def elu_plus_one(x, base, i, d, count, sizes, TURNED: tl.constexpr):
    y = plain(x, base, i, d, count, sizes.dim, TURNED).to(tl.float32)
    if TURNED:
        inside = (i[None, :] < count) & (d[:, None] < sizes.dim)
    else:
        inside = (i[:, None] < count) & (d[None, :] < sizes.dim)
    return tl.where(inside, tl.where(y > 0, y + 1.0, tl.exp(y)), 0.0)


@triton.jit
def pair_of(d, sizes):
    """The two raw components behind a feature: (a, b) for x_a x_b, (a, -) for x_a."""
    raw = sizes.raw
    a = tl.where(d <= raw, d - 1, (d - 1 - raw) // raw)
    return a, (d - 1 - raw) % raw


@triton.jit
def taylor(x, base, i, d, count, sizes, TURNED: tl.constexpr):
    """[1, x / f^(1/4), x_a x_b / sqrt(2 f)], features d."""
    if TURNED:
        i = i[None, :]
        d = d[:, None]
    else:
        i = i[:, None]
        d = d[None, :]
    a, b = pair_of(d, sizes)
    root = tl.sqrt(tl.cast(sizes.raw, tl.float32))
    inside = (i < count) & (d < sizes.dim)
    xa = tl.load(base + i * x.n + a, mask=inside & (d > 0), other=1.0).to(tl.float32)
    xb = tl.load(base + i * x.n + b, mask=inside & (d > sizes.raw), other=1.0).to(tl.float32)
    size = tl.where(d == 0, 1.0, tl.where(d <= sizes.raw, 1.0 / tl.sqrt(root), 0.7071067811865476 / root))
    return tl.where(inside, xa * xb * size, 0.0)


@triton.jit
def slope(phi, f):
    """Derivative of an elementwise map, from its value."""
    if f.MAP == 1:
        return tl.minimum(phi, 1.0)
    elif f.MAP == 2:
        return tl.where(phi > 0, 1.0, 0.0)
    else:
        return tl.full(phi.shape, 1.0, tl.float32)


@triton.jit
def scalar_gate(g, base, i, count):
    """(G, total): running sum of the chunk's log decays, and all of it."""
    x = tl.load(base + i * g.n, mask=i < count, other=0.0).to(tl.float32)
    return tl.cumsum(x, 0), tl.sum(x, 0)


@triton.jit
def factors(x, batch, token, head, i, count):
    """One number a token of the chunk; zeros after its end."""
    return tl.load(base_of(x, batch, token, head) + i * x.n, mask=i < count, other=0.0)


@triton.jit
def dot(a, b, f):
    return tl.dot(a.to(f.X), b.to(f.X), input_precision=f.PRECISION)


@triton.jit
def level_pairs(i, j, half):
    """Pairs (i, j) of one level: i in the second half, j in the first half of the same block of 2 ``half``."""
    return (i // (2 * half) == j // (2 * half)) & (i // half % 2 == 1) & (j // half % 2 == 0)


@triton.jit
def meeting(i, half, count):
    """The last token of the first half of i's block: where the decays of a pair are split in two."""
    return tl.minimum(i // (2 * half) * (2 * half) + half - 1, count - 1)


@triton.jit
def towards(g, base, G, i, d, count, dim, half, BACK: tl.constexpr, TURNED: tl.constexpr):
    """exp(G_i - G_p), or exp(G_p - G_i) with BACK, p the meeting point: at most 1 for every pair of the level."""
    G_p = plain(g, base, meeting(i, half, count), d, count, dim, TURNED)
    gap = G - G_p
    if BACK:
        gap = -gap
    return tl.exp(tl.minimum(gap, 0.0))


@triton.jit
def level_scores(q, k, G, Gt, g, base, i, d, count, sizes, f):
    """sum_d q_i k_j exp(G_i - G_j) for j <= i of one tile of features: q (C, BK), k (BK, C) transposed.

    The pairs of a chunk are sorted by the block in which they meet (halves of 1, 2, 4, ... tokens); at the meeting
    point both decays are at most 1, so every level is one product of matrices and nothing overflows.
    """
    scores = tl.where(i[:, None] == i[None, :], dot(q, k, f), 0.0)
    for level in range(f.LEVELS):
        half = 1 << level
        ahead = q * towards(g, base, G, i, d, count, sizes.dim, half, False, False)
        behind = k * towards(g, base, Gt, i, d, count, sizes.dim, half, True, True)
        scores += tl.where(level_pairs(i[:, None], i[None, :], half), dot(ahead, behind, f), 0.0)
    return scores


@triton.jit
def level_scores_turned(q, k, G, Gt, g, base, i, d, count, sizes, f):
    """The transpose of :func:`level_scores`: k (C, BK), q (BK, C) transposed; rows are keys."""
    scores = tl.where(i[:, None] == i[None, :], dot(k, q, f), 0.0)
    for level in range(f.LEVELS):
        half = 1 << level
        behind = k * towards(g, base, G, i, d, count, sizes.dim, half, True, False)
        ahead = q * towards(g, base, Gt, i, d, count, sizes.dim, half, False, True)
        scores += tl.where(level_pairs(i[None, :], i[:, None], half), dot(behind, ahead, f), 0.0)
    return scores


@triton.jit
def segment_range(chunks, segment, sizes):
    per = tl.cdiv(chunks, sizes.segments)
    low = tl.minimum(segment * per, chunks)
    return low, tl.minimum(low + per, chunks)
