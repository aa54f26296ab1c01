"""The Triton attention kernels on the card: outputs, row LSE and gradients against float64, at every tile that ships.

The budget is the error of plain low precision on the same card. Inputs are cut out of larger tensors that are NaN
everywhere else, and fresh memory starts as NaN, so that a read or a forgotten write outside the tensors shows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from workbench_kernels import attention
from workbench_kernels.masking import masking
from workbench_kernels.softmax_attention import reference
from workbench_kernels.softmax_attention.problem import Problem

pytest.importorskip("triton")
from workbench_kernels.softmax_attention.portable import flash1, flash2
from workbench_kernels.softmax_attention.portable.configurations import TABLE, Tiles

NAMES = ("out", "lse", "dq", "dk", "dv", "dsinks")
LOW = {2: (torch.bfloat16, torch.float16), 4: (torch.float32,)}
#: A head dim for each column of the table, and ones that are padded to it.
DIMS = {64: (64, 40), 128: (128, 80), 256: (256, 192)}
LENGTHS = ((63, 63), (100, 217), (1000, 1000))
OPTIONS: dict[str, dict[str, Any]] = {
    "window": {"causal": True, "window": 70},
    "window both ways": {"window": 33},
    "more queries than keys": {"causal": True, "sizes": (300, 130)},
    "one query": {"causal": True, "sizes": (1, 513)},
    "soft cap": {"causal": True, "softcap": 3.0},
    "sinks": {"causal": True, "sinks": True, "sizes": (300, 130)},
    "padding": {"causal": True, "padding": True},
    "bool mask": {"mask": "bool"},
    "additive mask": {"mask": "additive", "causal": True},
    "block mask": {"blocks": (64, 64)},
    "ragged block mask": {"blocks": (48, 100), "causal": True},
    "dropout": {"causal": True, "dropout": 0.3},
    "negative scale": {"scale": -0.2},
    "one key head": {"heads": (8, 1), "causal": True},
    "value dim": {"dims": (64, 128), "causal": True},
}


@pytest.fixture(autouse=True)
def nan_in_fresh_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("empty", "empty_like"):
        plain = getattr(torch, name)

        def poisoned(*args: Any, _plain: Any = plain, **words: Any) -> torch.Tensor:
            made = _plain(*args, **words)
            return made.fill_(float("nan")) if made.dtype.is_floating_point else made

        monkeypatch.setattr(torch, name, poisoned)


def surrounded(x: torch.Tensor) -> torch.Tensor:
    """The same numbers with strides of their own, in a sea of NaN."""
    batch, length, heads, dim = x.shape
    sea = torch.full((batch, length + 3, heads + 1, dim + 8), float("nan"), dtype=x.dtype, device=x.device)
    sea[:, 1 : 1 + length, :heads, :dim] = x
    return sea[:, 1 : 1 + length, :heads, :dim]


def draw(sizes: tuple[int, int], heads: tuple[int, int], dims: tuple[int, int], dtype: torch.dtype, seed: int = 0):
    gen = torch.Generator("cuda").manual_seed(seed)
    shapes = [(2, sizes[0], heads[0], dims[0]), (2, sizes[1], heads[1], dims[0]), (2, sizes[1], heads[1], dims[1])]
    return [torch.randn(shape, generator=gen, device="cuda").to(dtype) for shape in shapes]


def problem_of(q: torch.Tensor, k: torch.Tensor, option: dict[str, Any]) -> tuple[Problem, torch.Tensor | None]:
    gen = torch.Generator("cuda").manual_seed(5)
    batch, queries, heads, dim = q.shape
    keys, words = k.shape[1], {name: option.get(name) for name in ("causal", "window")}
    if option.get("padding"):
        words["key_padding"] = torch.rand(batch, keys, generator=gen, device="cuda") > 0.3
    if option.get("mask") == "bool":
        words["mask"] = torch.rand(batch, 1, queries, keys, generator=gen, device="cuda") > 0.4
    elif option.get("mask") == "additive":
        words["mask"] = torch.randn(heads, queries, keys, generator=gen, device="cuda")
    if option.get("blocks"):
        grid = [-(-n // size) for n, size in zip((queries, keys), option["blocks"], strict=True)]
        words["block_mask"] = torch.rand(1, heads, *grid, generator=gen, device="cuda") > 0.5
        words["block_size"] = option["blocks"]
    masks = masking(q, k, **{"key_padding": None, "mask": None, **words})
    sinks = torch.randn(heads, generator=gen, device="cuda") if option.get("sinks") else None
    scale = option.get("scale") or dim**-0.5
    return Problem(masks, scale, option.get("softcap"), option.get("dropout", 0.0), 7), sinks


def outcome(
    module: Any, problem: Problem, tensors: list, sinks: Any, dtype: torch.dtype, wrap: Any = None, **words: Any
):
    """[out, lse, dq, dk, dv(, dsinks)] in float64; the loss weighs out and, where it is differentiable, the lse."""
    leaves = [x.to(dtype).detach().requires_grad_() for x in tensors]
    bias = problem.masking.bias
    if bias is not None and dtype == torch.float64:
        problem = replace(problem, masking=replace(problem.masking, bias=bias.double()))
    inputs = [x if wrap is None else wrap(x) for x in leaves]
    if sinks is not None:
        sinks = sinks.to(torch.promote_types(dtype, torch.float32)).detach().requires_grad_()
        leaves.append(sinks)
    out, lse = module.attention(problem, *inputs, sinks, **words)
    loss = (out * torch.linspace(-1, 1, out.numel(), device="cuda", dtype=torch.float64).view_as(out).to(dtype)).sum()
    seen = ~torch.isneginf(lse)
    if lse.requires_grad:
        weight = torch.linspace(1, -1, lse.numel(), device="cuda", dtype=lse.dtype).view_as(lse)
        loss = loss.to(lse.dtype) + (weight * lse.masked_fill(~seen, 0.0)).sum()
    grads = torch.autograd.grad(loss, leaves)
    return [x.detach().double() for x in (out, lse.masked_fill(~seen, -1e4), *grads)]


def held(module: Any, tensors: list, option: dict[str, Any], **words: Any) -> None:
    """One case against float64, with the error of plain low precision as the budget."""
    dtype = tensors[0].dtype
    problem, sinks = problem_of(*tensors[:2], option)
    without_lse = module is flash1
    baseline = _NoLse if without_lse else reference
    exact = outcome(baseline, problem, tensors, sinks, torch.float64)
    plain = outcome(baseline, problem, tensors, sinks, dtype)
    fast = outcome(module, problem, tensors, sinks, dtype, wrap=_Surrounded.apply, **words)
    for name, a, b, c in zip(NAMES, exact, plain, fast, strict=False):
        budget = 2 * (b - a).abs().max() + 4 * torch.finfo(dtype).eps * a.abs().clamp_max(1e3).max()
        assert torch.isfinite(c).all(), name
        assert (c - a).abs().max() <= budget, (name, float((c - a).abs().max()), float(budget))


class _Surrounded(torch.autograd.Function):
    """:func:`surrounded` for a leaf: its gradient is the leaf's."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return surrounded(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return grad


