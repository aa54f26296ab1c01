"""The attention table on a CPU: all contenders agree with float64, the FLOP convention, the grid of a GPU."""

from __future__ import annotations

import pytest
import torch

from workbench import bench
from workbench.bench import _peers, attention


def cases(length: int, causal: bool) -> list[bench.Case]:
    return list(attention.both_passes(attention.Point(1, length, 4, 16, causal, torch.float32), "cpu"))


@pytest.mark.parametrize("causal", [False, True])
def test_every_contender_agrees_with_float64(causal: bool) -> None:
    for case in cases(100, causal):
        assert {"tiled", "eager", "SDPA"} <= set(case.contenders)
        on_cpu = [name for name in case.contenders if name not in ("hopper", "triton", "triton-v1")]
        for name in on_cpu:
            assert case.check(case.contenders[name].run()) < 1e-5, (case.place["pass"], name)


def test_a_wrong_answer_shows() -> None:
    forward, backward = cases(100, True)
    other, _ = cases(100, False)
    assert forward.check(other.contenders["SDPA"].run()) > 0.1
    dq, dk, dv = backward.contenders["SDPA"].run()
    assert backward.check((dq, dk, dv.flip(1))) > 0.1


def test_the_backward_pass_can_be_timed_again_and_again() -> None:
    _, backward = cases(64, True)
    run = backward.contenders["tiled"].run
    for a, b in zip(run(), run()):
        torch.testing.assert_close(a, b)


def test_flop_convention_and_grid() -> None:
    forward, backward = cases(64, False)
    assert forward.work == 4 * 64 * 64 * 16 * 4
    assert backward.work == 2.5 * forward.work
    assert cases(64, True)[0].work == forward.work / 2
    grid = attention.points("cuda", quick=False)
    assert len(grid) == 12
    assert {(p.batch * p.length, p.heads * p.dim) for p in grid} == {(16384, 2048)}


def test_peers_group_heads_like_ours() -> None:
    gen = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 33, h, 16, generator=gen) for h in (4, 2, 2))
    exact = attention.attention(q.double(), k.double(), v.double(), impl="reference")
    for peer in (_peers.eager, _peers.sdpa()):
        torch.testing.assert_close(peer(q, k, v, True).double(), exact, atol=1e-5, rtol=1e-5)
