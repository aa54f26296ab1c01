"""Forward attention for Hopper in Gluon: one producer warp feeds consumer warpgroups through a ring in shared memory.

The producer issues bulk tensor copies (TMA); each consumer warpgroup owns 64 query rows. A slot of the ring holds the
values of one key block and the keys of the next, because that is what one step reads: within a warpgroup the score
product of the next block is issued before the value product of the current one, so the softmax runs beside the matrix
units. The grid is persistent; the producer draws tiles from a counter and hands them to the consumers, longest first
(causal) inside sections of heads whose keys fit the L2 cache: handing them out in turn left processors idle for 15 %.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from workbench_kernels.softmax_attention.hopper.copies import WG_ROWS, copy_in, copy_out

#: Numbers that vary from call to call: one compiled kernel serves them all.
SIZES = ["tiles", "blocks", "heads", "others", "section", "group", "queries", "keys"]


@gluon.jit
def tile_of(tile, blocks, heads, others, section, LONGEST: gl.constexpr):
    """(row block, head, batch) of a flat index, section by section of ``section`` heads (of ``others`` in all)."""
    start = tile // (blocks * section) * section
    width = gl.minimum(section, others - start)
    rest = tile - start * blocks
    if LONGEST:
        block = blocks - 1 - rest // width
        flat = start + rest % width
    else:
        block = rest % blocks
        flat = start + rest // blocks
    return block, flat % heads, flat // heads


@gluon.jit
def key_blocks(block, queries, keys, BM: gl.constexpr, BN: gl.constexpr, CAUSAL: gl.constexpr):
    """(key blocks to visit, at least one; how many of them no row of the row block masks)."""
    total = (keys + BN - 1) // BN
    whole = keys // BN
    if CAUSAL:
        offset = keys - queries
        last = gl.minimum(block * BM + BM, queries) + offset
        total = gl.minimum(total, (gl.maximum(last, 0) + BN - 1) // BN)
        whole = gl.minimum(whole, gl.maximum(block * BM + offset + 1, 0) // BN)
    return gl.maximum(total, 1), gl.minimum(whole, total)


@gluon.jit
def _announce(ticket, drawn, taken, tile, visit):
    """Producer: put the index of a tile where the consumers read it (two places, so one tile ahead)."""
    place = visit % 2
    one: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    mbarrier.wait(taken.index(place), ((visit // 2) & 1) ^ 1)
    ticket.index(place).store(gl.full([1], 0, gl.int32, one) + tile)
    mbarrier.arrive(drawn.index(place), count=1)


@gluon.jit
def _draw(ticket, drawn, taken, visit):
    """Consumer: the index of the next tile."""
    place = visit % 2
    one: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    mbarrier.wait(drawn.index(place), (visit // 2) & 1)
    tile = gl.max(ticket.index(place).load(one), 0)
    mbarrier.arrive(taken.index(place), count=1)
    return tile


@gluon.jit
def _produce(
    descs, smem, bars, sizes, counter_ptr, BM: gl.constexpr, BN: gl.constexpr, D: gl.constexpr, WGS: gl.constexpr,
    STAGES: gl.constexpr, CAUSAL: gl.constexpr,
):  # fmt: skip
    """One warp: walk over the tiles and keep the ring full. Key blocks go from the last to the first."""
    q_desc, k_desc, v_desc = descs
    q_smem, first_smem, k_smem, v_smem = smem
    q_full, q_empty, first_full, first_empty, full, empty, ticket, drawn, taken, _lag = bars
    tiles, blocks, heads, others, section, group, queries, keys = sizes
    ring = 0
    visit = 0
    tile = gl.program_id(0)
    while tile < tiles:
        _announce(ticket, drawn, taken, tile, visit)
        drawn_before = gl.atomic_add(counter_ptr, 1)
        if drawn_before == tiles - 1:  # every program's last draw finds no tile: this is the last draw of all
            gl.store(counter_ptr, 0)
        following = drawn_before + gl.num_programs(0)
        block, head, batch = tile_of(tile, blocks, heads, others, section, CAUSAL)
        kv_head = head // group
        count, _whole = key_blocks(block, queries, keys, BM, BN, CAUSAL)
        side = visit % 2
        mbarrier.wait(q_empty.index(side), ((visit // 2) & 1) ^ 1)
        mbarrier.expect(q_full.index(side), BM * D * 2)
        for w in gl.static_range(WGS):
            rows = q_smem.index(side * WGS + w)
            copy_in(q_desc, batch, block * BM + w * WG_ROWS, head, q_full.index(side), rows)
        mbarrier.wait(first_empty, (visit & 1) ^ 1)
        mbarrier.expect(first_full, BN * D * 2)
        copy_in(k_desc, batch, (count - 1) * BN, kv_head, first_full, first_smem)
        for step in range(count):
            key = (count - 1 - step) * BN
            slot = ring % STAGES
            mbarrier.wait(empty.index(slot), ((ring // STAGES) & 1) ^ 1)
            if step + 1 < count:
                mbarrier.expect(full.index(slot), 2 * BN * D * 2)
                copy_in(k_desc, batch, key - BN, kv_head, full.index(slot), k_smem.index(slot))
            else:
                mbarrier.expect(full.index(slot), BN * D * 2)
            copy_in(v_desc, batch, key, kv_head, full.index(slot), v_smem.index(slot))
            ring += 1
        visit += 1
        tile = following
    _announce(ticket, drawn, taken, tile, visit)


@gluon.jit
def _masked(s, row, key, keys, offset, S: gl.constexpr, BN: gl.constexpr, CAUSAL: gl.constexpr):
    """Minus infinity where the key lies beyond the sequence or after the query."""
    edge = gl.full([WG_ROWS], 0, gl.int32, gl.SliceLayout(1, S)) + (keys - key)
    if CAUSAL:
        edge = gl.minimum(edge, row + offset + 1 - key)
    col = gl.arange(0, BN, layout=gl.SliceLayout(0, S))
    return gl.where(gl.expand_dims(col, 0) < gl.expand_dims(edge, 1), s, float("-inf"))


@gluon.jit
def _row_parts(p, BN: gl.constexpr):
    """(64, 4) sums of a weight tile over what each thread of a quad holds; no thread talks to another here."""
    return gl.sum(gl.sum(p.reshape([WG_ROWS, BN // 8, 4, 2]), 3), 1)


@gluon.jit
def _weights(s, top, scale, MASKED: gl.constexpr):
    """Online softmax of one block: (p, new row maximum, factor for what was summed before)."""
    new = gl.maximum(top, gl.max(s, 1))
    shift = new * scale
    if MASKED:  # rows that have seen nothing yet
        shift = gl.where(new == float("-inf"), 0.0, shift)
    return gl.exp2(s * scale - gl.expand_dims(shift, 1)), new, gl.exp2(top * scale - shift)


@gluon.jit
def _shrunk(parts, shrink):
    """Row factors in the layout of the partial sums."""
    rows: gl.constexpr = gl.SliceLayout(1, parts.type.layout)
    return parts * gl.expand_dims(gl.convert_layout(shrink, rows), 1)


@gluon.jit
def _release(empty, ring, STAGES: gl.constexpr):
    """Give back the slot before this one: a step late, next to a wait that halts the warpgroup anyway."""
    mbarrier.arrive(empty.index((ring + STAGES - 1) % STAGES), count=1, pred=ring > 0)


@gluon.jit
def _step(
    q, k_smem, v_smem, full, empty, state, where, scale, S: gl.constexpr, OUT: gl.constexpr, BN: gl.constexpr,
    STAGES: gl.constexpr, CAUSAL: gl.constexpr, MASKED: gl.constexpr,
):  # fmt: skip
    """Scores of the next block while the values of the current one are multiplied; then its softmax.

    The weights travel between steps in float32: as packed halves they would be unpacked and packed again at the
    loop's edge. The next slot is waited for between the softmax and the end of the value product: the branch of
    that wait keeps the assembler from sinking the softmax behind the product.
    """
    acc, top, parts, weights, ring = state
    row, key, keys, offset = where
    slot = ring % STAGES
    p = gl.convert_layout(weights.to(q.dtype), gl.DotOperandLayout(0, OUT, 2))
    zero = gl.zeros([WG_ROWS, BN], gl.float32, S)
    s = warpgroup_mma(q, k_smem.index(slot).permute((1, 0)), zero, use_acc=False, is_async=True)
    acc = warpgroup_mma(p, v_smem.index(slot), acc, is_async=True)
    s = warpgroup_mma_wait(1, deps=[s])
    if MASKED:
        s = _masked(s, row, key, keys, offset, S, BN, CAUSAL)
    weights, top, shrink = _weights(s, top, scale, MASKED)
    parts = _shrunk(parts, shrink) + _row_parts(weights, BN)
    after = ring + 1
    if STAGES > 2:
        _release(empty, ring, STAGES)
    mbarrier.wait(full.index(after % STAGES), (after // STAGES) & 1)
    acc, p = warpgroup_mma_wait(0, deps=[acc, p])
    if STAGES == 2:
        mbarrier.arrive(empty.index(slot), count=1)
    acc = acc * gl.expand_dims(gl.convert_layout(shrink, gl.SliceLayout(1, OUT)), 1)
    return acc, top, parts, weights, after


@gluon.jit
def _consume(
    W: gl.constexpr, args, BM: gl.constexpr, BN: gl.constexpr, D: gl.constexpr, WGS: gl.constexpr,
    STAGES: gl.constexpr, CAUSAL: gl.constexpr,
):  # fmt: skip
    """One warpgroup: 64 rows of every tile."""
    o_desc, lse_ptr, smem, bars, sizes, scale = args
    q_smem, first_smem, k_smem, v_smem = smem
    q_full, q_empty, first_full, first_empty, full, empty, ticket, drawn, taken, lag = bars
    tiles, blocks, heads, others, section, _group, queries, keys = sizes
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    rows = gl.arange(0, WG_ROWS, layout=gl.SliceLayout(1, S))
    offset = keys - queries
    ring = 0
    visit = 0
    tile = _draw(ticket, drawn, taken, visit)
    while tile < tiles:
        block, head, batch = tile_of(tile, blocks, heads, others, section, CAUSAL)
        count, whole = key_blocks(block, queries, keys, BM, BN, CAUSAL)
        row = block * BM + W * WG_ROWS + rows
        side = visit % 2
        q = q_smem.index(side * WGS + W)
        mbarrier.wait(q_full.index(side), (visit // 2) & 1)
        mbarrier.wait(first_full, visit & 1)
        if W > 0:  # once, half a step apart: then one multiplies while another exponentiates
            mbarrier.wait(lag.index(W - 1), 0)
        # the last key block first: it is the one that may be masked
        zero = gl.zeros([WG_ROWS, BN], gl.float32, S)
        s = warpgroup_mma(q, first_smem.permute((1, 0)), zero, use_acc=False, is_async=True)
        s = warpgroup_mma_wait(0, deps=[s])
        mbarrier.arrive(first_empty, count=1)
        s = _masked(s, row, (count - 1) * BN, keys, offset, S, BN, CAUSAL)
        top = gl.full([WG_ROWS], float("-inf"), gl.float32, gl.SliceLayout(1, S))
        weights, top, _shrink = _weights(s, top, scale, True)
        parts = _row_parts(weights, BN)
        # the output of the tile before has left the memory of its queries, which the producer may fill again
        tma.store_wait(0)
        if visit == 0:
            if W + 1 < WGS:
                mbarrier.arrive(lag.index(W), count=1)
        else:
            mbarrier.arrive(q_empty.index(1 - side), count=1)
        acc = gl.zeros([WG_ROWS, D], gl.float32, OUT)
        mbarrier.wait(full.index(ring % STAGES), (ring // STAGES) & 1)
        masked_steps = count - 1 - gl.minimum(whole, count - 1)
        for i in range(masked_steps):
            acc, top, parts, weights, ring = _step(
                q, k_smem, v_smem, full, empty, (acc, top, parts, weights, ring),
                (row, (count - 2 - i) * BN, keys, offset), scale, S, OUT, BN, STAGES, CAUSAL, True,
            )  # fmt: skip
        for _i in range(masked_steps, count - 1):
            acc, top, parts, weights, ring = _step(
                q, k_smem, v_smem, full, empty, (acc, top, parts, weights, ring), (row, 0, keys, offset), scale,
                S, OUT, BN, STAGES, CAUSAL, False,
            )  # fmt: skip
        p = gl.convert_layout(weights.to(q.dtype), gl.DotOperandLayout(0, OUT, 2))
        acc = warpgroup_mma(p, v_smem.index(ring % STAGES), acc, is_async=True)
        total = gl.convert_layout(gl.sum(parts, 1), gl.SliceLayout(1, S))
        nothing = total == 0.0
        lse = gl.where(nothing, float("-inf"), top * scale + gl.log2(total)) * 0.6931471805599453
        gl.store(lse_ptr + (batch * queries + row).to(gl.int64) * heads + head, lse, mask=row < queries)
        inverse = gl.where(nothing, 0.0, 1.0 / total)
        acc = warpgroup_mma_wait(0, deps=[acc])
        if STAGES > 2:
            _release(empty, ring, STAGES)
        else:
            mbarrier.arrive(empty.index(ring % STAGES), count=1)
        ring += 1
        visit += 1
        acc = acc * gl.expand_dims(gl.convert_layout(inverse, gl.SliceLayout(1, OUT)), 1)
        q.store(acc.to(q.dtype))
        fence_async_shared()
        copy_out(o_desc, batch, block * BM + W * WG_ROWS, head, q)
        tile = _draw(ticket, drawn, taken, visit)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=SIZES)
def attention_forward(
    q_desc, k_desc, v_desc, o_desc, lse_ptr, counter_ptr, tiles, blocks, heads, others, section, group, queries,
    keys, scale, BM: gl.constexpr, BN: gl.constexpr, D: gl.constexpr, WGS: gl.constexpr, STAGES: gl.constexpr,
    CAUSAL: gl.constexpr, REGS: gl.constexpr,
):  # fmt: skip
    """softmax(scale Q K^T) V and its row log-sum-exp; ``scale`` is in log-2 units. BM = 64 WGS.

    Descriptors are 4-d over (B, S, H, D) with blocks (1, 64 | BN, 1, D); ``lse`` is (B, Nq, H) float32, contiguous;
    ``counter`` is one
    int32, zero before and after.
    """
    dtype: gl.constexpr = q_desc.dtype
    ROWS: gl.constexpr = gl.NVMMASharedLayout.get_default_for([WG_ROWS, D], dtype)
    KEYS: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BN, D], dtype)
    q_smem = gl.allocate_shared_memory(dtype, [2 * WGS, WG_ROWS, D], ROWS)  # of this tile and the next; O leaves here
    first_smem = gl.allocate_shared_memory(dtype, [BN, D], KEYS)
    k_smem = gl.allocate_shared_memory(dtype, [STAGES, BN, D], KEYS)
    v_smem = gl.allocate_shared_memory(dtype, [STAGES, BN, D], KEYS)
    bar: gl.constexpr = mbarrier.MBarrierLayout()
    q_full = gl.allocate_shared_memory(gl.int64, [2, 1], bar)
    q_empty = gl.allocate_shared_memory(gl.int64, [2, 1], bar)
    first_full = gl.allocate_shared_memory(gl.int64, [1], bar)
    first_empty = gl.allocate_shared_memory(gl.int64, [1], bar)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], bar)
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], bar)
    lag = gl.allocate_shared_memory(gl.int64, [WGS, 1], bar)
    mbarrier.init(first_full, count=1)
    mbarrier.init(first_empty, count=WGS)
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=WGS)
    for i in gl.static_range(WGS):
        mbarrier.init(lag.index(i), count=1)
    ticket = gl.allocate_shared_memory(gl.int32, [2, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    drawn = gl.allocate_shared_memory(gl.int64, [2, 1], bar)
    taken = gl.allocate_shared_memory(gl.int64, [2, 1], bar)
    for i in gl.static_range(2):
        mbarrier.init(q_full.index(i), count=1)
        mbarrier.init(q_empty.index(i), count=WGS)
        mbarrier.init(drawn.index(i), count=1)
        mbarrier.init(taken.index(i), count=WGS)
    fence_async_shared()
    smem = (q_smem, first_smem, k_smem, v_smem)
    bars = (q_full, q_empty, first_full, first_empty, full, empty, ticket, drawn, taken, lag)
    sizes = (tiles, blocks, heads, others, section, group, queries, keys)
    args = (o_desc, lse_ptr, smem, bars, sizes, scale)
    loads = (q_desc, k_desc, v_desc)
    if WGS == 2:
        gl.warp_specialize(
            [
                (_consume, (0, args, BM, BN, D, WGS, STAGES, CAUSAL)),
                (_consume, (1, args, BM, BN, D, WGS, STAGES, CAUSAL)),
                (_produce, (loads, smem, bars, sizes, counter_ptr, BM, BN, D, WGS, STAGES, CAUSAL)),
            ],
            [4, 1],
            [REGS, 24],
        )
    else:
        gl.warp_specialize(
            [
                (_consume, (0, args, BM, BN, D, WGS, STAGES, CAUSAL)),
                (_consume, (1, args, BM, BN, D, WGS, STAGES, CAUSAL)),
                (_consume, (2, args, BM, BN, D, WGS, STAGES, CAUSAL)),
                (_produce, (loads, smem, bars, sizes, counter_ptr, BM, BN, D, WGS, STAGES, CAUSAL)),
            ],
            [4, 4, 1],
            [REGS, REGS, 24],
        )
