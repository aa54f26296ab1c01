"""``impl="triton-v1"``: FlashAttention's first loop order as a kernel of its own; what the papers' figures race."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from workbench_kernels.softmax_attention.portable import launch
from workbench_kernels.softmax_attention.portable.arguments import (
    Call,
    Flags,
    flags_of,
    masks_of,
    numbers_of,
    padded,
    sizes_of,
    strided,
)
from workbench_kernels.softmax_attention.portable.configurations import Tiles, first_tiles_for
from workbench_kernels.softmax_attention.portable.first_order import first_backward_kernel, first_forward_kernel
from workbench_kernels.softmax_attention.portable.plan import NO_PLAN, aligned, fitted_tiles, live_map, mapped
from workbench_kernels.softmax_attention.problem import Problem

LOG2_E = math.log2(math.e)


def attention(
    problem: Problem,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    *,
    tiles: Mapping[str, Tiles] | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns out (B, Nq, H, Dv) in q's dtype and lse (B, Nq, H) float32, which carries no gradient.

    ``tiles`` ("forward", "backward") replaces the frozen table, for measurements.
    """
    return _FirstOrder.apply(q, k, v, sinks, problem, dict(tiles or {}))


def refuses(problem: Problem, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None) -> str | None:
    """Why this implementation cannot take the call; None = it can."""
    return launch.refusal(problem, q, k, v)


class _FirstOrder(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, problem: Problem, tiles: dict[str, Tiles]
    ) -> tuple[Tensor, Tensor]:
        out, top, total = forward(problem, q, k, v, sinks, tiles)
        ctx.save_for_backward(q, k, v, sinks, out, top, total)
        ctx.problem, ctx.tiles = problem, tiles
        lse = row_lse(top, total).transpose(1, 2)
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, sinks, out, top, total = ctx.saved_tensors
        return (*backward(ctx.problem, q, k, v, sinks, out, top, total, grad, ctx.tiles), None, None)


def forward(
    problem: Problem, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, given: Mapping[str, Tiles]
) -> tuple[Tensor, Tensor, Tensor]:
    """out, m and l, the last two (B, H, Nq) float32 (m in log-2 units). O is kept in float32 between rounds."""
    batch, queries, heads, _ = q.shape
    out = torch.zeros(batch, queries, heads, v.shape[3], dtype=torch.float32, device=q.device)
    top, total = start_statistics(sinks, (batch, heads, queries), q.device)
    call, flags, tiles = _prepare(problem, (q, k, v, out), "forward", given)
    with launch.on(q):
        launch.start(
            first_forward_kernel, batch * heads if queries else 0, tiles, call, strided(out), top, total, flags
        )
    return out.to(q.dtype), top, total


def start_statistics(sinks: Tensor | None, shape: tuple[int, int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """m = -inf and l = 0; a sink is a logit without a value that the running softmax starts with."""
    top = torch.full(shape, -torch.inf, dtype=torch.float32, device=device)
    if sinks is not None:
        top = (sinks.to(torch.float32) * LOG2_E)[None, :, None].expand(shape).contiguous()
    return top, (~torch.isneginf(top)).to(torch.float32)


def row_lse(top: Tensor, total: Tensor) -> Tensor:
    """m + log l in natural units; -inf where nothing is seen."""
    return ((top + total.log2()) / LOG2_E).masked_fill(total == 0, -torch.inf)


def backward(
    problem: Problem,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    out: Tensor,
    top: Tensor,
    total: Tensor,
    grad: Tensor,
    given: Mapping[str, Tiles],
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    grad = grad if grad.stride(3) == 1 or grad.shape[3] == 1 else grad.contiguous()
    batch, queries, heads, dim = q.shape
    dq = torch.zeros(batch, heads, dim, queries, dtype=torch.float32, device=q.device)
    dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (k, v))
    call, flags, tiles = _prepare(problem, (q, k, v, out, grad), "backward", given)
    tensors = (strided(out), strided(grad), top, total, dq, strided(dk), strided(dv))
    with launch.on(q):
        launch.start(first_backward_kernel, batch * k.shape[2], tiles, call, *tensors, flags)
    grad_sinks = None if sinks is None else _sink_gradient(sinks, out, grad, top, total)
    return dq.permute(0, 3, 1, 2).to(q.dtype), dk, dv, grad_sinks


def _prepare(
    problem: Problem, tensors: tuple[Tensor, ...], which: str, given: Mapping[str, Tiles]
) -> tuple[Call, Flags, Tiles]:
    q, k, v = tensors[:3]
    masking = problem.masking
    wide = max(padded(q.shape[3]), padded(v.shape[3]))
    tiles = fitted_tiles(
        masking, given.get(which) or first_tiles_for(launch.capability(q), q.element_size(), wide, which)
    )
    plan, blocks = NO_PLAN, None
    if masking.blocks is not None:
        plan = mapped(live_map(masking, tiles.rows, tiles.cols))
        blocks = None if aligned(masking, tiles.rows, tiles.cols) else masking.blocks
    sizes = sizes_of(problem, q, k, v)
    call = Call(strided(q), strided(k), strided(v), masks_of(masking, blocks), plan, sizes, numbers_of(problem))
    return call, flags_of(problem, tensors, tiles), tiles


def _sink_gradient(sinks: Tensor, out: Tensor, grad: Tensor, top: Tensor, total: Tensor) -> Tensor:
    """A sink's probability times -rowsum(dO * O), summed over batch and queries."""
    delta = (grad.to(torch.float32) * out.to(torch.float32)).sum(-1).transpose(1, 2)
    share = torch.exp2(sinks.to(torch.float32)[None, :, None] * LOG2_E - top) / total
    return -(share.masked_fill(total == 0, 0.0) * delta).sum((0, 2)).to(sinks.dtype)
