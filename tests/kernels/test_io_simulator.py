"""Counted HBM traffic equals the closed forms; every step is exact; arena and meter keep honest books."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import BadInput, MemoryError_
from workbench.systems import block_patterns, flash_simulator, io_counts
from workbench.systems.arena import COLUMNS, Arena
from workbench.systems.io_counts import Tiling
from workbench.systems.meter import peak_bytes
from workbench_kernels import attention

FIFTY = settings(max_examples=50, deadline=None)


@st.composite
def sizes(draw):
    n, d = draw(st.integers(1, 150)), draw(st.sampled_from([1, 4, 8, 16]))
    tiling = Tiling.of_sram(draw(st.integers(4 * d, 160 * d)), d)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    q, k, v, grad = (torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(4))
    live = torch.rand(*tiling.grid(n), generator=generator) > 0.3 if draw(st.booleans()) else None
    return q, k, v, grad, tiling, live, draw(st.booleans())


@FIFTY
@given(sizes())
def test_counters_equal_formulas_and_values_equal_attention(size):
    q, k, v, grad, tiling, live, causal = size
    n, d = q.shape
    mask = None if live is None else live.tolist()
    words = {"live": live, "causal": causal}
    forward = flash_simulator.flash_forward(q, k, v, tiling, **words)
    swapped = flash_simulator.flash_forward(q, k, v, tiling, order="v2", **words)
    backward = flash_simulator.flash_backward(q, k, v, forward, grad, tiling, **words)
    assert forward.hbm == io_counts.flash_forward(n, d, tiling, mask)
    assert swapped.hbm == io_counts.flash2_forward(n, d, tiling, mask)
    assert backward.hbm == io_counts.flash_backward(n, d, tiling, mask)
    leaves = [x[None, :, None].clone().requires_grad_() for x in (q, k, v)]
    blocks = {} if live is None else {"block_mask": live, "block_size": (tiling.rows, tiling.cols)}
    out, lse = attention(*leaves, causal=causal, return_lse=True, impl="reference", **blocks)
    for run in (forward, swapped):
        torch.testing.assert_close(run.out, out[0, :, 0].detach())
        torch.testing.assert_close(run.lse, lse[0, :, 0].detach())
    for found, wanted in zip(backward.grads, torch.autograd.grad(out, leaves, grad[None, :, None]), strict=True):
        torch.testing.assert_close(found, wanted[0, :, 0])


@FIFTY
@given(sizes())
def test_standard_algorithm_counts(size):
    q, k, v, grad, *_ = size
    n, d = q.shape
    forward, masked = (flash_simulator.standard_forward(q, k, v, causal=causal) for causal in (False, True))
    assert forward.hbm == io_counts.standard_forward(n, d) == 4 * n * n + 4 * n * d
    assert masked.hbm == io_counts.standard_forward(n, d, extra_passes=1)
    assert flash_simulator.standard_backward(q, k, v, grad).hbm == io_counts.standard_backward(n, d)
    assert forward.arena.flops == io_counts.standard_flops(n, d)


@FIFTY
@given(sizes())
def test_prefix_invariant(size):
    """After outer step j the output is exact attention over the keys of blocks <= j."""
    q, k, v, _, tiling, _, _ = size
    last = tiling.grid(len(q))[0] - 1

    def check(step):
        if step.i == last:
            keys = slice(0, (step.j + 1) * tiling.cols)
            scores = q @ k[keys].T * q.shape[1] ** -0.5
            torch.testing.assert_close(step.out, torch.softmax(scores, 1) @ v[keys], rtol=1e-6, atol=1e-6)

    flash_simulator.flash_forward(q, k, v, tiling, on_step=check)


def test_fig2_counts_of_the_card():
    """GPT-2 medium's shape at half precision: the ratios that the paper's Fig. 2 stands on."""
    giga = 1024 * 2 / 1e9
    standard = (io_counts.standard_forward(1024, 64) + io_counts.standard_backward(1024, 64)) * giga
    assert standard == pytest.approx(25.4, abs=0.05)
    flash = {
        b: (io_counts.flash_forward(1024, 64, Tiling(64, b)) + io_counts.flash_backward(1024, 64, Tiling(64, b))) * giga
        for b in (256, 512)
    }
    assert flash == pytest.approx({256: 5.15, 512: 2.98}, abs=0.01)
    assert all(4.5 <= standard / x <= 9 for x in flash.values())
    passes = io_counts.standard_forward(1024, 64, extra_passes=2) + io_counts.standard_backward(
        1024, 64, stored_masks=1
    )
    assert all(passes * giga / x >= 7.5 for x in flash.values())


def test_sram_is_never_exceeded_and_contents_show_the_tiers():
    q, k, v = (torch.randn(32, 8) for _ in range(3))
    tiling = Tiling.of_sram(256, 8)
    run = flash_simulator.flash_forward(q, k, v, tiling, history=True)
    assert run.arena.peak("SRAM") <= 256 * 4
    frame = run.arena.contents()
    assert tuple(frame.columns) == COLUMNS
    assert set(frame.tier) == {"HBM", "SRAM", "register"}
    first = run.arena.contents(0)
    assert set(first[first.tier == "SRAM"].tensor) == {"K", "V", "Q", "O"}
    hbm = frame[frame.tier == "HBM"]
    assert (hbm.bytes * (hbm.loads + hbm.stores)).sum() == run.arena.traffic("HBM").nbytes


def test_arena_refuses_what_does_not_fit_and_double_frees():
    arena = Arena({"SRAM": 64})
    block = arena.allocate("SRAM", "K", (4, 4))
    with pytest.raises(MemoryError_, match="V"):
        arena.allocate("SRAM", "V", (1,))
    arena.free(block)
    for act in (lambda: arena.free(block), lambda: arena.block("SRAM", "K")):
        with pytest.raises(MemoryError_, match="K"):
            act()
    arena.allocate("SRAM", "V", (1,))
    with pytest.raises(MemoryError_, match="already"):
        arena.allocate("SRAM", "V", (1,))
    for act in (lambda: arena.used("L2"), lambda: arena.contents(9), lambda: Arena({})):
        with pytest.raises(BadInput):
            act()


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("sram", lambda q: Tiling.of_sram(31, 8)),
        ("d", lambda q: Tiling.of_sram(31, 0)),
        ("block sizes", lambda q: Tiling(0, 4)),
        ("order", lambda q: flash_simulator.flash_forward(q, q, q, Tiling(4, 4), order="v3")),
        (
            "live",
            lambda q: flash_simulator.flash_forward(q, q, q, Tiling(4, 4), live=torch.ones(1, 1) > 0),
        ),
        ("k", lambda q: flash_simulator.flash_forward(q, q[:3], q, Tiling(4, 4))),
        ("v", lambda q: flash_simulator.flash_forward(q, q, q * float("nan"), Tiling(4, 4))),
        ("q", lambda q: flash_simulator.flash_forward(q[None], q, q, Tiling(4, 4))),
        ("forward", lambda q: flash_simulator.flash_backward(q, q, q, _backward(q), q, Tiling(4, 4))),
        ("blocks", lambda q: block_patterns.butterfly(12)),
        ("blocks", lambda q: block_patterns.band(0, 1)),
        ("s", lambda q: block_patterns.random_density(4, 0.0, torch.Generator())),
    ],
)
def test_bad_input_is_named(name, call):
    with pytest.raises(BadInput, match=rf"^{name}\b"):
        call(torch.randn(16, 8))


def _backward(q):
    return flash_simulator.standard_backward(q, q, q, q)


def test_block_patterns():
    assert block_patterns.butterfly(16).sum() == 16 * 5
    assert block_patterns.butterfly(16, stripe=True)[0].all()
    assert block_patterns.band(4, 1).sum() == 10
    for s in (0.1, 0.5, 1.0):
        live = block_patterns.random_density(20, s, torch.Generator().manual_seed(0))
        assert int(live.sum()) == max(20, round(400 * s))
        assert live.diagonal().all()
    causal = block_patterns.causal(4, 8, 4, 2)
    assert causal.tolist() == [[True, False], [True, False], [True, True], [True, True]]


def test_meter_counts_what_is_alive_at_once():
    def held():
        a = torch.ones(1000)
        b = a + a
        del a
        return b * 2

    assert peak_bytes(held) == 8000
    x = torch.ones(1000)
    assert peak_bytes(lambda: x.view(10, 100)) == 0
    assert peak_bytes(lambda: x.add_(1)) == 0