class _NoLse:
    """The specification with an lse that carries no gradient."""

    @staticmethod
    def attention(*call: Any) -> tuple[torch.Tensor, torch.Tensor]:
        out, lse = reference.attention(*call)
        return out, lse.detach()


SHIPPED = [
    pytest.param(size, bucket, dict(tiles), id=f"{family}-{8 * size}bit-{bucket}")
    for (family, size, bucket), tiles in {
        key[:3]: {which: TABLE[(*key[:3], which)] for which in ("forward", "keys", "queries")} for key in TABLE
    }.items()
]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("size", "bucket", "tiles"), SHIPPED)
def test_every_tile_that_ships(size: int, bucket: int, tiles: dict[str, Tiles], causal: bool) -> None:
    for dtype in LOW[size]:
        for dim in DIMS[bucket]:
            for seed, lengths in enumerate(LENGTHS):
                tensors = draw(lengths, (4, 2), (dim, dim), dtype, seed)
                held(flash2, tensors, {"causal": causal}, tiles=tiles)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("bucket", DIMS)
@pytest.mark.parametrize("size", LOW)
def test_the_first_loop_order(size: int, bucket: int, causal: bool) -> None:
    for dtype in LOW[size]:
        for lengths in LENGTHS:
            held(flash1, draw(lengths, (4, 2), (bucket, bucket), dtype), {"causal": causal})


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("module", [flash2, flash1], ids=["second", "first"])
def test_every_option(module: Any, name: str) -> None:
    option = OPTIONS[name]
    sizes, heads, dims = (option.get(word, usual) for word, usual in
                          (("sizes", (217, 230)), ("heads", (4, 2)), ("dims", (64, 64))))  # fmt: skip
    held(module, draw(sizes, heads, dims, torch.bfloat16), option)


