"""FlashAttention in torch: exact attention over tiles, online softmax, memory linear in the sequence length.

Row blocks are the outer loop and key blocks the inner one (the order of FlashAttention-2), so a row block's running
maximum, sum and output never leave their buffers; the backward pass recomputes the probabilities of a tile from the
row LSE (Dao et al. 2022, Algorithms 1 and 4). Scores are kept in units of log 2, because ``exp2`` is the only
exponential whose CPU time does not depend on the data (``exp`` is 10 to 100 times slower where it underflows).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from workbench_kernels.softmax_attention.problem import Problem
from workbench_kernels.softmax_attention.tiles import LOG2_E, Chunk, chunks, tile_sizes, tiles_of


def attention(problem: Problem, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns out (B, Nq, H, Dv) in q's dtype and lse (B, Nq, H), which carries no gradient."""
    out, lse = _TiledAttention.apply(q, k, v, sinks, problem)
    return out, lse


def refuses(problem: Problem, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None) -> str | None:
    """Why this implementation cannot take the call; None = it can."""
    bias = problem.masking.bias
    if bias is not None and bias.requires_grad:
        return "mask requires a gradient, which only impl='reference' gives"
    return None


class _TiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, problem: Problem
    ) -> tuple[Tensor, Tensor]:
        out, lse = forward(problem, q, k, v, sinks)
        ctx.save_for_backward(q, k, v, sinks, out, lse)
        ctx.problem = problem
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, sinks, out, lse = ctx.saved_tensors
        return (*backward(ctx.problem, q, k, v, sinks, out, lse, grad_out), None)


def forward(problem: Problem, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None) -> tuple[Tensor, Tensor]:
    batch, queries, heads, _ = q.shape
    out = q.new_empty(batch, queries, heads, v.shape[3])
    rows, cols = tile_sizes(problem, q, k)
    chunk_list = list(chunks(problem, q, k, v, rows, cols))
    lse = torch.empty(batch, queries, heads, dtype=chunk_list[0].kind if chunk_list else torch.float32, device=q.device)
    for chunk in chunk_list:
        chunk.load(q, k, v)
        logits = None if sinks is None else chunk.per_row_of_heads(sinks)
        for tile in tiles_of(0, queries, rows):
            _forward_rows(chunk, tile, cols, logits, out, lse)
    return out, lse


def _forward_rows(
    chunk: Chunk, rows: tuple[int, int], cols: int, sinks: Tensor | None, out: Tensor, lse: Tensor
) -> None:
    """One row block: walk over its live key blocks, then normalise and write out and lse once."""
    q = chunk.query_tile(rows)  # n (g r) d, scaled
    top = q.new_full((*q.shape[:2], 1), -torch.inf)
    total, acc = torch.zeros_like(top), q.new_zeros(*q.shape[:2], chunk.v.shape[2])
    for tile in chunk.live_tiles(rows, cols):
        scores = chunk.scores(q, rows, tile)  # n (g r) c
        new_top = torch.maximum(top, scores.amax(-1, keepdim=True))
        shift = new_top.masked_fill(torch.isneginf(new_top), 0.0)
        scores.sub_(shift).exp2_()
        shrink = torch.exp2(top - shift)
        total.mul_(shrink).add_(scores.sum(-1, keepdim=True))
        chunk.drop(scores, rows, tile)
        acc.mul_(shrink).baddbmm_(scores, chunk.v[:, tile[0] : tile[1]])
        top = new_top
    if sinks is not None:
        top, total, acc = _join_sinks(chunk.spread(sinks, rows), top, total, acc)
    empty = total == 0
    chunk.write(out, rows, acc.div_(total.masked_fill(empty, 1.0)))
    chunk.write(lse, rows, ((top + total.log2()) / LOG2_E).masked_fill_(empty, -torch.inf))


def _join_sinks(sinks: Tensor, top: Tensor, total: Tensor, acc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Let a logit without a value join the denominator."""
    new_top = torch.maximum(top, sinks)
    new_top = new_top.masked_fill(torch.isneginf(new_top), 0.0)
    shrink = torch.exp2(top - new_top)
    return new_top, total * shrink + torch.exp2(sinks - new_top), acc * shrink


def backward(
    problem: Problem, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, out: Tensor, lse: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of q, k, v and sinks; the softmax term is rowsum(dO * O), so nothing of size N x N is kept."""
    grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    rows, cols = tile_sizes(problem, q, k)
    delta = (grad.to(lse.dtype) * out.to(lse.dtype)).sum(-1)  # b i h
    for chunk in chunks(problem, q, k, v, rows, cols):
        chunk.load(q, k, v)
        dk, dv = torch.zeros_like(chunk.k), torch.zeros_like(chunk.v)
        for tile in tiles_of(0, q.shape[1], rows):
            _backward_rows(chunk, tile, cols, (lse, delta, grad), (grad_q, dk, dv))
        chunk.write_keys(grad_k, dk.mul_(problem.scale))
        chunk.write_keys(grad_v, dv)
    grad_sinks = None if sinks is None else _sink_gradient(sinks, lse, delta)
    return grad_q, grad_k, grad_v, grad_sinks


def _backward_rows(
    chunk: Chunk, rows: tuple[int, int], cols: int, saved: tuple[Tensor, ...], grads: tuple[Tensor, ...]
) -> None:
    lse, delta, grad = (chunk.read(x, rows) for x in saved)  # n (g r) 1, n (g r) 1, n (g r) dv
    shift = (lse * LOG2_E).masked_fill_(torch.isneginf(lse), torch.inf)  # rows that see nothing: exp2(-inf) = 0
    grad_q, dk, dv = grads
    q, scaled = chunk.query_tile(rows, scaled=False), chunk.query_tile(rows)
    dq = torch.zeros_like(q)
    for tile in chunk.live_tiles(rows, cols):
        here = slice(*tile)
        weights, slope = chunk.scores_and_slope(scaled, rows, tile)
        weights.sub_(shift).exp2_()
        ds = torch.bmm(grad, chunk.v[:, here].transpose(1, 2))  # n (g r) c, dP of the weights after dropout
        chunk.drop(ds, rows, tile)
        ds.sub_(delta).mul_(weights)
        if slope is not None:
            ds.mul_(slope)
        chunk.drop(weights, rows, tile)
        dv[:, here].baddbmm_(weights.transpose(1, 2), grad)
        dq.baddbmm_(ds, chunk.k[:, here])
        dk[:, here].baddbmm_(ds.transpose(1, 2), q)
    chunk.write(grad_q, rows, dq.mul_(chunk.problem.scale))


def _sink_gradient(sinks: Tensor, lse: Tensor, delta: Tensor) -> Tensor:
    """A sink's probability times -rowsum(dO * O), summed over batch and queries."""
    share = torch.exp(sinks.to(lse.dtype) - lse)
    share = share.masked_fill(torch.isneginf(lse), 0.0)
    return -(share * delta).sum((0, 1)).to(sinks.dtype)
