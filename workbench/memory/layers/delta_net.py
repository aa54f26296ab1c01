"""DeltaNet: a write replaces what its key brought back before, instead of adding to it."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from workbench.memory.base import MEMORIES
from workbench.memory.layers._linear import LinearMemory


@MEMORIES.register("delta-net")
class DeltaNet(LinearMemory):
    """M_t = M_{t-1} + beta_t k_t' (v_t - k_t M_{t-1}), y_t = q_t M_t; keys and queries of length one.

    Schlag et al. 2021 (arXiv 2102.11174), with the parallel form of Yang et al. 2024 (arXiv 2406.06484): one gradient
    step of size beta / 2 on ||k M - v||^2 a token.

    Args:
        dim, heads, key_dim, value_dim, conv, gate, chunk: see ``LinearMemory``.
    """

    slug = "delta-net"
    compared: ClassVar[tuple[dict[str, Any], ...]] = ({"heads": 2, "conv": 0},)
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"heads": 2, "chunk": 4},
        {"heads": 1, "conv": 0, "gate": True, "key_dim": 6},
    )
    unit_keys = True

    def __init__(self, dim: int, heads: int = 4, **settings: Any):
        super().__init__(dim, heads, **settings)
        self.to_beta = nn.Linear(dim, heads)

    def gates(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        return None, self.to_beta(x).sigmoid()
