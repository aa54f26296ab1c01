"""FlashAttention-2: models equal what executed code counts; schedules, warps, loop orders do what the paper says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import BadInput
from workbench.systems import loop_orders, sm_schedule, tile_arithmetic, warp_partition
from workbench.systems.io_counts import Tiling
from workbench.systems.program_table import COLUMNS, programs
from workbench.systems.sm_schedule import Launch, knee, schedule, wave_time, waves
from workbench_kernels import attention

FEW = settings(max_examples=40, deadline=None)


# -- operations -------------------------------------------------------------------------------------------------------


@FEW
@given(
    st.sampled_from(tile_arithmetic.VERSIONS),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([1, 8, 16]),
    st.integers(1, 4),
    st.integers(0, 2**31),
)
def test_executed_operations_equal_the_closed_form_and_the_tile_is_exact(version, rows, cols, d, tiles, seed):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(rows, d, generator=generator, dtype=torch.float64)
    k, v = (torch.randn(tiles * cols, d, generator=generator, dtype=torch.float64) for _ in range(2))
    out, lse, state = tile_arithmetic.run(version, q, k, v, cols)
    formula = tiles * tile_arithmetic.other_operations(version, rows, cols, d)
    assert state.counter.count == formula + tile_arithmetic.last_operations(version, rows, d)
    scores = q @ k.T * d**-0.5
    torch.testing.assert_close(out, torch.softmax(scores, 1) @ v)
    torch.testing.assert_close(lse, torch.logsumexp(scores, 1))


@pytest.mark.parametrize("version", tile_arithmetic.VERSIONS)
def test_rows_without_keys_in_a_tile_or_at_all(version):
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(n, 8, generator=generator, dtype=torch.float64) for n in (5, 12, 12))
    mask = torch.ones(5, 12, dtype=torch.bool)
    mask[0] = False
    mask[1, :4] = False
    mask[2, 4:] = False
    out, lse, _ = tile_arithmetic.run(version, q, k, v, 4, mask)
    scores = (q @ k.T * 8**-0.5).masked_fill(~mask, -torch.inf)[1:]
    torch.testing.assert_close(out[1:], torch.softmax(scores, 1) @ v)
    assert out[0].abs().max() == 0
    assert lse[0] == -torch.inf


def test_the_values_that_the_first_tweak_is_worth():
    """Worked out by hand from the counts on an A100: 312 and 19.5 TFLOP/s."""
    found = {(cols, d): tile_arithmetic.gain(128, cols, d) for cols in (128, 64) for d in (64, 128)}
    assert {key: round(value, 3) for key, value in found.items()} == {
        (128, 64): 1.075, (128, 128): 1.082, (64, 64): 1.146, (64, 128): 1.159,
    }  # fmt: skip
    assert tile_arithmetic.gain(128, 128, 64, matmul=1e9, other=1.0) == pytest.approx(100_096 / 74_880, rel=1e-4)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: tile_arithmetic.other_operations("v3", 1, 1, 1), "version"),
        (lambda: tile_arithmetic.other_operations("v1", 0, 1, 1), "rows"),
        (lambda: tile_arithmetic.gain(1, 1, 1, other=0.0), "throughputs"),
        (lambda: tile_arithmetic.run("v1", torch.ones(2, 3), torch.ones(4, 2), torch.ones(4, 2), 2), "q, k, v"),
    ],
)
def test_operations_refuse(call, named):
    with pytest.raises(BadInput, match=named):
        call()


# -- programs on multiprocessors --------------------------------------------------------------------------------------


def test_three_schedules_by_hand():
    """80 heads on 108 SMs: one wave, 80/108 busy. 109 on 108: two waves. 3 causal row blocks on 2 SMs: see below."""
    one = Launch(80, 256, grid="heads")
    assert schedule(one, sms=108).utilisation == pytest.approx(80 / 108)
    assert schedule(one, sms=108).makespan == wave_time(one, sms=108) == 4  # 2 row blocks x 2 tiles
    two = Launch(109, 256, grid="heads")
    assert waves(109, sms=108) == 2
    assert schedule(two, sms=108).makespan == wave_time(two, sms=108) == 8
    # lengths 1, 2, 3 tiles: launch order fills SM 0 with 1 then 3; longest first puts 3 beside 2 + 1
    causal = Launch(1, 3 * 128, causal=True)
    assert schedule(causal, sms=2, order="launch").makespan == 4
    assert schedule(causal, sms=2, order="longest-first").makespan == 3
    assert schedule(causal, sms=2, order="longest-first").utilisation == 1.0


def test_knee_moves_with_the_number_of_multiprocessors():
    assert knee(80 / 108, sms=108) == 80
    assert knee(80 / 108, sms=132) == 98


@FEW
@given(
    st.integers(1, 12),
    st.integers(1, 900),
    st.booleans(),
    st.sampled_from(sm_schedule.GRIDS),
    st.sampled_from(sm_schedule.ORDERS),
    st.integers(1, 9),
    st.integers(1, 3),
)
def test_every_program_is_placed_once_and_no_slot_does_two_things(heads, n, causal, grid, order, sms, occupancy):
    launch = Launch(heads, n, rows=64, cols=32, causal=causal, grid=grid)
    found = schedule(launch, sms=sms, occupancy=occupancy, order=order)
    assert sorted((p.program.head, p.program.row) for p in found.placed) == sorted(
        (p.head, p.row) for p in launch.programs()
    )
    for _, mine in found.frame().groupby("sm"):
        mine = mine.sort_values("start")
        assert (mine.start.to_numpy()[1:] >= mine.end.to_numpy()[:-1]).all()
    work = sum(p.tiles for p in launch.programs())
    longest = max(p.tiles for p in launch.programs())
    assert found.makespan >= max(longest, work / found.slots)
    if order != "persistent":
        assert found.makespan <= work / found.slots + longest  # Graham's bound of list scheduling
    assert 0 < found.utilisation <= 1


def test_a_persistent_grid_pays_for_starting_once():
    launch = Launch(8, 1024)
    once = schedule(launch, sms=4, order="persistent", start_cost=1.0)
    each = schedule(launch, sms=4, order="longest-first", start_cost=1.0)
    rounds = waves(64, sms=4)
    assert once.makespan == rounds * 8 + 1
    assert each.makespan == rounds * (8 + 1)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: Launch(0, 8), "heads"),
        (lambda: Launch(1, 8, rows=0), "rows"),
        (lambda: Launch(1, 8, grid="warps"), "grid"),
        (lambda: Launch(10_000, 1 << 20), "at most"),
        (lambda: schedule(Launch(1, 8), order="random"), "order"),
        (lambda: schedule(Launch(1, 8), sms=0), "sms"),
        (lambda: schedule(Launch(1, 8), start_cost=-1.0), "start_cost"),
        (lambda: wave_time(Launch(1, 512, causal=True)), "equal length"),
        (lambda: knee(1.5, sms=108), "share"),
        (lambda: programs(Launch(3, 8), schedule(Launch(3, 8)), d=4, batch=2), "batch"),
    ],
)
def test_schedules_refuse(call, named):
    with pytest.raises(BadInput, match=named):
        call()


@pytest.mark.parametrize("grid", sm_schedule.GRIDS)
def test_the_table_of_programs_agrees_with_the_executed_loops(grid):
    launch = Launch(2, 500, rows=128, cols=64, causal=True, grid=grid)
    table = programs(launch, schedule(launch, sms=3), d=16)
    assert list(table.columns) == list(COLUMNS)
    q = torch.zeros(1, 500, 1, 16)
    visits = loop_orders.forward(q, q, q, Tiling(128, 64), causal=True).visits
    a_head = table[table["head"] == 0]
    assert a_head["tiles masked"].sum() == visits.masked
    assert a_head["tiles done"].sum() == visits.plain + visits.masked
    assert a_head["tiles skipped"].sum() == 4 * 8 - visits.plain - visits.masked
    assert a_head["bytes stored"].sum() == 500 * 16 * 2 + 500 * 4


# -- warps ------------------------------------------------------------------------------------------------------------


@FEW
@given(
    st.sampled_from(warp_partition.SPLITS), st.sampled_from([1, 2, 4]), st.integers(1, 6), st.integers(1, 6),
    st.sampled_from([4, 16]), st.integers(0, 2**31),
)  # fmt: skip
def test_warps_compute_the_tile_and_move_what_the_form_says(split, warps, rows, cols, d, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = (rows * warps, cols * warps, cols * warps)
    q, k, v = (torch.randn(n, d, generator=generator, dtype=torch.float64) for n in shapes)
    out, counted = warp_partition.run(split, q, k, v, warps)
    torch.testing.assert_close(out, torch.softmax(q @ k.T * d**-0.5, 1) @ v)
    assert counted == warp_partition.traffic(split, len(q), len(k), d, warps)


def test_shared_memory_of_one_tile_by_hand():
    """128 x 128, d = 64, 4 warps: 4 partial outputs of 32 KiB written and read, against K and V read four times."""
    assert warp_partition.traffic("split-K", 128, 128, 64, 4).exchange == 2 * 4 * 32 * 1024
    assert warp_partition.traffic("split-Q", 128, 128, 64, 4).exchange == 0
    assert warp_partition.traffic("split-Q", 128, 128, 64, 4).keys == 4 * 2 * 16 * 1024


@pytest.mark.parametrize(("split", "rows", "cols"), [("split-Q", 6, 8), ("split-K", 8, 6), ("split-V", 8, 8)])
def test_warps_refuse(split, rows, cols):
    with pytest.raises(BadInput, match="split"):
        warp_partition.traffic(split, rows, cols, 4, 4)


# -- loop orders ------------------------------------------------------------------------------------------------------


@st.composite
def problems(draw):
    kv_heads, group = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    queries, keys, d = draw(st.integers(1, 90)), draw(st.integers(1, 90)), draw(st.sampled_from([4, 16, 20]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shapes = [(1, queries, kv_heads * group, d), *[(1, keys, kv_heads, d)] * 2, (1, queries, kv_heads * group, d)]
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return tensors, Tiling(draw(st.integers(1, 40)), draw(st.integers(1, 40))), draw(st.booleans())


@FEW
@given(problems())
def test_both_orders_and_both_backward_passes_match_autograd(problem):
    (q, k, v, grad), tiling, causal = problem
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out, lse = attention(*leaves, causal=causal, return_lse=True, impl="reference")
    wanted = torch.autograd.grad(out, leaves, grad)
    for order in loop_orders.ORDERS:
        found = loop_orders.forward(q, k, v, tiling, order=order, causal=causal)
        torch.testing.assert_close(found.out, out.detach())
        torch.testing.assert_close(found.lse, lse.detach())
        for two_passes in (False, True):
            grads = loop_orders.backward(q, k, v, found, grad, tiling, causal=causal, two_passes=two_passes)
            for a, b in zip(grads, wanted, strict=True):
                torch.testing.assert_close(a, b)


@FEW
@given(problems())
def test_the_two_orders_agree_in_float32(problem):
    (q, k, v, _), tiling, causal = problem
    q, k, v = q.float(), k.float(), v.float()
    first, second = (loop_orders.forward(q, k, v, tiling, order=o, causal=causal).out for o in loop_orders.ORDERS)
    torch.testing.assert_close(first, second, rtol=0, atol=1e-6)


def test_causal_tiles_are_skipped_or_masked_only_where_they_must():
    q = torch.randn(1, 128, 1, 8)
    full = loop_orders.forward(q, q, q, Tiling(32, 32)).visits
    causal = loop_orders.forward(q, q, q, Tiling(32, 32), causal=True).visits
    assert (full.plain, full.masked) == (16, 0)
    assert (causal.plain, causal.masked) == (6, 4)


def test_gradients_are_the_same_bits_every_time():
    generator = torch.Generator().manual_seed(3)
    q, k, v, grad = (torch.randn(1, 70, 2, 16, generator=generator) for _ in range(4))
    found = loop_orders.forward(q, k, v, Tiling(32, 16), causal=True)

    def once():
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = attention(*leaves, causal=True, deterministic=True)
        walked = loop_orders.backward(q, k, v, found, grad, Tiling(32, 16), causal=True, two_passes=True)
        return [*torch.autograd.grad(out, leaves, grad), *walked]

    first = once()
    for _ in range(4):
        assert all(torch.equal(a, b) for a, b in zip(first, once(), strict=True))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"q": torch.ones(1, 4, 3, 8)}, "shared out"),
        ({"k": torch.ones(1, 5, 2, 8)}, "one shape"),
        ({"q": torch.ones(1, 4, 2, 6)}, "share batch and d"),
        ({"k": torch.ones(1, 4, 2, 8).double(), "v": torch.ones(1, 4, 2, 8).double()}, "agree"),
        ({"v": torch.ones(4, 2, 8)}, "v must be floating"),
        ({"order": "v9"}, "order"),
    ],
)
def test_loop_orders_refuse(change, named):
    words = {"q": torch.ones(1, 4, 2, 8), "k": torch.ones(1, 4, 2, 8), "v": torch.ones(1, 4, 2, 8), **change}
    order = words.pop("order", "v2")
    with pytest.raises(BadInput, match=named):
        loop_orders.forward(words["q"], words["k"], words["v"], Tiling(2, 2), order=order)
