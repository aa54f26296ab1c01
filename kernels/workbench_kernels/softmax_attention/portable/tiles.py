"""Pieces of device code that every Triton attention kernel shares: loads, ranges, scores, masks, the dropout hash.

Tiles are named by their query positions ``i`` and key positions ``j``, which broadcast against each other, so the same
code serves tiles of scores (rows are queries) and of transposed scores (rows are keys).
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def head_base(x, batch, head):
    """Address of one (batch, head) of a strided (B, S, H, D) tensor; 64 bits wide."""
    return x.data + tl.cast(batch, tl.int64) * x.b + tl.cast(head, tl.int64) * x.h


@triton.jit
def offsets(x, COUNT: tl.constexpr, WIDTH: tl.constexpr, TURNED: tl.constexpr, WIDE: tl.constexpr):
    """Offsets of a tile of COUNT positions and WIDTH components, (COUNT, WIDTH), or transposed when TURNED.

    64 bits only where strides are so large that 32 would not do within one tile (WIDE): registers are scarce.
    """
    n = tl.arange(0, COUNT)
    d = tl.arange(0, WIDTH)
    if WIDE:
        n = n.to(tl.int64)
    n = n * x.n
    if TURNED:
        return n[None, :] + d[:, None]
    else:
        return n[:, None] + d[None, :]


@triton.jit
def load_tile(
    x, base, tile, start, limit, width,
    COUNT: tl.constexpr, WIDTH: tl.constexpr, TURNED: tl.constexpr, TAIL: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Positions start..start+COUNT-1; zeros past ``limit`` (only looked at with TAIL) and past ``width`` (not EVEN)."""
    place = base + tl.cast(start, tl.int64) * x.n + tile
    n = start + tl.arange(0, COUNT)
    d = tl.arange(0, WIDTH)
    if TURNED:
        inside_n = n[None, :] < limit
        inside_d = d[:, None] < width
    else:
        inside_n = n[:, None] < limit
        inside_d = d[None, :] < width
    if TAIL and not EVEN:
        return tl.load(place, mask=inside_n & inside_d, other=0.0)
    elif TAIL:
        return tl.load(place, mask=inside_n, other=0.0)
    elif not EVEN:
        return tl.load(place, mask=inside_d, other=0.0)
    else:
        return tl.load(place)


