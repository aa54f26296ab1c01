"""Gated DeltaNet: the delta rule on a memory that first fades."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from workbench.memory.base import MEMORIES
from workbench.memory.layers._linear import LinearMemory


@MEMORIES.register("gated-delta-net")
class GatedDeltaNet(LinearMemory):
    """M' = a_t M_{t-1}, M_t = M' + beta_t k_t' (v_t - k_t M'), y_t = q_t M_t; keys and queries of length one.

    Yang, Kautz and Hatamizadeh 2024 (arXiv 2412.06464). The gate is Mamba's: log a_t = -A softplus(x_t W_a + b) with
    A from 0 to 16 and the step softplus(b) from .001 to .1 at the start.

    Args:
        dim, heads, key_dim, value_dim, conv, gate, chunk: see ``LinearMemory``.
    """

    slug = "gated-delta-net"
    compared: ClassVar[tuple[dict[str, Any], ...]] = ({"heads": 2, "conv": 0},)
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"heads": 2, "chunk": 4}, {"heads": 1, "gate": False, "conv": 0})
    unit_keys = True

    def __init__(self, dim: int, heads: int = 4, *, gate: bool = True, **settings: Any):
        super().__init__(dim, heads, gate=gate, **settings)
        self.to_beta, self.to_step = nn.Linear(dim, heads, bias=False), nn.Linear(dim, heads)
        self.log_rate = nn.Parameter(torch.empty(heads).uniform_(1e-3, 16).log())
        step = torch.empty(heads).uniform_(math.log(1e-3), math.log(1e-1)).exp().clamp_min(1e-4)
        with torch.no_grad():
            self.to_step.bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus

    def gates(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        log_decay = -self.log_rate.exp() * softplus(self.to_step(x))
        return log_decay, self.to_beta(x).sigmoid()
