"""Gradients of the two-layer neural memory: the chunks backwards, with the gradients of W1, S1, W2, S2 carried along.

With z = k W1, a = gelu(z), e = a W2 - v, g = e (shortened), u = g W2', delta = u * gelu'(z), and for the read
zq = kept q W1 + pulled q S1 - P delta, b = gelu(zq), y = kept b W2 + pulled b S2 - ((b a') * L) g. Three walks over the
hidden units: the gradients of what was read, of what was written, and, when de is whole, what passes through e and the
gradients of the states. A walk leaves what the next ones need in scratch; three spill less than two.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from workbench_kernels.linear_memory.portable.neural import (
    bell,
    below,
    dot,
    ends_of,
    factor,
    factors_of,
    gelu,
    gelu_slope,
    held,
    pairs_of,
    put,
    rows_of,
    state_at,
)

#: (C, hidden) matrices of scratch that a program needs.
SCRATCH = 7


class Found(NamedTuple):
    """Gradients of the tokens and of what the gates say, in the places of ``Tokens`` and ``Mixing``."""

    q: Any
    k: Any
    v: Any
    scores: Any
    mixed: Any
    kept: Any
    pulled: Any
    into_weights: Any
    into_momentum: Any
    ends: Any


@triton.jit
def places_of(scratch, f):
    """Where the (C, hidden) matrices lie that the first walk leaves for the second."""
    size = f.C * f.HID
    at = scratch + tl.cast(tl.program_id(0), tl.int64) * (7 * size)
    return at, at + size, at + 2 * size, at + 3 * size, at + 4 * size, at + 5 * size, at + 6 * size


@triton.jit
def neural_backward_kernel(x, gates, states, errors, reads, grad, dstates, scratch, out, clip, extent, turn, f):
    """``dstates``: two copies that take turns, the first holds the gradient of the final state."""
    i = tl.arange(0, f.C)
    d = tl.arange(0, f.BD)
    e = tl.arange(0, f.BE)
    row = tl.cast(tl.program_id(0), tl.int64)
    a_at, slope_at, b_at, delta_at, du_at, dzq_at, dz_at = places_of(scratch, f)
    for back in range(0, extent.chunks):
        n = extent.chunks - 1 - back
        c = row * extent.chunks + n
        w1_at, s1_at, w2_at, s2_at = state_at(states, n, extent, f)
        dw1_at, ds1_at, dw2_at, ds2_at = state_at(dstates, back, turn, f)
        dw1_to, ds1_to, dw2_to, ds2_to = state_at(dstates, back + 1, turn, f)
        kept = factors_of(gates.kept, c, i, f)
        pulled = factors_of(gates.pulled, c, i, f)
        to_w = factors_of(gates.into_weights, c, i, f)
        to_s = factors_of(gates.into_momentum, c, i, f)
        beta, pull, carry = ends_of(gates.ends, c)
        error = rows_of(errors, c, i, e, f.E, f)
        short, inverse = factor(error, clip)
        short = short[:, None]

        # y = .. - ((b a') * L) g
        dy = rows_of(grad, c, i, e, f.E, f)
        second = pairs_of(reads, c, i, f)
        mixed = pairs_of(gates.mixed, c, i, f)
        pairs = -dot(dy, tl.trans(error * short), f)
        put(out.mixed + c * (f.C * f.C), i, i, f.C, f.C, pairs * second)
        put(out.scores + c * (f.C * f.C), i, i, f.C, f.C, pairs * mixed)  # read again, then overwritten
        dg = -dot(tl.trans(second * mixed), dy, f)
        dq = tl.zeros([f.C, f.BD], tl.float32)
        dkept = tl.zeros([f.C], tl.float32)
        dpulled = tl.zeros([f.C], tl.float32)
        tl.debug_barrier()
        for h0 in range(0, f.HID, f.BH):
            h = h0 + tl.arange(0, f.BH)
            w1 = held(w1_at, d, h, f.D, f.HID)
            s1 = held(s1_at, d, h, f.D, f.HID)
            k = rows_of(x.k, c, i, d, f.D, f)
            z = dot(k, w1, f)
            cdf = below(z)
            phi = bell(z)
            a = z * cdf
            slope = cdf + z * phi
            put(a_at, i, h, f.C, f.HID, a)
            put(slope_at, i, h, f.C, f.HID, slope)
            w2 = held(w2_at, h, e, f.HID, f.E)
            g = rows_of(errors, c, i, e, f.E, f) * short
            u = dot(g, tl.trans(w2), f)
            delta = u * slope
            put(delta_at, i, h, f.C, f.HID, delta)
            put(du_at, i, h, f.C, f.HID, u * (2.0 - z * z) * phi)
            # the read of the second layer, then of the first
            q = rows_of(x.q, c, i, d, f.D, f)
            zq = kept * dot(q, w1, f) + pulled * dot(q, s1, f) - dot(pairs_of(gates.scores, c, i, f), delta, f)
            b = gelu(zq)
            put(b_at, i, h, f.C, f.HID, b)
            dy = rows_of(grad, c, i, e, f.E, f)
            s2 = held(s2_at, h, e, f.HID, f.E)
            from_w = dot(dy, tl.trans(w2), f)
            from_s = dot(dy, tl.trans(s2), f)
            dkept += tl.sum(b * from_w, 1)
            dpulled += tl.sum(b * from_s, 1)
            dpairs = pairs_of(out.scores, c, i, f)
            dzq = (kept * from_w + pulled * from_s + dot(dpairs, a, f)) * gelu_slope(zq)
            put(dzq_at, i, h, f.C, f.HID, dzq)
            w1 = held(w1_at, d, h, f.D, f.HID)
            from_w = dot(dzq, tl.trans(w1), f)
            s1 = held(s1_at, d, h, f.D, f.HID)
            from_s = dot(dzq, tl.trans(s1), f)
            q = rows_of(x.q, c, i, d, f.D, f)
            dkept += tl.sum(q * from_w, 1)
            dpulled += tl.sum(q * from_s, 1)
            dq += kept * from_w + pulled * from_s
            dpairs = pairs_of(out.scores, c, i, f)
            put(dz_at, i, h, f.C, f.HID, dot(tl.trans(dpairs), b, f) * slope)
        tl.store(out.kept + c * f.C + i, dkept)
        tl.store(out.pulled + c * f.C + i, dpulled)
        put(out.q + c * (f.C * f.D), i, d, f.C, f.D, dq)

        # the writes: S1, W1 - (k' ..) delta, S2, W2 - (a' ..) g
        dk = tl.zeros([f.C, f.BD], tl.float32)
        dto_w = tl.zeros([f.C], tl.float32)
        dto_s = tl.zeros([f.C], tl.float32)
        dbeta = tl.zeros([], tl.float32)
        dpull = tl.zeros([], tl.float32)
        dcarry = tl.zeros([], tl.float32)
        tl.debug_barrier()
        for h0 in range(0, f.HID, f.BH):
            h = h0 + tl.arange(0, f.BH)
            dw = held(dw1_at, d, h, f.D, f.HID)
            w1 = held(w1_at, d, h, f.D, f.HID)
            s1 = held(s1_at, d, h, f.D, f.HID)
            dbeta += tl.sum(dw * w1)
            dpull += tl.sum(dw * s1)
            k = rows_of(x.k, c, i, d, f.D, f)
            ddelta = -dot(k * to_w, dw, f)
            delta = held(delta_at, i, h, f.C, f.HID)
            from_state = dot(delta, tl.trans(dw), f)
            dto_w -= tl.sum(k * from_state, 1)
            dk -= to_w * from_state
            ds = held(ds1_at, d, h, f.D, f.HID)
            dcarry += tl.sum(ds * s1)
            ddelta -= dot(k * to_s, ds, f)
            from_state = dot(delta, tl.trans(ds), f)
            dto_s -= tl.sum(k * from_state, 1)
            dk -= to_s * from_state
            dzq = held(dzq_at, i, h, f.C, f.HID)
            ddelta -= dot(tl.trans(pairs_of(gates.scores, c, i, f)), dzq, f)
            slope = held(slope_at, i, h, f.C, f.HID)
            du = ddelta * slope
            w2 = held(w2_at, h, e, f.HID, f.E)
            dg += dot(du, w2, f)
            dz = held(dz_at, i, h, f.C, f.HID) + ddelta * held(du_at, i, h, f.C, f.HID)
            tl.debug_barrier()  # du takes the place of u * bend
            put(du_at, i, h, f.C, f.HID, du)
            dw = held(dw2_at, h, e, f.HID, f.E)
            dbeta += tl.sum(dw * w2)
            s2 = held(s2_at, h, e, f.HID, f.E)
            dpull += tl.sum(dw * s2)
            a = held(a_at, i, h, f.C, f.HID)
            g = rows_of(errors, c, i, e, f.E, f) * short
            from_state = dot(g, tl.trans(dw), f)
            dto_w -= tl.sum(a * from_state, 1)
            da = to_w * from_state
            dg -= dot(a * to_w, dw, f)
            ds = held(ds2_at, h, e, f.HID, f.E)
            dcarry += tl.sum(ds * s2)
            from_state = dot(g, tl.trans(ds), f)
            dto_s -= tl.sum(a * from_state, 1)
            da += to_s * from_state
            dg -= dot(a * to_s, ds, f)
            put(dz_at, i, h, f.C, f.HID, dz - da * slope)
        tl.store(out.into_weights + c * f.C + i, dto_w)
        tl.store(out.into_momentum + c * f.C + i, dto_s)
        tl.store(out.ends + 3 * c, dbeta)
        tl.store(out.ends + 3 * c + 1, dpull)
        tl.store(out.ends + 3 * c + 2, dcarry)
        error = rows_of(errors, c, i, e, f.E, f)
        along = tl.sum(error * dg, 1) * inverse
        put(out.v + c * (f.C * f.E), i, e, f.C, f.E, short * (error * along[:, None] - dg))
        dscores = tl.zeros([f.C, f.C], tl.float32)
        tl.debug_barrier()  # scratch and the gradient of v are read by other threads than wrote them
        for h0 in range(0, f.HID, f.BH):
            h = h0 + tl.arange(0, f.BH)
            de = -rows_of(out.v, c, i, e, f.E, f)
            w2 = held(w2_at, h, e, f.HID, f.E)
            slope = held(slope_at, i, h, f.C, f.HID)
            dz = held(dz_at, i, h, f.C, f.HID) + dot(de, tl.trans(w2), f) * slope
            dk += dot(dz, tl.trans(held(w1_at, d, h, f.D, f.HID)), f)
            dzq = held(dzq_at, i, h, f.C, f.HID)
            dscores -= dot(dzq, tl.trans(held(delta_at, i, h, f.C, f.HID)), f)
            q = rows_of(x.q, c, i, d, f.D, f)
            dw = held(dw1_at, d, h, f.D, f.HID)
            ds = held(ds1_at, d, h, f.D, f.HID)
            put(ds1_to, d, h, f.D, f.HID, pull * dw + carry * ds + dot(tl.trans(q * pulled), dzq, f))
            new = beta * dw + dot(tl.trans(q * kept), dzq, f)
            new += dot(tl.trans(rows_of(x.k, c, i, d, f.D, f)), dz, f)
            put(dw1_to, d, h, f.D, f.HID, new)
            b = held(b_at, i, h, f.C, f.HID)
            dy = rows_of(grad, c, i, e, f.E, f)
            dw = held(dw2_at, h, e, f.HID, f.E)
            ds = held(ds2_at, h, e, f.HID, f.E)
            put(ds2_to, h, e, f.HID, f.E, pull * dw + carry * ds + dot(tl.trans(b * pulled), dy, f))
            new = beta * dw + dot(tl.trans(b * kept), dy, f) + dot(tl.trans(held(a_at, i, h, f.C, f.HID)), de, f)
            g = rows_of(errors, c, i, e, f.E, f) * short
            new += dot(tl.trans(held(du_at, i, h, f.C, f.HID)), g, f)
            put(dw2_to, h, e, f.HID, f.E, new)
        put(out.k + c * (f.C * f.D), i, d, f.C, f.D, dk)
        tl.debug_barrier()  # the next chunk reads the states' gradients that were written here, and writes the scratch
        put(out.scores + c * (f.C * f.C), i, i, f.C, f.C, dscores)