@triton.jit
def lone_tile(
    x, batch, head, start, limit, width,
    COUNT: tl.constexpr, WIDTH: tl.constexpr, TURNED: tl.constexpr, EVEN: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """A tile that is loaded once, outside of any loop."""
    tile = offsets(x, COUNT, WIDTH, TURNED, WIDE)
    return load_tile(x, head_base(x, batch, head), tile, start, limit, width, COUNT, WIDTH, TURNED, True, EVEN)


@triton.jit
def store_tile(x, base, start, limit, width, value, COUNT: tl.constexpr, WIDTH: tl.constexpr):
    n = start + tl.arange(0, COUNT)
    d = tl.arange(0, WIDTH)
    place = base + tl.cast(start, tl.int64) * x.n + offsets(x, COUNT, WIDTH, False, True)
    tl.store(place, value.to(x.data.dtype.element_ty), mask=(n[:, None] < limit) & (d[None, :] < width))


@triton.jit
def key_ranges(row, sizes, f):
    """(low, full_low, full_high, high): the keys of a row block; between the middle two no tile needs the band mask.

    Bounds but the last are multiples of the tile. Query i sees keys j <= i + offset and j > i + offset - window.
    """
    offset = sizes.keys - sizes.queries
    low = 0
    high = sizes.keys
    full_high = sizes.keys // f.BN * f.BN
    full_low = 0
    if f.CAUSAL:
        high = tl.minimum(high, tl.minimum(row + f.BM, sizes.queries) + offset)
        full_high = tl.minimum(full_high, tl.maximum(row + offset + 1, 0) // f.BN * f.BN)
    if f.WINDOW:
        low = tl.maximum(row + offset - sizes.window + 1, 0) // f.BN * f.BN
        full_low = tl.cdiv(tl.maximum(row + f.BM + offset - sizes.window, 0), f.BN) * f.BN
    full_low = tl.maximum(full_low, low)
    return low, full_low, tl.maximum(full_high, full_low), high


@triton.jit
def query_ranges(col, sizes, f):
    """(low, full_low, full_high, high): the queries of a key block, as in :func:`key_ranges`."""
    offset = sizes.keys - sizes.queries
    low = 0
    high = sizes.queries
    full_high = sizes.queries // f.BM * f.BM
    full_low = 0
    if f.CAUSAL:
        low = tl.maximum(col - offset, 0) // f.BM * f.BM
        full_low = tl.cdiv(tl.maximum(col + f.BN - 1 - offset, 0), f.BM) * f.BM
    if f.WINDOW:
        high = tl.minimum(high, col + f.BN - 1 + sizes.window - offset)
        full_high = tl.minimum(full_high, tl.maximum(col + sizes.window - offset, 0) // f.BM * f.BM)
    full_low = tl.maximum(full_low, low)
    return low, full_low, tl.maximum(full_high, full_low), high


@triton.jit
def tanh(x, PRECISE: tl.constexpr):
    """tanh from exp2; with PRECISE a polynomial near zero, where 1 - exp would cancel."""
    size = tl.abs(x)
    e = tl.math.exp2(size * (-2 * LOG2_E))
    y = (1.0 - e) / (1.0 + e)
    y = tl.where(x < 0, -y, y)
    if PRECISE:
        z = x * x
        near = -5.70498872745e-3 * z + 2.06390887954e-2
        near = near * z - 5.37397155531e-2
        near = near * z + 1.33314422036e-1
        near = near * z - 3.33332819422e-1
        y = tl.where(size < 0.625, near * z * x + x, y)
    return y


@triton.jit
def in_band(i, j, sizes, f):
    """Whether causal mask and window leave the pair; only asked where one of them is set."""
    offset = sizes.keys - sizes.queries
    seen = j < j + 1
    if f.CAUSAL:
        seen = j <= i + offset
    if f.WINDOW:
        if f.CAUSAL:
            seen = seen & (j > i + offset - sizes.window)
        else:
            seen = j > i + offset - sizes.window
    return seen


@triton.jit
def finish_scores(s, i, j, batch, head, call, f, BAND: tl.constexpr, TAIL: tl.constexpr):
    """From raw products to masked scores and the soft cap's slope (unused and dropped without a cap).

    Scores come out in log-2 units, but with FOLDED still unscaled: the scale then joins the exponent's multiply-add.
    BAND: the tile may cross the diagonal or the window's edge; TAIL: it may reach past the last key.
    """
    slope = s
    if f.SOFTCAP:
        bent = tanh(s * call.numbers.inner, f.PRECISE)
        slope = 1.0 - bent * bent
        s = bent * call.numbers.outer
    elif not f.FOLDED:
        s = s * call.numbers.scale_log2
    masks = call.masks
    inside = (i < call.sizes.queries) & (j < call.sizes.keys)
    if TAIL:
        s = tl.where(j < call.sizes.keys, s, float("-inf"))
    if BAND and (f.CAUSAL or f.WINDOW):
        s = tl.where(in_band(i, j, call.sizes, f), s, float("-inf"))
    if masks.padding.data is not None:
        line = masks.padding.data + tl.cast(batch, tl.int64) * masks.padding.b
        real = tl.load(line + j.to(tl.int64) * masks.padding.j, mask=j < call.sizes.keys, other=0)
        s = tl.where(real != 0, s, float("-inf"))
    if masks.mask.data is not None:
        plane = masks.mask.data + tl.cast(batch, tl.int64) * masks.mask.b + tl.cast(head, tl.int64) * masks.mask.h
        cell = tl.load(plane + (i.to(tl.int64) * masks.mask.i + j.to(tl.int64) * masks.mask.j), mask=inside, other=0)
        if f.ADDITIVE:
            s += cell.to(tl.float32) * LOG2_E
        else:
            s = tl.where(cell != 0, s, float("-inf"))
    if masks.blocks.data is not None:
        plane = masks.blocks.data + tl.cast(batch, tl.int64) * masks.blocks.b
        plane += tl.cast(head, tl.int64) * masks.blocks.h
        r = (i // call.sizes.block_rows).to(tl.int64)
        c = (j // call.sizes.block_cols).to(tl.int64)
        live = tl.load(plane + (r * masks.blocks.i + c * masks.blocks.j), mask=inside, other=0)
        s = tl.where(live != 0, s, float("-inf"))
    return s, slope


@triton.jit
def guarded(call, BAND: tl.constexpr):
    """Whether a tile may hold a row that sees nothing, so that a maximum may be -inf."""
    masks = call.masks
    flag: tl.constexpr = (
        BAND or masks.padding.data is not None or masks.mask.data is not None or masks.blocks.data is not None
    )
    return flag


@triton.jit
def _mix(x):
    """The 64-bit finaliser of ``problem.dropout_factor``; int64 arithmetic wraps."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


@triton.jit
def dropped(x, i, j, batch, head, call):
    """A tile times its dropout factor: the draw of ``problem.dropout_factor``, in integers."""
    lead = _mix(tl.cast(batch, tl.int64) + call.numbers.seed)
    key = _mix(_mix(_mix(lead + head) + i) + j)
    keep = (key & 0xFFFFFF) >= call.numbers.threshold
    return tl.where(keep, x * call.numbers.kept, 0.0)


@triton.jit
def place_of(pid, blocks, sizes):
    """(block, flat head) of a program: sections of ``span`` heads, whose keys fit the second-level cache together;

    within a section all heads of one block, then those of the next.
    """
    section = pid // (sizes.span * blocks)
    rest = pid - section * sizes.span * blocks
    heads = tl.minimum(sizes.span, sizes.flat_heads - section * sizes.span)
    return rest // heads, section * sizes.span + rest % heads
