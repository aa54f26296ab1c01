"""Titans' neural memory (LMM): the state is the weights of a small network, trained while it reads."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from workbench.memory.base import MEMORIES
from workbench.memory.layers._linear import open_gate
from workbench.memory.layers._norm import rms_norm
from workbench.memory.layers._titans_base import TitansLayer
from workbench.memory.layers.base import Slot, State


@MEMORIES.register("titans")
class Titans(TitansLayer):
    """The long-term memory module alone (Behrouz et al. 2024, arXiv 2501.00663, sections 3.1, 3.2 and 4.4).

    Every token makes one gradient step on ||M(k_t) - v_t||^2 (equation 12), with momentum and forgetting (13, 14),

        S_t = eta_t S_{t-1} - theta_t grad l(M_{t-1}; x_t),   M_t = (1 - alpha_t) M_{t-1} + S_t,   y_t = M_t(q_t),

    and the outer loop learns the projections, the gates and M_0 through these steps. Gradients of one chunk are taken
    at its first weights (16 to 18). Not published, so our choice: sizes, the form of the gates (theta = theta_max
    sigmoid, eta and alpha sigmoid, one of each per head), the convolution's width, the number of persistent tokens.

    Args:
        dim: width of the tokens. heads: memories, each with dim / heads of the key, value and query.
        depth: L_M, weight matrices of a memory; GELU between them. expansion: hidden width over head width.
        chunk: b, tokens whose gradients share their weights; 1 is exact online descent.
        conv: tokens that the convolution before q, k and v sees; 0 leaves it out.
        persistent: N_p, learned tokens that begin every stream (19); the empty memory has read them.
        theta_max: largest step. With b = 32 and unit keys, steps above about 1 / b for every token diverge.
        momentum, decay: False holds eta, alpha at 0.
        decay_to: what forgetting leads to, "zero" (the paper) or "init", M_0.
        read: "post" M_t(q_t), "pre" M_{t-1}(q_t), "prev_chunk" the weights of the chunk's start.
        objective: "l2", or "inner product", whose step is Hebbian (linear attention; depth 1, no momentum, no error
            that could be clipped).
        unit_keys: keys and queries of length one (4.4).
        clip: longest error that a step is taken for (Huber's loss instead of the square): a memory whose steps are too
            large for its chunk then swings, but does not grow without bound. None is the paper's loss.
        gates_per: "token", theta, eta and alpha of every token (the paper's models), or "chunk", one of each a chunk,
            made from the mean x of the chunk before (end of 3.2): the mean of its own tokens would tell a token of
            later ones. A stream's first chunk, which persistent tokens begin, has the learned biases alone. It saves
            next to nothing here, since the chunk form is made of products that do not get smaller.
        impl: of the memory, see ``workbench_kernels.linear_memory.neural_memory``: "auto", "chunked" or "triton".

    With ``depth=1, momentum=False, decay=False, chunk=1`` it is DeltaNet (beta = 2 theta); with chunk > 1 it is TTT.

    >>> import torch
    >>> layer = Titans(8, heads=2, chunk=4)
    >>> y, state = layer(torch.randn(1, 5, 8))
    >>> tuple(y.shape), tuple(state["weights0"].shape)
    ((1, 5, 8), (1, 2, 4, 16))
    """

    slug = "titans"
    compared: ClassVar[tuple[dict[str, Any], ...]] = (
        {"heads": 2, "conv": 0, "chunk": 8},
        {"heads": 2, "conv": 0, "chunk": 8, "depth": 1},
    )
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"heads": 2, "chunk": 4, "persistent": 2},
        {"heads": 2, "chunk": 1, "depth": 1, "persistent": 0, "conv": 0},
        {"heads": 1, "chunk": 3, "depth": 3, "expansion": 1, "read": "pre", "decay_to": "init", "persistent": 1},
        {"heads": 2, "chunk": 4, "read": "prev_chunk", "momentum": False, "clip": 0.5},
        {"heads": 2, "depth": 1, "objective": "inner product", "momentum": False},
        {"heads": 2, "chunk": 4, "persistent": 2, "gates_per": "chunk"},
    )

    def __init__(self, dim: int, heads: int = 4, *, persistent: int = 4, **memory: Any):
        super().__init__(dim, heads, persistent, memory)
        self.norm = rms_norm(dim // heads)
        self.to_gate, self.to_out = open_gate(dim, dim), nn.Linear(dim, dim, bias=False)

    def layout(self, batch: int) -> dict[str, Slot]:
        return self.core.layout(batch)

    def start(self, batch: int, *, device: Any = None, dtype: torch.dtype | None = None) -> State:
        return self.begun(batch, device, dtype)

    def run_even(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, after = self.core.run(x, state)
        return self._out(x, y), after

    def _out(self, x: Tensor, y: Tensor) -> Tensor:
        normed = self.norm(y.unflatten(-1, (self.heads, -1))).flatten(-2)
        return self.to_out(normed * silu(self.to_gate(x)))

    def recall(self, x: Tensor, state: State) -> Tensor:
        """M(q) for each token alone, without its step."""
        return self._out(x, self.asked(x, state).to(x.dtype))
