"""Attention as it is written on paper: the specification the fast implementations are tested against.

Materialises (batch, heads, queries, keys) in float32 (float64 for float64 inputs); differentiable by autograd in
q, k, v, sinks and an additive mask, and through the LSE.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from workbench_kernels.softmax_attention.problem import Problem, accumulator, dropout_factor


def attention(problem: Problem, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns out (B, Nq, H, Dv) in q's dtype and lse (B, Nq, H) in the accumulator's dtype."""
    kind = accumulator(q.dtype)
    scores = _scores(problem, q.to(kind), k.to(kind))
    top = _row_shift(scores, sinks)
    weights = torch.exp(scores - top)
    total = weights.sum(-1, keepdim=True)
    if sinks is not None:
        total = total + torch.exp(sinks.to(kind)[None, :, None, None] - top)
    empty = total == 0
    total = torch.where(empty, torch.ones_like(total), total)
    lse = torch.where(empty, torch.full_like(total, -torch.inf), top + total.log())
    if problem.dropout:
        rows, cols = (torch.arange(n, device=q.device) for n in (q.shape[1], k.shape[1]))
        weights = weights * dropout_factor(problem, slice(0, q.shape[0]), slice(0, q.shape[2]), rows, cols).to(kind)
    grouped = rearrange(weights / total, "b (n g) i j -> b n g i j", n=k.shape[2])
    out = torch.einsum("b n g i j, b j n d -> b i n g d", grouped, v.to(kind))
    return rearrange(out, "b i n g d -> b i (n g) d").to(q.dtype), rearrange(lse, "b h i 1 -> b i h")


def refuses(problem: Problem, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None) -> None:
    """It takes every call that memory takes."""


def _scores(problem: Problem, q: Tensor, k: Tensor) -> Tensor:
    """(B, H, Nq, Nk): scaled, soft-capped, biased, then -inf where a query may not see a key."""
    grouped = rearrange(q * problem.scale, "b i (n g) d -> b i n g d", n=k.shape[2])
    scores = rearrange(torch.einsum("b i n g d, b j n d -> b n g i j", grouped, k), "b n g i j -> b (n g) i j")
    if problem.softcap is not None:
        scores = problem.softcap * torch.tanh(scores / problem.softcap)
    everything = slice(None)
    bias = problem.masking.added(everything, everything)
    scores = scores if bias is None else scores + bias.to(scores.dtype)
    seen = problem.masking.visible(everything, everything, device=q.device)
    return scores if seen is None else scores.masked_fill(~seen, -torch.inf)


def _row_shift(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Row maximum (sink included), 0 for rows that see nothing, so that exp never meets inf - inf."""
    if scores.shape[-1] == 0:
        top = scores.new_full((*scores.shape[:-1], 1), -torch.inf)
    else:
        top = scores.detach().amax(-1, keepdim=True)
    if sinks is not None:
        top = torch.maximum(top, sinks.detach().to(scores.dtype)[None, :, None, None])
    return torch.where(torch.isneginf(top), torch.zeros_like(top), top)
