"""Titans, memory as a gate (MAG): a sliding window and a neural memory side by side."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from workbench.checks import whole
from workbench.errors import BadInput
from workbench.memory.base import MEMORIES
from workbench.memory.layers._titans_attention import Joined, window_mask
from workbench.memory.layers._titans_base import WindowedTitans
from workbench.memory.layers.base import State, widened

GATES = ("product", "sum")


def checked_gate(gate: str) -> str:
    if gate not in GATES:
        raise BadInput(f"gate must be one of {', '.join(map(repr, GATES))}, got {gate!r}")
    return gate


@MEMORIES.register("titans-mag")
class TitansMAG(WindowedTitans):
    """o = SWAttn([P, x]) (x) M([P, x]) (arXiv 2501.00663, equations 26 to 28).

    Args:
        dim, heads, persistent and the memory's own: see ``Titans``. heads are also the attention's.
        window: tokens that each token sees, itself included; persistent tokens come on top.
        gate: how the branches join, "product" RMSNorm(y) sigmoid(RMSNorm(m)), or "sum".
    """

    slug = "titans-mag"
    compared: ClassVar[tuple[dict[str, Any], ...]] = ({"heads": 2, "conv": 0, "chunk": 8, "window": 8},)
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"heads": 2, "chunk": 4, "window": 3, "persistent": 2},
        {"heads": 1, "chunk": 2, "depth": 1, "window": 1, "persistent": 0, "gate": "sum", "conv": 0},
        {"heads": 2, "chunk": 3, "window": 3, "persistent": 1, "gates_per": "chunk"},
    )

    def __init__(
        self, dim: int, heads: int = 4, *, window: int = 64, persistent: int = 4, gate: str = "product", **memory: Any
    ):
        super().__init__(dim, heads, window, persistent, memory)
        self.gate = checked_gate(gate)
        self.join, self.to_out = Joined(dim, gate), nn.Linear(dim, dim, bias=False)

    def run_even(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, local = self.attention.run(x, state, self.persistent)
        m, memory = self.core.run(x, state)
        return self.to_out(self.join(y, m)), {**memory, **local}

    def recall(self, x: Tensor, state: State) -> Tensor:
        """Each token alone beside the held window, joined with M(q); no step is made."""
        wide = widened(state, x.shape[1])
        y, _ = self.attention.run(x.transpose(0, 1), wide, self.persistent)
        return self.to_out(self.join(y.transpose(0, 1), self.asked(x, state).to(x.dtype)))

    def mask(self, tokens: int) -> Tensor:
        """Who sees what in a stream of ``tokens`` (bool, without the slots before it): persistent columns, tokens."""
        seen = window_mask(whole("tokens", tokens), 0, self.window, self.persistent_tokens)
        first = self.persistent_tokens
        return torch.cat([seen[:, :first], seen[:, first + self.window - 1 :]], 1)
