"""Titans, memory as a layer (MAL): what the neural memory says goes through a sliding window."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from workbench.memory.base import MEMORIES
from workbench.memory.layers._norm import rms_norm
from workbench.memory.layers._titans_base import WindowedTitans
from workbench.memory.layers.base import State, widened


@MEMORIES.register("titans-mal")
class TitansMAL(WindowedTitans):
    """y = x + M([P, x]), o = SWAttn(y) (arXiv 2501.00663, equations 29 to 31, with the residual of a layer), as in H3.

    The persistent tokens go into the memory only; a token that they have changed is what the window sees.

    Args:
        dim, heads, persistent and the memory's own: see ``Titans``. heads are also the attention's.
        window: tokens that each token sees, itself included.
    """

    slug = "titans-mal"
    compared: ClassVar[tuple[dict[str, Any], ...]] = ({"heads": 2, "conv": 0, "chunk": 8, "window": 8},)
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"heads": 2, "chunk": 4, "window": 3, "persistent": 2},
        {"heads": 1, "chunk": 2, "depth": 1, "window": 1, "persistent": 0, "conv": 0},
        {"heads": 2, "chunk": 3, "window": 3, "persistent": 1, "gates_per": "chunk"},
    )

    def __init__(self, dim: int, heads: int = 4, *, window: int = 64, persistent: int = 4, **memory: Any):
        super().__init__(dim, heads, window, persistent, memory)
        self.norm = rms_norm(dim)

    def run_even(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        m, memory = self.core.run(x, state)
        y, local = self.attention.run(self.norm(x + m), state, self.persistent[:0])
        return y, {**memory, **local}

    def recall(self, x: Tensor, state: State) -> Tensor:
        """M(q) of each token, alone beside the held window; no step is made."""
        wide = widened(state, x.shape[1])
        m = self.norm(x + self.asked(x, state).to(x.dtype)).transpose(0, 1)
        return self.attention.run(m, wide, self.persistent[:0])[0].transpose(0, 1)
