"""What every implementation of attention is given: the validated numbers beside q, k and v."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workbench_kernels.masking import Masking


@dataclass(frozen=True)
class Problem:
    """Scale, masks and the rest of one attention call; the tensors travel beside it."""

    masking: Masking
    scale: float
    softcap: float | None = None
    dropout: float = 0.0
    seed: int = 0
    deterministic: bool = True


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Scores and sums are kept in float64 for float64 inputs and in float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def dropout_factor(problem: Problem, batch: slice, heads: slice, rows: Tensor, cols: Tensor) -> Tensor:
    """(batch, heads, R, C) float32 for two ranges and two vectors of positions: 0 is dropped, 1 / (1 - p) is kept.

    The draw is a hash of (seed, batch, head, query, key), a counter-based generator: any tiling, and the backward
    pass, sees the same mask without storing it (the role of the saved RNG state in FlashAttention, Algorithm 4).
    """
    device = rows.device
    b = torch.arange(batch.start, batch.stop, device=device)[:, None, None, None]
    h = torch.arange(heads.start, heads.stop, device=device)[None, :, None, None]
    key = _mix(_mix(_mix(_mix(b + problem.seed * 0x1F123BB5) + h) + rows[:, None]) + cols[None, :])
    uniform = (key & 0xFFFFFF).float() / float(1 << 24)
    return (uniform >= problem.dropout).float() / (1.0 - problem.dropout)


def _mix(x: Tensor) -> Tensor:
    """A 64-bit finaliser (xor-shift and multiply, the construction of splitmix64); int64 arithmetic wraps."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    return x ^ ((x >> 31) & 0x1FFFFFFFF)
