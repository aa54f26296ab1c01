"""The sequential part: the state at every chunk's start (forward), the gradient of the state at its end (backward).

One program owns a tile of one row's state and walks the row's chunks. Long rows are cut into segments that run beside
each other: a first launch adds up every segment by itself (TOTALS), a second one starts each segment from the sum of
those before it. The delta rule needs the whole key dimension in one program and has one segment.
"""

from __future__ import annotations

import triton
import triton.language as tl

from workbench_kernels.linear_memory.portable.tiles import (
    base_of,
    chunk_place,
    chunk_tokens,
    dot,
    factors,
    features,
    matrix,
    plain,
    put,
    put_matrix,
    row_place,
    scalar_gate,
    segment_range,
    state_base,
    values,
)


@triton.jit
def running_kernel(g, out, rows, sizes, f):
    """Running sums of the log decays of a chunk, a channel each."""
    pid = tl.program_id(0)
    tiles = tl.cdiv(sizes.dim, f.BK)
    head = pid // tiles % sizes.heads
    r, n = chunk_place(rows, pid // tiles // sizes.heads, f)
    if r < 0:
        return
    batch, token, count, _first = chunk_tokens(rows, r, n, f)
    i = tl.arange(0, f.C)
    d = pid % tiles * f.BK + tl.arange(0, f.BK)
    x = plain(g, base_of(g, batch, token, head), i, d, count, sizes.dim, False)
    put(out, base_of(out, batch, token, head), i, d, count, sizes.dim, tl.cumsum(x.to(tl.float32), 0))


@triton.jit
def before(state, totals, decays, index, low, high, step, d, e, head, sizes, f):
    """The state after the segments low, low + step, ..., each of which has its own sum and its decay."""
    for s in range(low, high):
        at = index * sizes.segments + (s if step > 0 else sizes.segments - 1 - (s - low))
        if f.GATE == 1:
            state *= tl.exp(tl.load(decays + at * sizes.heads + head))
        elif f.GATE == 2:
            place = decays + (at * sizes.heads + head) * sizes.dim + d
            state *= tl.exp(tl.load(place, mask=d < sizes.dim, other=0.0))[:, None]
        state += matrix(state_base(totals, at, head, sizes), d, e, sizes, False)
    return state


@triton.jit
def states_kernel(
    k, v, w, g, grown, left, start, totals, decays, h, new_v, final, rows, sizes, f, TOTALS: tl.constexpr,
):  # fmt: skip
    """h: the state at every chunk's start; ``final``. With the delta rule v is U, w is W, and new_v = U - W h.

    TOTALS: every segment from zero (2: but the last, if nobody asks for it); its end goes to ``totals``, its log decay
    to ``decays``. ``grown`` and ``left``:
    exp(G) and exp(total - G) from before, so that no step of the walk has to add up its gates.
    """
    pid = tl.program_id(0)
    across = tl.cdiv(sizes.value_dim, f.BV)
    tiles = tl.cdiv(sizes.dim, f.BK) * across
    segment = pid // tiles % sizes.segments
    if TOTALS == 2:  # noqa: SIM102 - known when it is compiled, and what is inside when it runs
        if segment == sizes.segments - 1:
            return
    head = pid // tiles // sizes.segments % sizes.heads
    r = pid // tiles // sizes.segments // sizes.heads
    d = pid % tiles // across * f.BK + tl.arange(0, f.BK)
    e = pid % across * f.BV + tl.arange(0, f.BV)
    i = tl.arange(0, f.C)
    batch, begin, end, first = row_place(rows, r, f)
    low, high = segment_range(tl.cdiv(end - begin, f.C).to(tl.int32), segment, sizes)
    index = tl.cast(r, tl.int64)

    state = tl.zeros([f.BK, f.BV], tl.float32)
    gone = tl.zeros([f.BK], tl.float32)
    gone_all = tl.zeros([], tl.float32)
    if not TOTALS:
        if start is not None:
            state += matrix(state_base(start, index, head, sizes), d, e, sizes, False)
        if totals is not None:
            state = before(state, totals, decays, index, 0, segment, 1, d, e, head, sizes, f)
    for n in range(low, high):
        token = begin + n * f.C
        count = tl.minimum(end - token, f.C).to(tl.int32)
        if not TOTALS:
            put_matrix(state_base(h, first + n, head, sizes), d, e, sizes, state)
        kt = features(k, base_of(k, batch, token, head // sizes.group), i, d, count, sizes, f, True)
        if f.DELTA:
            u = plain(v, base_of(v, batch, token, head), i, e, count, sizes.value_dim, False).to(tl.float32)
            written = u - dot(plain(w, base_of(w, batch, token, head), i, d, count, sizes.dim, False), state, f)
            put(new_v, base_of(new_v, batch, token, head), i, e, count, sizes.value_dim, written)
        else:
            written = values(v, base_of(v, batch, token, head // sizes.group), i, e, count, sizes, f)
        if grown is not None:
            written = written.to(tl.float32) * factors(left, batch, token, head, i, count)[:, None]
            state *= tl.load(base_of(grown, batch, token, head) + (count - 1) * grown.n)
        elif f.GATE == 1:
            G, total = scalar_gate(g, base_of(g, batch, token, head), i, count)
            written = written.to(tl.float32) * tl.exp(total - G)[:, None]
            state *= tl.exp(total)
            gone_all += total
        elif f.GATE == 2:
            place = base_of(g, batch, token, head)
            G = plain(g, place, i, d, count, sizes.dim, True)
            total_d = tl.load(place + (count - 1) * g.n + d, mask=d < sizes.dim, other=0.0)
            kt = kt * tl.exp(total_d[:, None] - G)
            state *= tl.exp(total_d)[:, None]
            gone += total_d
        state += dot(kt, written, f)
    if TOTALS:
        at = index * sizes.segments + segment
        put_matrix(state_base(totals, at, head, sizes), d, e, sizes, state)
        if f.GATE == 1:
            tl.store(decays + at * sizes.heads + head, gone_all)
        elif f.GATE == 2:
            tl.store(decays + (at * sizes.heads + head) * sizes.dim + d, gone, mask=d < sizes.dim)
    elif segment == sizes.segments - 1:
        put_matrix(state_base(final, index, head, sizes), d, e, sizes, state)


@triton.jit
def state_gradients_kernel(
    q, k, w, g, grad, grown, left, last, totals, decays, dh, dv, first_grad, rows, sizes, scale,
    f, TOTALS: tl.constexpr,
):  # fmt: skip
    """dh: the gradient of the state at every chunk's end; ``first_grad`` that of the initial state.

    With the delta rule dv comes in as the chunk's own part of new_v's gradient and leaves as all of it. TOTALS as
    above (the segments' decays are those of the forward pass), but for the first segment: nothing comes before it.
    """
    pid = tl.program_id(0)
    across = tl.cdiv(sizes.value_dim, f.BV)
    tiles = tl.cdiv(sizes.dim, f.BK) * across
    segment = pid // tiles % sizes.segments
    if TOTALS:  # noqa: SIM102
        if segment == 0:
            return
    head = pid // tiles // sizes.segments % sizes.heads
    r = pid // tiles // sizes.segments // sizes.heads
    d = pid % tiles // across * f.BK + tl.arange(0, f.BK)
    e = pid % across * f.BV + tl.arange(0, f.BV)
    i = tl.arange(0, f.C)
    batch, begin, end, first = row_place(rows, r, f)
    low, high = segment_range(tl.cdiv(end - begin, f.C).to(tl.int32), segment, sizes)
    index = tl.cast(r, tl.int64)

    state = tl.zeros([f.BK, f.BV], tl.float32)
    if not TOTALS:
        if last is not None:
            state += matrix(state_base(last, index, head, sizes), d, e, sizes, False)
        if totals is not None:
            state = before(state, totals, decays, index, segment + 1, sizes.segments, -1, d, e, head, sizes, f)
    for back in range(low, high):
        n = high - 1 - (back - low)
        token = begin + n * f.C
        count = tl.minimum(end - token, f.C).to(tl.int32)
        if not TOTALS:
            put_matrix(state_base(dh, first + n, head, sizes), d, e, sizes, state)
        qt = features(q, base_of(q, batch, token, head), i, d, count, sizes, f, True)
        out = plain(grad, base_of(grad, batch, token, head), i, e, count, sizes.value_dim, False)
        out = out.to(tl.float32) * scale
        if grown is not None:
            out *= factors(grown, batch, token, head, i, count)[:, None]
        elif f.GATE == 1:
            G, total = scalar_gate(g, base_of(g, batch, token, head), i, count)
            out *= tl.exp(G)[:, None]
        elif f.GATE == 2:
            place = base_of(g, batch, token, head)
            qt = qt * tl.exp(plain(g, place, i, d, count, sizes.dim, True))
            total_d = tl.load(place + (count - 1) * g.n + d, mask=d < sizes.dim, other=0.0)
        if f.DELTA:
            kk = features(k, base_of(k, batch, token, head // sizes.group), i, d, count, sizes, f, False)
            more = dot(kk, state, f)
            if grown is not None:
                more *= factors(left, batch, token, head, i, count)[:, None]
            elif f.GATE == 1:
                more *= tl.exp(total - G)[:, None]
            at = base_of(dv, batch, token, head)
            more += plain(dv, at, i, e, count, sizes.value_dim, False)
            put(dv, at, i, e, count, sizes.value_dim, more)
        if grown is not None:
            state *= tl.load(base_of(grown, batch, token, head) + (count - 1) * grown.n)
        elif f.GATE == 1:
            state *= tl.exp(total)
        elif f.GATE == 2:
            state *= tl.exp(total_d)[:, None]
        state += dot(qt, out, f)
        if f.DELTA:
            state += dot(plain(w, base_of(w, batch, token, head), i, d, count, sizes.dim, True), -more, f)
    if TOTALS:
        put_matrix(state_base(totals, index * sizes.segments + segment, head, sizes), d, e, sizes, state)
    elif segment == 0 and first_grad is not None:
        put_matrix(state_base(first_grad, index, head, sizes), d, e, sizes, state)
