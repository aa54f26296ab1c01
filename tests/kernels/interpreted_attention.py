"""The Triton attention kernels' own code in Triton's interpreter: outputs, row LSE and every gradient against float64.

A process of its own runs this file (``test_attention_triton.py``), because the interpreter is chosen when Triton is
imported (``TRITON_INTERPRET=1``).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_cases import OPTIONS, SMALL, held, outcome, problem_of

from workbench_kernels import attention
from workbench_kernels.softmax_attention.portable import flash1, flash2, launch
from workbench_kernels.softmax_attention.portable.configurations import Tiles
from workbench_kernels.softmax_attention.problem import dropout_factor

#: Ragged against every size of the cases, rows and columns of different lengths.
TILES = {
    "forward": Tiles(16, 32, 4, 1),
    "keys": Tiles(32, 16, 4, 1),
    "queries": Tiles(16, 32, 4, 1, split=False),
    "backward": Tiles(16, 32, 4, 1),
}
SPLIT = {name: Tiles(32, 16, 4, 1, split=True) for name in TILES}


assert launch.INTERPRETED


@pytest.mark.parametrize("name", OPTIONS)
def test_second_order(name: str) -> None:
    option = SMALL.spelled(OPTIONS[name])
    held(flash2, SMALL.draw(option, torch.float32), option, tiles=TILES)


@pytest.mark.parametrize("name", ["causal", "window", "wide window", "window to the past", "few queries"])
def test_second_order_with_loops_of_their_own_for_full_tiles(name: str) -> None:
    option = SMALL.spelled(OPTIONS[name])
    held(flash2, SMALL.draw(option, torch.float32), option, tiles=SPLIT)


@pytest.mark.parametrize("name", OPTIONS)
def test_first_order(name: str) -> None:
    option = SMALL.spelled(OPTIONS[name])
    held(flash1, SMALL.draw(option, torch.float32), option, lse=False, tiles=TILES)


@pytest.mark.parametrize("module", [flash2, flash1])
def test_half_precision(module: Any) -> None:
    held(module, SMALL.draw({}, torch.float16), {"causal": True}, lse=module is flash2, tiles=TILES)


def test_loop_orders_agree() -> None:
    q, k, v = SMALL.draw({}, torch.float32)
    first, second, torch_tiles = (attention(q, k, v, impl=impl) for impl in ("triton-v1", "triton", "tiled"))
    torch.testing.assert_close(first, second, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(second, torch_tiles, atol=1e-6, rtol=1e-6)


def test_one_program_a_head_and_a_second_run_give_the_same_bits() -> None:
    tensors = SMALL.draw({}, torch.float32)
    problem, _ = problem_of(*tensors[:2], {"causal": True})
    rows = outcome(flash2, problem, tensors, None, torch.float32, tiles=TILES)
    for words in ({"grid": "heads"}, {"grid": "rows"}):
        again = outcome(flash2, problem, tensors, None, torch.float32, tiles=TILES, **words)
        assert all(torch.equal(a, b) for a, b in zip(rows, again, strict=True))


@pytest.mark.parametrize("impl", ["triton", "triton-v1"])
def test_dropout_draws_what_the_specification_draws(impl: str) -> None:
    """Equal weights over one-hot values: what comes out is the dropout factor itself."""
    q, k = torch.zeros(2, 33, 4, 16), torch.zeros(2, 40, 2, 16)
    v = torch.eye(40)[None, :, None].repeat(2, 1, 2, 1)
    out = attention(q, k, v, causal=False, dropout=0.35, seed=-12345, impl=impl)
    problem, _ = problem_of(q, k, {"dropout": 0.35})
    problem = type(problem)(problem.masking, 1.0, None, 0.35, -12345)
    factor = dropout_factor(problem, slice(0, 2), slice(0, 4), torch.arange(33), torch.arange(40))
    assert torch.equal(out.transpose(1, 2) > 0, factor > 0)
    torch.testing.assert_close(out.transpose(1, 2) * 40, factor, rtol=1e-6, atol=0)


def test_dead_tiles_are_not_read() -> None:
    """NaN in the keys and values of dead blocks never reaches the output."""
    q, k, v = (torch.randn(1, 64, 1, 16) for _ in range(3))
    live = torch.tensor([[True, False], [True, False]])
    k[:, 32:] = v[:, 32:] = float("nan")
    problem, _ = problem_of(q, k, {})
    masks = type(problem.masking)(64, 64, False, blocks=live[None, None], block_size=(32, 32))
    for module in (flash1, flash2):
        out, lse = module.attention(type(problem)(masks, 0.25), q, k, v, None)
        assert torch.isfinite(out).all()
        assert torch.isfinite(lse).all()


def test_only_the_gradients_that_are_asked_for() -> None:
    tensors = SMALL.draw({}, torch.float32)
    weight = torch.randn(*tensors[0].shape)
    for asked in ([0], [1, 2], [2]):
        grads = []
        for impl in ("triton", "reference"):
            leaves = [x.detach().requires_grad_(i in asked) for i, x in enumerate(tensors)]
            out = attention(*leaves, impl=impl)
            grads.append(torch.autograd.grad((out * weight).sum(), [leaves[i] for i in asked]))
        torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("impl", ["triton", "triton-v1"])
def test_one_sink_seen_through_strides_by_all_heads(impl: str) -> None:
    q, k, v = SMALL.draw({}, torch.float32)
    sinks = torch.tensor(0.7).expand(4)
    found, expected = (attention(q, k, v, sinks=sinks, impl=name) for name in (impl, "reference"))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_what_the_kernels_refuse() -> None:
    q, k, v = (torch.randn(1, 8, 2, 16) for _ in range(3))
    wide = torch.randn(1, 8, 2, 257)
    for name, args, words in (
        ("q", (wide, wide, v), {}),
        ("v", (q, k, wide), {}),
        ("q", (q.double(), k.double(), v.double()), {}),
        ("mask", (q, k, v), {"mask": torch.zeros(8, 8, requires_grad=True)}),
    ):
        with pytest.raises(ValueError, match=rf"^{name}\b"):
            attention(*args, impl="triton", **words)
        attention(*args, impl=("triton", "tiled", "reference"), **words)
    with pytest.raises(ValueError, match=r"^grid must be one of"):
        flash2.attention(problem_of(q, k, {})[0], q, k, v, None, grid="columns")
