"""Backward attention for Hopper in Gluon: five products a tile, K and V gradients in registers, Q by reduction.

One program owns a block of keys and walks over the query blocks that see it (all query heads of its group, so dK and
dV need no atomics). Scores are computed transposed, S^T = K Q^T: then P^T and dS^T are already the register operands of
dV += P^T dO and dK += dS^T Q, and no accumulator is ever transposed. dS^T goes through shared memory once, for
dQ = dS K, which is added to a float32 buffer. The scores of the next query block are issued before the gradient of
this one is waited for.
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

from workbench_kernels.softmax_attention.hopper.copies import WG_ROWS, add_out, copy_in, copy_out, load_tile, recast


@gluon.jit
def _visits(n, queries, keys, group, BM: gl.constexpr, BN: gl.constexpr, CAUSAL: gl.constexpr):
    """(first query block that sees key block n, query blocks in all, visits of the program)."""
    first = 0
    blocks = (queries + BM - 1) // BM
    if CAUSAL:
        first = gl.minimum(gl.maximum(n * BN - (keys - queries), 0) // BM, blocks)
    return first, blocks, group * (blocks - first)


@gluon.jit
def _next(head, block, first, blocks):
    """The query blocks of one head, then those of the next head of the group (without a division)."""
    block += 1
    wrap = block == blocks
    return gl.where(wrap, head + 1, head), gl.where(wrap, first, block)


@gluon.jit
def _produce(
    descs, smem, bars, sizes, BM: gl.constexpr, BN: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr,
    CAUSAL: gl.constexpr,
):  # fmt: skip
    q_desc, k_desc, v_desc, do_desc, lse_desc, delta_desc = descs
    q_smem, k_smem, v_smem, do_smem, lse_smem, delta_smem = smem
    kv_full, full, empty = bars
    n, kv_head, batch, queries, keys, group = sizes
    kv_heads = gl.num_programs(1)
    mbarrier.expect(kv_full, 2 * BN * D * 2)
    copy_in(k_desc, batch, n * BN, kv_head, kv_full, k_smem)
    copy_in(v_desc, batch, n * BN, kv_head, kv_full, v_smem)
    first, blocks, visits = _visits(n, queries, keys, group, BM, BN, CAUSAL)
    head = kv_head * group
    block = first
    for i in range(visits):
        row = block * BM
        flat = batch * group * kv_heads + head
        stage = i % STAGES
        free = ((i // STAGES) & 1) ^ 1
        mbarrier.wait(empty.index(stage), free)
        mbarrier.expect(full.index(stage), 2 * (BM * D * 2 + BM * 4))
        copy_in(q_desc, batch, row, head, full.index(stage), q_smem.index(stage))
        load_tile(lse_desc, [flat, row], full.index(stage), lse_smem.index(stage))
        copy_in(do_desc, batch, row, head, full.index(stage), do_smem.index(stage))
        load_tile(delta_desc, [flat, row], full.index(stage), delta_smem.index(stage))
        head, block = _next(head, block, first, blocks)


@gluon.jit
def _put_together(dq):
    """Columns in the order (c / 16, c / 2 % 4, c / 8 % 2, c % 2): what a thread holds of sixteen columns lies together.

    No value changes its thread; ``passes.scaled_cast`` reads the columns back in their own order.
    """
    HERE: gl.constexpr = gl.DistributedLinearLayout(
        reg_bases=[[0, 1], [0, 2], [0, 16], [0, 32], [8, 0]],
        lane_bases=[[0, 4], [0, 8], [1, 0], [2, 0], [4, 0]],
        warp_bases=[[16, 0], [32, 0]],
        block_bases=[],
        shape=[64, 64],
    )
    return gl.convert_layout(dq.reshape([64, 4, 2, 4, 2]).permute((0, 1, 3, 2, 4)).reshape([64, 64]), HERE)


@gluon.jit
def _consume(
    W: gl.constexpr, args, BM: gl.constexpr, BN: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr,
    CAUSAL: gl.constexpr,
):  # fmt: skip
    """One warpgroup: 64 keys of the block."""
    descs, smem, bars, sizes, scale_log2, scale = args
    dk_desc, dv_desc, sums_desc = descs
    q_smem, k_smem, v_smem, do_smem, lse_smem, delta_smem, ds_smem, dq_smem = smem
    kv_full, full, empty, ds_full, done = bars
    n, kv_head, batch, queries, keys, group = sizes
    FLAT: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    ST: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BM, 16])
    KD: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    DQ: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16])
    PT: gl.constexpr = gl.DotOperandLayout(0, KD, 2)
    first, blocks, visits = _visits(n, queries, keys, group, BM, BN, CAUSAL)
    head = kv_head * group
    block = first
    key = n * BN + W * WG_ROWS + gl.arange(0, WG_ROWS, layout=gl.SliceLayout(1, ST))
    cols = gl.arange(0, BM, layout=gl.SliceLayout(0, ST))
    offset = keys - queries
    k = k_smem.slice(W * WG_ROWS, WG_ROWS, dim=0)
    v = v_smem.slice(W * WG_ROWS, WG_ROWS, dim=0)
    if D == 128:  # both warpgroups share the query rows of dQ and split the head dim
        k_part = k_smem.slice(W * 64, 64, dim=1)
    else:  # D = 64: each takes 64 query rows
        k_part = k_smem
    dk = gl.zeros([WG_ROWS, D], gl.float32, KD)
    dv = gl.zeros([WG_ROWS, D], gl.float32, KD)
    zero = gl.zeros([WG_ROWS, BM], gl.float32, ST)
    mbarrier.wait(kv_full, 0)
    mbarrier.wait(full.index(0), 0, pred=visits > 0)
    s = warpgroup_mma(k, q_smem.index(0).permute((1, 0)), zero, use_acc=False, is_async=True)
    s = warpgroup_mma_wait(0, deps=[s])
    for i in range(visits):
        row = block * BM
        stage = i % STAGES
        # two buffers of dS and the meeting of both warpgroups at every visit: what is written over was read two ago
        half = i % 2
        dp = warpgroup_mma(v, do_smem.index(stage).permute((1, 0)), zero, use_acc=False, is_async=True)
        lse = recast(lse_smem.index(stage), gl.float32, [BM], FLAT).load(gl.SliceLayout(0, ST))
        if (row + offset < n * BN + BN - 1) | (n * BN + BN > keys):
            seen = gl.expand_dims(key < keys, 1)
            if CAUSAL:
                seen = seen & (gl.expand_dims(key, 1) <= gl.expand_dims(row + cols + offset, 0))
            s = gl.where(seen, s, float("-inf"))
        p = gl.exp2(s * scale_log2 - gl.expand_dims(lse, 0))
        p_t = gl.convert_layout(p.to(q_smem.dtype), PT)
        mbarrier.wait(kv_full, 0)  # long done; its branch keeps the assembler from sinking the exponentials
        dp = warpgroup_mma_wait(0, deps=[dp])
        dv = warpgroup_mma(p_t, do_smem.index(stage), dv, is_async=True)
        delta = recast(delta_smem.index(stage), gl.float32, [BM], FLAT).load(gl.SliceLayout(0, ST))
        ds = (p * (dp - gl.expand_dims(delta, 0))).to(q_smem.dtype)
        ds_smem.index(half).slice(W * WG_ROWS, WG_ROWS, dim=0).store(ds)
        fence_async_shared()
        mbarrier.arrive(ds_full, count=1)
        ds_r = gl.convert_layout(ds, PT)
        dk = warpgroup_mma(ds_r, q_smem.index(stage), dk, is_async=True)
        mbarrier.wait(ds_full, i & 1)
        if D == 128:
            ds_t = ds_smem.index(half).permute((1, 0))
        else:
            ds_t = ds_smem.index(half).slice(W * 64, 64, dim=1).permute((1, 0))
        dq = warpgroup_mma(ds_t, k_part, gl.zeros([64, 64], gl.float32, DQ), use_acc=False, is_async=True)
        dv, p_t, dk, ds_r = warpgroup_mma_wait(1, deps=[dv, p_t, dk, ds_r])
        ahead = (i + 1) % STAGES
        mbarrier.wait(full.index(ahead), ((i + 1) // STAGES) & 1, pred=i + 1 < visits)
        s = warpgroup_mma(k, q_smem.index(ahead).permute((1, 0)), zero, use_acc=False, is_async=True)
        dq = warpgroup_mma_wait(1, deps=[dq])
        mbarrier.arrive(empty.index(stage), count=1)
        tma.store_wait(0)
        dq_smem.index(W).store(_put_together(dq))
        fence_async_shared()
        if D == 128:
            add_out(sums_desc, batch, row, head, W * 64, dq_smem.index(W))
        else:
            add_out(sums_desc, batch, row + W * 64, head, 0, dq_smem.index(W))
        head, block = _next(head, block, first, blocks)
        # not carried in flight over the loop's edge: there its registers would be copied and the products serialized
        s = warpgroup_mma_wait(0, deps=[s])
    # both warpgroups are done with what was loaded: its memory takes the gradients out
    mbarrier.arrive(done, count=1)
    mbarrier.wait(done, 0)
    if D == 128:  # a stage of queries is as large as one warpgroup's gradient
        dk_out = q_smem.index(W)
        dv_out = do_smem.index(W)
    else:
        dk_out = k
        dv_out = v
    dv_out.store(dv.to(v_smem.dtype))
    dk_out.store((dk * scale).to(k_smem.dtype))
    fence_async_shared()
    copy_out(dv_desc, batch, n * BN + W * WG_ROWS, kv_head, dv_out)
    copy_out(dk_desc, batch, n * BN + W * WG_ROWS, kv_head, dk_out)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["queries", "keys", "group"])
def attention_backward(
    q_desc, k_desc, v_desc, do_desc, lse_desc, delta_desc, dk_desc, dv_desc, sums_desc,
    queries, keys, group, scale_log2, scale, BM: gl.constexpr, BN: gl.constexpr, D: gl.constexpr,
    STAGES: gl.constexpr, CAUSAL: gl.constexpr, REGS: gl.constexpr,
):  # fmt: skip
    """dK, dV and the float32 sum of dQ. Grid (key blocks, key heads, batch): neighbours share queries in the L2 cache.

    ``lse`` (log-2 units, +inf for rows that see nothing or do not exist) and ``delta`` are (B H, Nq rounded up to BM)
    float32 in blocks (1, BM). ``sums`` is (B, Nq, H, D) float32, zero before, columns put together as
    :func:`_put_together` says.
    """
    gl.static_assert(BN == 2 * WG_ROWS)
    gl.static_assert(BM * D == 8192)
    dtype: gl.constexpr = q_desc.dtype
    ROWS: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BM, D], dtype)
    KEYS: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BN, D], dtype)
    DS: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BN, BM], dtype)
    STATS: gl.constexpr = gl.NVMMASharedLayout(0, 32, rank=2)
    DQ: gl.constexpr = gl.NVMMASharedLayout.get_default_for([64, 64], gl.float32)
    q_smem = gl.allocate_shared_memory(dtype, [STAGES, BM, D], ROWS)
    do_smem = gl.allocate_shared_memory(dtype, [STAGES, BM, D], ROWS)
    k_smem = gl.allocate_shared_memory(dtype, [BN, D], KEYS)
    v_smem = gl.allocate_shared_memory(dtype, [BN, D], KEYS)
    lse_smem = gl.allocate_shared_memory(gl.float32, [STAGES, 1, BM], STATS)
    delta_smem = gl.allocate_shared_memory(gl.float32, [STAGES, 1, BM], STATS)
    ds_smem = gl.allocate_shared_memory(dtype, [2, BN, BM], DS)
    dq_smem = gl.allocate_shared_memory(gl.float32, [2, 64, 64], DQ)
    bar: gl.constexpr = mbarrier.MBarrierLayout()
    kv_full = gl.allocate_shared_memory(gl.int64, [1], bar)
    ds_full = gl.allocate_shared_memory(gl.int64, [1], bar)
    done = gl.allocate_shared_memory(gl.int64, [1], bar)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], bar)
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], bar)
    mbarrier.init(kv_full, count=1)
    mbarrier.init(ds_full, count=2)
    mbarrier.init(done, count=2)
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=2)
    fence_async_shared()
    n = gl.program_id(0)
    kv_head = gl.program_id(1)
    batch = gl.program_id(2)
    sizes = (n, kv_head, batch, queries, keys, group)
    loads = (q_desc, k_desc, v_desc, do_desc, lse_desc, delta_desc)
    smem = (q_smem, k_smem, v_smem, do_smem, lse_smem, delta_smem)
    args = (
        (dk_desc, dv_desc, sums_desc),
        (q_smem, k_smem, v_smem, do_smem, lse_smem, delta_smem, ds_smem, dq_smem),
        (kv_full, full, empty, ds_full, done),
        sizes,
        scale_log2,
        scale,
    )
    gl.warp_specialize(
        [
            (_consume, (0, args, BM, BN, D, STAGES, CAUSAL)),
            (_consume, (1, args, BM, BN, D, STAGES, CAUSAL)),
            (_produce, (loads, smem, (kv_full, full, empty), sizes, BM, BN, D, STAGES, CAUSAL)),
        ],
        [4, 1],
        [REGS, 24],
    )
