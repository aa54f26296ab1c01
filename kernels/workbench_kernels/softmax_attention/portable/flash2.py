"""``impl="triton"``: exact attention in FlashAttention-2's order, forward and backward, deterministic.

Options of :func:`attention` beyond the shared signature are for measurements: ``grid="heads"`` starts one program a
(batch, head) that walks its row blocks in turn, the first version's parallelism; ``tiles`` replaces the frozen table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from workbench_kernels import checks
from workbench_kernels.softmax_attention.portable import launch
from workbench_kernels.softmax_attention.portable.arguments import (
    Call,
    Flags,
    Strided,
    flags_of,
    masks_of,
    numbers_of,
    padded,
    sizes_of,
    strided,
)
from workbench_kernels.softmax_attention.portable.backward import delta_kernel, keys_kernel, queries_kernel
from workbench_kernels.softmax_attention.portable.configurations import Tiles, tiles_for
from workbench_kernels.softmax_attention.portable.forward import forward_kernel
from workbench_kernels.softmax_attention.portable.plan import NO_PLAN, aligned, fitted_tiles, listed, live_map
from workbench_kernels.softmax_attention.problem import Problem

GRIDS = ("rows", "heads")
DELTA_ROWS = 64


def attention(
    problem: Problem,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    *,
    grid: str = "rows",
    tiles: Mapping[str, Tiles] | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns out (B, Nq, H, Dv) in q's dtype and lse (B, Nq, H) float32; both carry gradients."""
    checks.choice("grid", grid, GRIDS)
    out, lse = _Attention.apply(q, k, v, sinks, problem, (grid == "heads", dict(tiles or {})))
    return out, lse


def refuses(problem: Problem, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None) -> str | None:
    """Why this implementation cannot take the call; None = it can."""
    return launch.refusal(problem, q, k, v)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, problem: Problem, options: tuple
    ) -> tuple[Tensor, Tensor]:
        out, lse = forward(problem, q, k, v, sinks, options)
        ctx.save_for_backward(q, k, v, sinks, out, lse)
        ctx.problem, ctx.options = problem, options
        ctx.set_materialize_grads(False)
        return out, lse.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, sinks, out, lse = ctx.saved_tensors
        grad = torch.zeros_like(out) if grad is None else grad
        tensors = (q, k, v, sinks, out, lse, grad, grad_lse)
        return (*backward(ctx.problem, *tensors, ctx.options, ctx.needs_input_grad[:3]), None, None)


def forward(
    problem: Problem, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, options: tuple
) -> tuple[Tensor, Tensor]:
    """out (B, Nq, H, Dv) and lse (B, H, Nq), the order in which the kernels read it."""
    batch, queries, heads, _ = q.shape
    out = torch.empty(batch, queries, heads, v.shape[3], dtype=q.dtype, device=q.device)
    lse = torch.empty(batch, heads, queries, dtype=torch.float32, device=q.device)
    call, flags, tiles = prepare(problem, (q, k, v), "forward", options)
    sinks = None if sinks is None else sinks.contiguous()
    with launch.on(q):
        launch.start(
            forward_kernel, programs(call, flags, queries, flags.BM), tiles, call, strided(out), lse, sinks, flags
        )
    return out, lse


def backward(
    problem: Problem,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    out: Tensor,
    lse: Tensor,
    grad: Tensor,
    grad_lse: Tensor | None,
    options: tuple,
    needed: Sequence[bool] = (True, True, True),
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of q, k, v (those that are ``needed``) and sinks; one writer each, so the same bits every time."""
    grad = grad if grad.stride(3) == 1 or grad.shape[3] == 1 else grad.contiguous()
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    with launch.on(q):
        delta, shift = row_terms(out, lse, grad, grad_lse)
        stats = (strided(grad), shift, delta)
        if needed[1] or needed[2]:
            call, flags, tiles = prepare(problem, (q, k, v, grad), "keys", options)
            count = programs(call, flags, k.shape[1], flags.BN)
            launch.start(keys_kernel, count, tiles, call, *stats, strided(dk), strided(dv), flags)
        if needed[0]:
            call, flags, tiles = prepare(problem, (q, k, v, grad), "queries", options)
            count = programs(call, flags, q.shape[1], flags.BM)
            launch.start(queries_kernel, count, tiles, call, *stats, strided(dq), flags)
    found = [x if need else None for x, need in zip((dq, dk, dv), needed, strict=True)]
    return (*found, None if sinks is None else sink_gradient(sinks, lse, delta))  # type: ignore[return-value]


def prepare(problem: Problem, tensors: tuple[Tensor, ...], which: str, options: tuple) -> tuple[Call, Flags, Tiles]:
    """Arguments, constants and tiles of one pass; ``tensors`` begins with q, k, v."""
    heads_grid, given = options
    q, k, v = tensors[:3]
    masking = problem.masking
    tiles = fitted_tiles(masking, given.get(which) or _frozen(q, v, which))
    plan, blocks = NO_PLAN, None
    if masking.blocks is not None:
        live = live_map(masking, tiles.rows, tiles.cols)
        plan = listed(live.transpose(2, 3) if which == "keys" else live)
        blocks = None if aligned(masking, tiles.rows, tiles.cols) else masking.blocks
    sizes = sizes_of(problem, q, k, v, keys_grid=which == "keys")
    call = Call(strided(q), strided(k), strided(v), masks_of(masking, blocks), plan, sizes, numbers_of(problem))
    return call, flags_of(problem, tensors, tiles, heads_grid=heads_grid), tiles


def _frozen(q: Tensor, v: Tensor, which: str) -> Tiles:
    wide = max(padded(q.shape[3]), padded(v.shape[3]))
    tiles = tiles_for(launch.capability(q), q.element_size(), wide, which)
    return tiles if which == "keys" else replace(tiles, rows=short_rows(tiles.rows, q.shape[1]))


def short_rows(rows: int, queries: int) -> int:
    """A quarter or less of the tile for calls with few queries (decoding, short prompts)."""
    return 16 if queries <= 16 else min(rows, 64) if queries <= 64 else rows


def programs(call: Call, flags: Flags, length: int, size: Any) -> int:
    return call.sizes.flat_heads * (1 if flags.HEADS.value and length else triton.cdiv(length, size.value))


def row_terms(out: Tensor, lse: Tensor, grad: Tensor, grad_lse: Tensor | None) -> tuple[Tensor, Tensor]:
    """(delta, shift), both (B, H, Nq): rowsum(dO * O) - dLSE, and the LSE in log-2 units."""
    batch, queries, heads, width = out.shape
    delta, shift = torch.empty_like(lse), torch.empty_like(lse)
    level = Strided(None, 0, 0, 0) if grad_lse is None else Strided(grad_lse, *grad_lse.stride())
    count = batch * heads * triton.cdiv(queries, DELTA_ROWS)
    arguments = (strided(out), strided(grad), lse, level, delta, shift, heads, queries, width)
    launch.start(delta_kernel, count, Tiles(0, 0, 4, 1), *arguments, BM=DELTA_ROWS, BDV=padded(width))
    return delta, shift


def sink_gradient(sinks: Tensor, lse: Tensor, delta: Tensor) -> Tensor:
    """A sink's probability times -delta, summed over batch and queries."""
    share = torch.exp(sinks.to(torch.float32)[None, :, None] - lse).masked_fill(torch.isneginf(lse), 0.0)
    return -(share * delta).sum((0, 2)).to(sinks.dtype)
