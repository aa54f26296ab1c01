"""Mixture-of-Memories: several matrix memories, of which a router gives each token a few."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from workbench.checks import number, whole
from workbench.errors import BadInput
from workbench.memory.base import MEMORIES
from workbench.memory.layers._conv import ShortConv
from workbench.memory.layers._linear import open_gate
from workbench.memory.layers._mom_forms import Part, masked, packed, projected
from workbench.memory.layers._mom_look import counted, table
from workbench.memory.layers._mom_router import Routing, balance_loss, route, spread
from workbench.memory.layers._mom_rules import RULES, Gates, xavier
from workbench.memory.layers._norm import rms_norm
from workbench.memory.layers.base import AUX, MemoryLayer, Slot, State, divides, widened

if TYPE_CHECKING:
    import pandas as pd

FORMS = ("masked", "packed")
IMPLEMENTATIONS = ("auto", "triton", "chunked", "reference")
SCOPES = ("subsequence", "sequence")


@MEMORIES.register("mom")
class MoM(MemoryLayer):
    """o_t = q_t sum_m w_t^m M_t^m (+ q_t M_t^shared); only the ``top_k`` chosen memories are written.

    Du et al. 2025 (arXiv 2502.13685): p_t = softmax(x_t W_g), w_t the ``top_k`` largest of p_t over their sum; queries
    are shared, keys, values and gates are each memory's own. The read is normalised per head and gated.

    Args:
        dim: width of the tokens. heads: matrices in each memory.
        rule: how a memory is written: "linear-attention", "retnet" (its decay alone, without rotary positions), "gla",
            "delta-net" or "gated-delta-net".
        memories: N, the routed memories. top_k: k of them take a token.
        shared: one more memory that takes every token; its read has weight 1.
        renormalize: divide the k weights by their sum. With k = 1 the router then learns from ``aux_scale`` alone.
        single_kv_proj: the routed memories share one projection to keys, values and gates.
        key_dim, value_dim: rows and columns of one matrix; default ``dim / heads``.
        conv: tokens that the convolution before q, k and v sees (one kernel for all memories); 0 leaves it out.
        conv_scope: its neighbours are the tokens before in the same memory ("subsequence", as in the paper's code) or
            in the text ("sequence").
        aux_scale: weight of the load balancing loss N sum_m f_m P_m, here of each layer by itself.
        form: "masked" runs every memory over all tokens and blanks what is not its own; "packed" sorts the tokens by
            memory and runs each over its own (offsets depend on the data: not under vmap or in a CUDA graph).
        chunk: tokens that the fast form takes at once; None lets the kernel choose.
        impl: of the recurrence, see ``workbench_kernels.linear_memory.linear_recurrence``.

    >>> import torch
    >>> layer = MoM(8, heads=2, memories=4, top_k=2)
    >>> y, state = layer(torch.randn(1, 5, 8))
    >>> tuple(y.shape), tuple(state["memory"].shape)  # four routed and the shared one
    ((1, 5, 8), (1, 5, 2, 4, 4))
    """

    slug = "mom"
    compared: ClassVar[tuple[dict[str, Any], ...]] = ({"heads": 2, "conv": 0},)
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"heads": 2},
        {"heads": 2, "memories": 3, "top_k": 1, "shared": False, "renormalize": False, "conv_scope": "sequence"},
        {"heads": 1, "rule": "gla", "single_kv_proj": True, "form": "packed"},
        {"heads": 2, "rule": "linear-attention", "conv": 0, "memories": 2, "top_k": 2},
    )

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        *,
        rule: str = "gated-delta-net",
        memories: int = 4,
        top_k: int = 2,
        shared: bool = True,
        renormalize: bool = True,
        single_kv_proj: bool = False,
        key_dim: int | None = None,
        value_dim: int | None = None,
        conv: int = 4,
        conv_scope: str = "subsequence",
        aux_scale: float = 1e-2,
        form: str = "masked",
        chunk: int | None = None,
        impl: str = "auto",
    ):
        super().__init__(dim)
        self.rule, self.conv_scope = _one_of("rule", rule, RULES), _one_of("conv_scope", conv_scope, SCOPES)
        self.impl = _one_of("impl", impl, IMPLEMENTATIONS)
        self.form, self.chunk = _one_of("form", form, FORMS), None if chunk is None else whole("chunk", chunk)
        self.static = form != "packed"
        self.memories, self.top_k = whole("memories", memories), whole("top_k", top_k)
        if top_k > memories:
            raise BadInput(f"top_k={top_k} is more than memories={memories}; a token can go to each memory once")
        self.shared, self.renormalize, self.single_kv_proj = bool(shared), bool(renormalize), bool(single_kv_proj)
        self.aux_scale = number("aux_scale", aux_scale, 0)
        self.heads, self.conv = whole("heads", heads), whole("conv", conv, 0)
        self.key_dim = whole("key_dim", divides("heads", heads, dim) if key_dim is None else key_dim)
        self.value_dim = whole("value_dim", divides("heads", heads, dim) if value_dim is None else value_dim)
        self._weights()

    def _weights(self) -> None:
        keys, values = self.heads * self.key_dim, self.heads * self.value_dim
        own = (1 if self.single_kv_proj else self.memories) + int(self.shared)
        self.router = nn.Parameter(xavier(self.dim, self.memories))
        self.to_q = nn.Parameter(xavier(self.dim, keys))
        self.to_k = nn.Parameter(xavier(own, self.dim, keys))
        self.to_v = nn.Parameter(xavier(own, self.dim, values))
        self.gates = Gates(self.rule, self.dim, self.heads, self.key_dim, own, self.groups)
        self.short = ShortConv(2 * keys + values, self.conv) if self.conv else None
        self.to_gate = open_gate(self.dim, values)
        self.norm = rms_norm(self.value_dim)
        self.to_out = nn.Parameter(xavier(values, self.dim))

    @property
    def groups(self) -> int:
        """Memories with the shared one."""
        return self.memories + int(self.shared)

    def layout(self, batch: int) -> dict[str, Slot]:
        """``memory``; ``ledger``: tokens, sum of weights, sum of decays, last token (from 1) of each; ``time``."""
        slots = {
            "memory": Slot((batch, self.groups, self.heads, self.key_dim, self.value_dim)),
            "ledger": Slot((batch, self.groups, 4)),
            "time": Slot((batch,), torch.int64),
        }
        if self.short is not None:
            slots["conv"] = Slot((batch, self.groups, self.conv - 1, self.short.channels))
        return slots

    # ------------------------------------------------------------------ the layer
    def route(self, x: Tensor, keep: Tensor | None = None) -> Routing:
        """Where each token of x (B, T, dim) goes; see ``Routing``."""
        return route(x @ self.router, self.top_k, renormalize=self.renormalize, keep=keep)

    def run(self, x: Tensor, state: State, keep: Tensor | None) -> tuple[Tensor, State]:
        routing = self.route(x, keep)
        chosen, w = self._with_shared(routing, keep)
        done = [
            (packed if self.form == "packed" and stop <= self.memories else masked)(self, x, part, keep)
            for stop, part in self._parts(chosen, w, state)
        ]
        y, memory = sum(one.y for one in done), torch.cat([one.memory for one in done], 1)
        after = counted(state, chosen, w, torch.cat([one.decay for one in done], 1), keep)
        after["memory"] = memory
        if self.short is not None:
            after["conv"] = torch.cat([one.conv for one in done if one.conv is not None], 1)
        return self._out(x, torch.as_tensor(y)), after | self._aux(routing, keep)

    def _with_shared(self, routing: Routing, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        """Who writes and the weight of the reads, (B, T, G): the shared memory takes all, with weight 1."""
        if not self.shared:
            return routing.chosen, routing.w
        every = torch.ones_like(routing.chosen[..., :1]) if keep is None else keep[..., None]
        return torch.cat([routing.chosen, every], -1), torch.cat([routing.w, every.to(routing.w.dtype)], -1)

    def _parts(self, chosen: Tensor, w: Tensor, state: State) -> list[tuple[int, Part]]:
        """All memories in one part, or the shared one apart from those that are packed; with the end of each."""
        ends = [self.memories, self.groups] if self.form == "packed" and self.shared else [self.groups]
        parts, start = [], 0
        for end in ends:
            parts.append((end, self._part(chosen, w, state, slice(start, end))))
            start = end
        return parts

    def _part(self, chosen: Tensor, w: Tensor, state: State, cut: slice) -> Part:
        conv = state["conv"][:, cut] if self.short is not None else None
        return Part(chosen[..., cut], w[..., cut], cut, state["memory"][:, cut], conv)

    def _out(self, x: Tensor, y: Tensor) -> Tensor:
        y = self.norm(y.to(x.dtype)).flatten(2)
        return (y * silu(self.to_gate(x))) @ self.to_out

    def _aux(self, routing: Routing, keep: Tensor | None) -> State:
        share, probability = spread(routing, keep)
        loss = self.aux_scale * balance_loss(share, probability)
        seen = {"loss": loss, "share": share, "probability": probability, "w": routing.w}
        return {AUX + name: value for name, value in seen.items()}

    # ------------------------------------------------------------------ looking
    def recall(self, x: Tensor, state: State) -> Tensor:
        """q sum_m w^m M^m (+ q M^shared) of each token alone: nothing is written and nothing fades."""
        alone, wide = x.transpose(0, 1), widened(state, x.shape[1])
        _, w = self._with_shared(self.route(alone), None)
        part = self._part(torch.ones_like(w, dtype=torch.bool), w, wide, slice(0, self.groups))
        q, memory = projected(self, alone, part, None)[0][0], wide["memory"]
        y = torch.einsum("btg,btghk,bghkv->bthv", w.to(memory.dtype), q.to(memory.dtype), memory)
        return self._out(alone, y * self.key_dim**-0.5).transpose(0, 1)

    def scalars(self, x: Tensor, state: State) -> dict[str, Tensor]:
        """The memory with the largest weight, that weight, and how undecided the router was (nats)."""
        routing = self.route(x)
        entropy = torch.special.entr(routing.p).sum(-1)
        return {"memory": routing.p.argmax(-1)[0], "weight": routing.w.amax(-1)[0], "router_entropy": entropy[0]}

    def project(
        self, x: Tensor, keep: Tensor | None = None, *, last_to_all: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What each memory asks, is keyed by and would store, from the empty memory: (B, T, G, H, d) each.

        Of a token that a memory was not given, its entries have no meaning with ``conv_scope`` "subsequence".
        ``last_to_all`` gives the last token to every memory, which is how one asks a memory that it was not sent to.
        """
        chosen, w = self._with_shared(self.route(x, keep), keep)
        if last_to_all:
            chosen = torch.cat([chosen[:, :-1], torch.ones_like(chosen[:, -1:])], 1)
        return projected(self, x, self._part(chosen, w, self.start(x.shape[0]), slice(0, self.groups)), keep)[0]

    def describe(self, state: State, row: int = 0) -> pd.DataFrame:
        """One line a memory and head: tokens written, mean weight and decay, norm, effective rank, last token."""
        return table(state, row, self.shared)


def _one_of(name: str, value: Any, legal: Any) -> str:
    if not isinstance(value, str) or value not in legal:
        raise BadInput(f"{name} must be one of {', '.join(legal)}, got {value!r}")
    return str(value)
