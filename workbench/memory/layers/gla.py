"""Gated linear attention: every row of the matrix fades at a rate of its own that the token sets."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from workbench.checks import whole
from workbench.errors import BadInput
from workbench.memory.base import MEMORIES
from workbench.memory.layers._linear import LinearMemory
from workbench.memory.layers.base import divides


@MEMORIES.register("gla")
class GLA(LinearMemory):
    """M_t = diag(a_t) M_{t-1} + k_t' v_t, y_t = q_t M_t, log a_t = logsigmoid(x_t W_1 W_2 + b) / tau.

    Yang et al. 2023 (arXiv 2312.06635), equation 3 and section 4.4; keys of half the width, as there.

    Args:
        dim, heads, value_dim, conv, gate, chunk: see ``LinearMemory``.
        key_dim: rows of one matrix, each with a gate; default ``dim / heads / 2``, at least 1.
        rank: inner width of the gate's projection. tau: the larger, the slower the memory fades.
    """

    slug = "gla"
    compared: ClassVar[tuple[dict[str, Any], ...]] = ({"heads": 2},)
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"heads": 2, "chunk": 4}, {"heads": 1, "conv": 3, "tau": 2.0})

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        *,
        key_dim: int | None = None,
        conv: int = 0,
        gate: bool = True,
        rank: int = 16,
        tau: float = 16.0,
        **settings: Any,
    ):
        half = max(divides("heads", heads, dim) // 2, 1) if key_dim is None else key_dim
        super().__init__(dim, heads, key_dim=half, conv=conv, gate=gate, **settings)
        if not tau > 0:
            raise BadInput(f"tau must be greater than 0, got {tau!r}")
        self.rank, self.tau = whole("rank", rank), float(tau)
        self.to_decay = nn.Sequential(nn.Linear(dim, rank, bias=False), nn.Linear(rank, self.heads * self.key_dim))

    def gates(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        return logsigmoid(self.to_decay(x)).unflatten(-1, (self.heads, self.key_dim)) / self.tau, None
