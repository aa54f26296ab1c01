"""RetNet's retention: linear attention that fades at a fixed rate a head, with rotary positions."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from workbench.errors import BadInput
from workbench.memory.base import MEMORIES
from workbench.memory.layers._linear import LinearMemory
from workbench.memory.layers._rotary import rotate
from workbench.memory.layers.base import Slot, State


@MEMORIES.register("retnet")
class RetNet(LinearMemory):
    """M_t = g_h M_{t-1} + k_t' v_t, y_t = q_t M_t, g_h = 1 - 2^(-5-h); q and k turned by their position.

    Sun et al. 2023 (arXiv 2307.08621), equations 6 to 8.

    Args:
        dim, heads, key_dim, value_dim, conv, gate, chunk: see ``LinearMemory``; key_dim must be even.
    """

    slug = "retnet"
    compared: ClassVar[tuple[dict[str, Any], ...]] = ({"heads": 2},)
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"heads": 2, "chunk": 4}, {"heads": 1, "conv": 3, "gate": False})

    def __init__(self, dim: int, heads: int = 4, *, conv: int = 0, gate: bool = True, **settings: Any):
        super().__init__(dim, heads, conv=conv, gate=gate, **settings)
        if self.key_dim % 2:
            raise BadInput(f"key_dim must be even, because positions turn pairs of channels; got {self.key_dim}")

    def layout(self, batch: int) -> dict[str, Slot]:
        return {**super().layout(batch), "position": Slot((batch,), torch.int64)}

    def gates(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        heads = torch.arange(self.heads, device=x.device, dtype=x.dtype)
        return torch.log1p(-(2.0 ** (-5 - heads))).expand(*x.shape[:2], self.heads), None

    def turn(self, q: Tensor, k: Tensor, state: State, keep: Tensor | None) -> tuple[Tensor, Tensor, State]:
        one = torch.ones(q.shape[:2], dtype=torch.int64, device=q.device) if keep is None else keep.long()
        positions = state["position"][:, None] + one.cumsum(1) - 1
        after = {"position": state["position"] + one.sum(1)}
        return rotate(q, positions), rotate(k, positions), after
