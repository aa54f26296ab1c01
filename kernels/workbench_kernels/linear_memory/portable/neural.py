"""Titans' neural memory of two layers, chunk after chunk: the forward pass, and what both passes share.

One program walks the chunks of a row and head. Its memory k -> gelu(k W1) W2 and momentum (S1, S2) are wider than the
registers of a multiprocessor, so they lie in global memory, one copy a chunk's start (which the backward pass needs
anyway), and are worked on in blocks of hidden units. What depends on gates alone is made before, by torch.

No product takes the transpose of another one's result: what is needed that way is written out and read again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Tokens(NamedTuple):
    """(rows, chunks, C, width), rows = batch and heads."""

    q: Any
    k: Any
    v: Any


class Mixing(NamedTuple):
    """What the gates say, as in ``linear_memory.neural._Chunks``, and the first layer's scores (q k') * L."""

    scores: Any  # C C
    mixed: Any  # C C
    kept: Any  # C
    pulled: Any  # C
    into_weights: Any  # C
    into_momentum: Any  # C
    ends: Any  # 3


class Extent(NamedTuple):
    chunks: int
    slots: int  # copies of the states that there is room for: chunks + 1, or 2 that take turns


class Blocks(NamedTuple):
    """Compile-time constants (each wrapped in ``tl.constexpr``).

    The widths are among them: with strides that are not known every row of a tile has a pointer of its own, and these
    filled the registers.
    """

    D: Any
    HID: Any
    E: Any

    C: Any  # tokens of a chunk
    BD: Any  # all key components
    BE: Any  # all value components
    BH: Any  # hidden units of a block
    PRECISION: Any


@triton.jit
def dot(a, b, f):
    return tl.dot(a, b, input_precision=f.PRECISION)


@triton.jit
def held(x, i, d, high: tl.constexpr, wide: tl.constexpr):
    """Rows i, columns d of a (high, wide) matrix at x; zeros beyond it."""
    place = x + i[:, None] * wide + d[None, :]
    if high % i.shape[0] == 0 and wide % d.shape[0] == 0:
        return tl.load(place)
    else:
        return tl.load(place, mask=(i[:, None] < high) & (d[None, :] < wide), other=0.0)


@triton.jit
def put(x, i, d, high: tl.constexpr, wide: tl.constexpr, value):
    place = x + i[:, None] * wide + d[None, :]
    if high % i.shape[0] == 0 and wide % d.shape[0] == 0:
        tl.store(place, value)
    else:
        tl.store(place, value, mask=(i[:, None] < high) & (d[None, :] < wide))


@triton.jit
def bell(z):
    """The normal density."""
    return 0.3989422804014327 * tl.exp(-0.5 * z * z)


@triton.jit
def below(z):
    """The normal distribution function."""
    return 0.5 + 0.5 * tl.erf(0.7071067811865476 * z)


@triton.jit
def gelu(z):
    return z * below(z)


@triton.jit
def gelu_slope(z):
    return below(z) + z * bell(z)


@triton.jit
def factor(error, clip):
    """What errors longer than ``clip`` are shortened by, and 1 / length^2 of these (0 of others)."""
    square = tl.sum(error * error, 1)
    long = square > clip * clip
    some = tl.where(long, square, 1.0)
    return tl.where(long, clip / tl.sqrt(some), 1.0), tl.where(long, 1.0 / some, 0.0)


@triton.jit
def state_at(states, n, extent, f):
    """The matrices W1 (D, hidden) S1, W2 (hidden, Dv), S2 lie one after the other."""
    size = 2 * f.HID * (f.D + f.E)
    row = tl.cast(tl.program_id(0), tl.int64) * extent.slots + n % extent.slots
    w1 = states + row * size
    w2 = w1 + 2 * f.D * f.HID
    return w1, w1 + f.D * f.HID, w2, w2 + f.HID * f.E


@triton.jit
def ends_of(ends, c):
    """beta, c and e of the chunk's last token."""
    return tl.load(ends + 3 * c), tl.load(ends + 3 * c + 1), tl.load(ends + 3 * c + 2)


@triton.jit
def rows_of(x, c, i, d, wide: tl.constexpr, f):
    """A chunk's tokens. Read again in every block: what stays is kept in the form of every product that it enters."""
    return held(x + c * (f.C * wide), i, d, f.C, wide)


@triton.jit
def pairs_of(x, c, i, f):
    return held(x + c * (f.C * f.C), i, i, f.C, f.C)


