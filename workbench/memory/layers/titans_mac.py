"""Titans, memory as context (MAC): attention over a segment and over what the memory answers to it."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import normalize

from workbench.checks import whole
from workbench.errors import BadInput
from workbench.memory.base import MEMORIES
from workbench.memory.layers._conv import ShortConv
from workbench.memory.layers._norm import rms_norm
from workbench.memory.layers._titans_attention import Joined, SegmentAttention, segment_mask
from workbench.memory.layers._titans_base import TitansLayer
from workbench.memory.layers.base import Slot, State, widened
from workbench.memory.layers.titans_mag import checked_gate


@MEMORIES.register("titans-mac")
class TitansMAC(TitansLayer):
    """For each segment S: h = M_{t-1}(S W_Q), y = S + Attn([P, h, S]), M_t = M_{t-1} written with y, o = y (x) M_t(y).

    arXiv 2501.00663, equations 21 to 25, with the residual of an attention layer in y, which is normalised before it is
    written. Two things are made causal that the equations leave open, because otherwise a token would be told of later
    ones: a token sees the answers h of tokens up to itself only, and o reads the memory right after the token's own
    step, not after the whole segment's. Of y only the segment's rows are written; the persistent tokens themselves
    begin the memory, as in the other Titans.

    Args:
        dim, heads, persistent and the memory's own: see ``Titans``. heads are also the attention's.
        segment: C, tokens of a segment.
        gate: how y and the memory's second answer join, "product" or "sum" (see ``TitansMAG``).
    """

    slug = "titans-mac"
    compared: ClassVar[tuple[dict[str, Any], ...]] = ({"heads": 2, "conv": 0, "chunk": 8, "segment": 8},)
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"heads": 2, "chunk": 4, "segment": 3, "persistent": 2},
        {"heads": 1, "chunk": 2, "depth": 1, "segment": 4, "persistent": 0, "gate": "sum", "conv": 0},
        {"heads": 2, "chunk": 3, "segment": 5, "persistent": 1, "gates_per": "chunk"},
    )

    def __init__(
        self, dim: int, heads: int = 4, *, segment: int = 64, persistent: int = 4, gate: str = "product", **memory: Any
    ):
        super().__init__(dim, heads, persistent, memory)
        self.attention = SegmentAttention(dim, heads, self.core.conv, segment)
        self.segment = self.attention.segment
        self.gate, self.join = checked_gate(gate), Joined(dim, gate)
        self.to_query = nn.Linear(dim, dim, bias=False)
        self.short = ShortConv(dim, self.core.conv) if self.core.conv else None
        self.norm, self.to_out = rms_norm(dim), nn.Linear(dim, dim, bias=False)

    # ------------------------------------------------------------------ the state
    def layout(self, batch: int) -> dict[str, Slot]:
        """``old0``, ...: the weights that the segment began with; ``place``: tokens of the segment so far."""
        memory = self.core.layout(batch)
        old = {f"old{i}": memory[f"weights{i}"] for i in range(self.core.depth)}
        asked = {} if self.short is None else {"conv_query": Slot(self.short.shape(batch))}
        return {**memory, **old, **asked, **self.attention.layout(batch), "place": Slot((), most=self.segment - 1)}

    def start(self, batch: int, *, device: Any = None, dtype: torch.dtype | None = None) -> State:
        place, own = device or self.device, dtype or self.state_dtype
        state = {**self.begun(batch, device, dtype), **self.attention.start(batch, place, own), "place": 0}
        if self.short is not None:
            state["conv_query"] = torch.zeros(self.short.shape(batch), device=place, dtype=own)
        return {**state, **self._old(state)}

    def _old(self, state: State) -> State:
        return {f"old{i}": w for i, w in enumerate(self.core.weights(state))}

    # ------------------------------------------------------------------ the layer
    def run_even(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        parts, at = [], 0
        while at < x.shape[1]:
            n = min(self.segment - state["place"], x.shape[1] - at)
            y, state = self._part(x[:, at : at + n], state)
            parts.append(y)
            at += n
        return torch.cat(parts, 1), state

    def _part(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Tokens of one segment."""
        y, after = self._attended(x, state)
        m, memory = self.core.run(self.norm(y), state)
        state = {**state, **after, **memory, "place": state["place"] + x.shape[1]}
        if state["place"] == self.segment:
            state = {**state, **self._old(state), "place": 0}
        return self.to_out(self.join(y, m)), state

    def _attended(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        queries, conv = self.to_query(x), {}
        if self.short is not None:
            queries, conv["conv_query"] = self.short(queries, state["conv_query"])
        q = rearrange(queries.to(state["old0"].dtype), "b t (h d) -> b t h d", h=self.heads)
        q = normalize(q, dim=-1) if self.core.unit_keys else q
        old = {f"weights{i}": state[f"old{i}"] for i in range(self.core.depth)}
        answers = self.core.ask(q, old).to(x.dtype)
        y, after = self.attention.run(x, answers, state, state["place"], self.persistent)
        return x + y, {**after, **conv}

    def recall(self, x: Tensor, state: State) -> Tensor:
        """Each token alone as the segment's next one, with the memory as it is; no step is made."""
        wide = widened(state, x.shape[1])
        y, _ = self._attended(x.transpose(0, 1), wide)
        q = self.core.project(self.norm(y), wide.get("conv"))[0]
        return self.to_out(self.join(y, self.core.ask(q, wide).to(x.dtype))).transpose(0, 1)

    def mask(self, tokens: int) -> Tensor:
        """Who sees what in one segment of ``tokens`` (bool): persistent columns, answers of the memory, tokens."""
        if whole("tokens", tokens) > self.segment:
            raise BadInput(
                f"tokens must be at most segment={self.segment}, got {tokens}: no token sees another segment"
            )
        return segment_mask(tokens, 0, self.persistent_tokens)