@pytest.mark.parametrize("dims", [(16, 16), (1, 3), (24, 100), (100, 256)], ids=str)
def test_any_head_dim(dims: tuple[int, int]) -> None:
    held(flash2, draw((130, 150), (4, 2), dims, torch.bfloat16), {"causal": True})


@pytest.mark.parametrize("heads", [(4, 4), (6, 2)], ids=str)
def test_one_program_a_head_gives_the_same_bits(heads: tuple[int, int]) -> None:
    tensors = draw((300, 300), heads, (64, 64), torch.bfloat16)
    problem, _ = problem_of(*tensors[:2], {"causal": True})
    rows, whole = (outcome(flash2, problem, tensors, None, torch.bfloat16, grid=grid) for grid in ("rows", "heads"))
    for a, b in zip(rows, whole, strict=True):
        assert torch.equal(a, b)


def test_gradients_are_the_same_bits_every_time() -> None:
    tensors = draw((1000, 1000), (8, 2), (128, 128), torch.bfloat16)
    problem, _ = problem_of(*tensors[:2], {"causal": True})
    first = outcome(flash2, problem, tensors, None, torch.bfloat16)
    for _ in range(4):
        for a, b in zip(first, outcome(flash2, problem, tensors, None, torch.bfloat16), strict=True):
            assert torch.equal(a, b)


def test_both_loop_orders_agree_in_float32() -> None:
    q, k, v = draw((300, 300), (4, 4), (64, 64), torch.float32)
    first, second = (attention(q, k, v, impl=impl) for impl in ("triton-v1", "triton"))
    torch.testing.assert_close(first, second, atol=1e-6, rtol=1e-6)


def test_offsets_beyond_32_bits() -> None:
    """The last head of a tensor of more than 2^31 elements."""
    big = torch.zeros(1, 33000, 520, 128, dtype=torch.bfloat16, device="cuda")
    part = big[:, :200, -1:].normal_()
    far = big[:, -200:, -1:].normal_()
    assert far.data_ptr() - big.data_ptr() > 2 * 2**31
    for q, k in ((part, far), (far, part)):
        out = attention(q, k, k, impl="triton", causal=False)
        torch.testing.assert_close(
            out, attention(q.contiguous(), k.contiguous(), k.contiguous(), impl="triton", causal=False)
        )


def test_nan_is_located_on_request() -> None:
    q, k, v = draw((20, 20), (2, 2), (16, 16), torch.bfloat16)
    k[1, 3, 0, 7] = float("nan")
    attention(q, k, v)
    with pytest.raises(ValueError, match=r"^k holds NaN, first at .* = \(1, 3, 0, 7\)"):
        attention(q, k, v, check_nan=True)
