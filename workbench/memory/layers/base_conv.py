"""BaseConv: a gated short convolution, the cheap local half of Based and of Just read twice."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from workbench.checks import whole
from workbench.errors import BadInput
from workbench.memory.base import MEMORIES
from workbench.memory.layers._conv import ShortConv
from workbench.memory.layers.base import MemoryLayer, Slot, State


class _PlainConv(ShortConv):
    """The sum of shifted products as it is; ``centred`` sees as many tokens after a token as before it."""

    def _mix(self, known: Tensor) -> Tensor:
        length = known.shape[1] - self.size + 1
        return sum((self.weight[i] * known[:, i : i + length] for i in range(self.size)), known.new_zeros(()))

    def centred(self, x: Tensor, keep: Tensor | None) -> Tensor:
        seen = x if keep is None else x * keep[..., None]
        return self._mix(pad(seen, (0, 0, self.size // 2, self.size // 2)))


@MEMORIES.register("base-conv")
class BaseConv(MemoryLayer):
    """y = (conv(x W_1 + b_1) * (x W_2 + b_2)) W_3 + b_3: each channel sees the last ``kernel`` tokens, and a gate.

    Arora et al. 2024 (Based, arXiv 2402.18668; in Just read twice, 2407.05483, between the attention layers). On its
    own it cannot recall: its state is the last ``kernel - 1`` tokens.

    Args:
        dim: width of the tokens.
        kernel: tokens that a channel sees (3 in the paper).
        expand: width between W_1 and W_3 over ``dim`` (4 in the paper's language models, 1 in its synthetic ones).
        causal: False centres the window, for the non-causal variant; such a layer cannot stream.

    >>> import torch
    >>> y, state = BaseConv(8)(torch.randn(1, 5, 8))
    >>> tuple(state["conv"].shape)
    (1, 2, 8)
    """

    slug = "base-conv"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"kernel": 4, "expand": 2})

    def __init__(self, dim: int, *, kernel: int = 3, expand: int = 1, causal: bool = True):
        super().__init__(dim)
        self.kernel, self.expand, self.causal = whole("kernel", kernel), whole("expand", expand), bool(causal)
        if not causal and kernel % 2 == 0:
            raise BadInput(f"kernel={kernel} has no middle; a centred window (causal=False) needs an odd one")
        self.to_conv = nn.Linear(dim, expand * dim)
        self.to_gate = nn.Linear(dim, expand * dim)
        self.conv = _PlainConv(expand * dim, kernel)
        self.to_out = nn.Linear(expand * dim, dim)

    def layout(self, batch: int) -> dict[str, Slot]:
        return {"conv": Slot(self.conv.shape(batch))} if self.causal else {"seen": Slot(())}

    def start(self, batch: int, *, device: Any = None, dtype: torch.dtype | None = None) -> State:
        return super().start(batch, device=device, dtype=dtype) if self.causal else {"seen": 0}

    def run(self, x: Tensor, state: State, keep: Tensor | None) -> tuple[Tensor, State]:
        u, gate = self.to_conv(x), self.to_gate(x)
        if self.causal:
            mixed, after = self.conv(u, state["conv"], keep)
            return self.to_out(mixed * gate), {"conv": after}
        if state["seen"]:
            raise BadInput("a centred window (causal=False) needs the whole stream at once; give it with state=None")
        return self.to_out(self.conv.centred(u, keep) * gate), {"seen": x.shape[1]}
