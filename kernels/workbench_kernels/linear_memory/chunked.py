"""Chunk by chunk in torch: matrix products inside a chunk, one state update a chunk.

Decays between two tokens of a chunk are taken as exp(G_i - G_j) for i >= j only, so no factor exceeds 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def _scores(x: Tensor, k: Tensor, total: Tensor | None, diagonal: int) -> Tensor:
    """Lower-triangular x_i diag(exp(G_i - G_j)) k_j, (B, H, C, C); ``diagonal`` -1 leaves i = j out."""
    size = x.shape[2]
    seen = torch.ones(size, size, dtype=torch.bool, device=x.device).tril(diagonal)
    if total is None:
        return (x @ k.mT).masked_fill(~seen, 0)
    gap = total[:, :, :, None] - total[:, :, None]  # b h i j (1 or k)
    decay = gap.masked_fill(~seen[..., None], -torch.inf).exp()
    if total.shape[-1] == 1:
        return (x @ k.mT) * decay[..., 0]
    return torch.einsum("bhik,bhijk,bhjk->bhij", x, decay, k)


def _one(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, beta: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    total = None if log_decay is None else log_decay.cumsum(2)
    grown = 1 if total is None else total.exp()
    written = v
    if beta is not None:
        rate = beta[..., None]
        lower = torch.eye(q.shape[2], dtype=q.dtype, device=q.device) + rate * _scores(k, k, total, -1)
        written = torch.linalg.solve_triangular(
            lower, rate * (v - (k * grown) @ state), upper=False, unitriangular=True
        )
    read = (q * grown) @ state + _scores(q, k, total, 0) @ written
    if total is None:
        return read, state + k.mT @ written
    last = total[:, :, -1:]
    return read, state * last.exp().mT + (k * (last - total).exp()).mT @ written


def recurrence(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, beta: Tensor | None, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    parts = [None if x is None else x.transpose(1, 2) for x in (q, k, v, log_decay, beta)]  # b h s d
    reads = []
    for start in range(0, q.shape[1], chunk):
        cut: Any = [None if x is None else x[:, :, start : start + chunk] for x in parts]
        read, state = _one(*[*cut, state])
        reads.append(read)
    return torch.cat(reads, 2).transpose(1, 2), state