@triton.jit
def factors_of(x, c, i, f):
    return tl.load(x + c * f.C + i)[:, None]


@triton.jit
def hidden_layer(x, w1_at, w2_at, scratch, c, i, d, e, f):
    """gelu(k W1) and its slope into ``scratch``; returns gelu(k W1) W2."""
    out = tl.zeros([f.C, f.BE], tl.float32)
    for h0 in range(0, f.HID, f.BH):
        h = h0 + tl.arange(0, f.BH)
        z = dot(rows_of(x.k, c, i, d, f.D, f), held(w1_at, d, h, f.D, f.HID), f)
        a = gelu(z)
        put(scratch, i, h, f.C, f.HID, a)
        put(scratch + f.C * f.HID, i, h, f.C, f.HID, gelu_slope(z))
        out += dot(a, held(w2_at, h, e, f.HID, f.E), f)
    return out


@triton.jit
def neural_forward_kernel(x, gates, states, y, errors, reads, hidden, clip, extent, f):
    """Reads y; ``errors`` M(k) - v and ``reads``, the second layer's scores before L, are for the backward pass."""
    i = tl.arange(0, f.C)
    d = tl.arange(0, f.BD)
    e = tl.arange(0, f.BE)
    row = tl.cast(tl.program_id(0), tl.int64)
    scratch = hidden + row * (2 * f.C * f.HID)
    for n in range(0, extent.chunks):
        c = row * extent.chunks + n
        w1_at, s1_at, w2_at, s2_at = state_at(states, n, extent, f)
        w1_to, s1_to, w2_to, s2_to = state_at(states, n + 1, extent, f)
        error = hidden_layer(x, w1_at, w2_at, scratch, c, i, d, e, f) - rows_of(x.v, c, i, e, f.E, f)
        put(errors + c * (f.C * f.E), i, e, f.C, f.E, error)
        short = factor(error, clip)[0][:, None]
        kept = factors_of(gates.kept, c, i, f)
        pulled = factors_of(gates.pulled, c, i, f)
        to_w = factors_of(gates.into_weights, c, i, f)
        to_s = factors_of(gates.into_momentum, c, i, f)
        beta, pull, carry = ends_of(gates.ends, c)
        read = tl.zeros([f.C, f.BE], tl.float32)
        scores = tl.zeros([f.C, f.C], tl.float32)
        tl.debug_barrier()  # scratch and errors are read by other threads than wrote them
        for h0 in range(0, f.HID, f.BH):
            h = h0 + tl.arange(0, f.BH)
            g = rows_of(errors, c, i, e, f.E, f) * short
            w2 = held(w2_at, h, e, f.HID, f.E)
            delta = dot(g, tl.trans(w2), f) * held(scratch + f.C * f.HID, i, h, f.C, f.HID)
            w1 = held(w1_at, d, h, f.D, f.HID)
            s1 = held(s1_at, d, h, f.D, f.HID)
            q = rows_of(x.q, c, i, d, f.D, f)
            b = kept * dot(q, w1, f) + pulled * dot(q, s1, f)
            b = gelu(b - dot(pairs_of(gates.scores, c, i, f), delta, f))
            k = rows_of(x.k, c, i, d, f.D, f)
            new = beta * w1 + pull * s1 - dot(tl.trans(k * to_w), delta, f)
            put(w1_to, d, h, f.D, f.HID, new)
            put(s1_to, d, h, f.D, f.HID, carry * s1 - dot(tl.trans(k * to_s), delta, f))
            a = held(scratch, i, h, f.C, f.HID)
            scores += dot(b, tl.trans(a), f)
            s2 = held(s2_at, h, e, f.HID, f.E)
            read += dot(kept * b, w2, f) + dot(pulled * b, s2, f)
            new = beta * w2 + pull * s2 - dot(tl.trans(a * to_w), g, f)
            put(w2_to, h, e, f.HID, f.E, new)
            put(s2_to, h, e, f.HID, f.E, carry * s2 - dot(tl.trans(a * to_s), g, f))
        put(reads + c * (f.C * f.C), i, i, f.C, f.C, scores)
        read -= dot(scores * pairs_of(gates.mixed, c, i, f), rows_of(errors, c, i, e, f.E, f) * short, f)
        put(y + c * (f.C * f.E), i, e, f.C, f.E, read)
        tl.debug_barrier()  # the next chunk reads the states that were written here, and writes the scratch
