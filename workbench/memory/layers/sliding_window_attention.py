"""Softmax attention to the last tokens, or to all: the memory that keeps its tokens as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import pad

from workbench.checks import whole
from workbench.errors import BadInput
from workbench.memory.base import MEMORIES
from workbench.memory.layers._conv import order_of_kept, take
from workbench.memory.layers._rotary import rotate
from workbench.memory.layers.base import MemoryLayer, Slot, State, divides

if TYPE_CHECKING:
    import pandas as pd


@MEMORIES.register("sliding-window-attention")
class SlidingWindowAttention(MemoryLayer):
    """y_t = softmax(q_t k_j / sqrt(D)) v_j over the last ``window`` tokens j <= t, with rotary positions.

    The state holds the keys, before rotation, and values of the last ``window - 1`` tokens. With ``window=None`` it
    attends to everything and the state grows with the stream: the reference that fixed states are held against.

    Args:
        dim, heads: as in attention; dim / heads must be even.
        window: tokens seen, the own one included; None for all.
    """

    slug = "sliding-window-attention"
    compared: ClassVar[tuple[dict[str, Any], ...]] = ({"heads": 2, "window": 8}, {"heads": 2, "window": None})
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"heads": 2, "window": 4},
        {"heads": 1, "window": 1},
        {"heads": 2, "window": None},
    )

    def __init__(self, dim: int, heads: int = 4, *, window: int | None = 64):
        super().__init__(dim)
        self.heads, self.head_dim = whole("heads", heads), divides("heads", heads, dim)
        if self.head_dim % 2:
            raise BadInput(f"dim / heads must be even, because positions turn pairs of channels; got {self.head_dim}")
        self.window = None if window is None else whole("window", window)
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)

    def layout(self, batch: int) -> dict[str, Slot]:
        columns = -1 if self.window is None else self.window - 1
        kept = Slot((batch, columns, self.heads, self.head_dim), self.dtype)
        return {"keys": kept, "values": kept, "held": Slot((batch,), torch.int64)}

    def run(self, x: Tensor, state: State, keep: Tensor | None) -> tuple[Tensor, State]:
        q, known, valid, order = self._known(x, state, keep)
        y = _attend(q, *known, valid, self.window)[0]
        y = y if order is None else take(y, torch.argsort(order, dim=1))
        y = self.to_out(rearrange(y[:, y.shape[1] - x.shape[1] :], "b t h d -> b t (h d)"))
        stays = known[0].shape[1] if self.window is None else self.window - 1
        first = known[0].shape[1] - stays
        held = valid[:, first:].sum(1)
        return y, {"keys": known[0][:, first:], "values": known[1][:, first:], "held": held}

    def _known(
        self, x: Tensor, state: State, keep: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor, Tensor | None]:
        """Queries, keys and values with the state in front, which of these are tokens, and how they were re-ordered.

        Columns without a token always come first, so that neighbours are neighbours; queries are then as many as keys.
        """
        q, k, v = rearrange(self.to_qkv(x), "b t (n h d) -> n b t h d", n=3, h=self.heads)
        keys, values = torch.cat([state["keys"], k], 1), torch.cat([state["values"], v], 1)
        before = state["keys"].shape[1]
        slots = torch.arange(before, device=x.device)
        old = slots >= before - state["held"][:, None]
        new = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if keep is None else keep
        valid = torch.cat([old, new], 1)
        if keep is None:
            return q, (keys, values), valid, None
        order, seen = order_of_kept(valid), valid[..., None, None]
        keys, values = (torch.where(seen, part, torch.zeros_like(part)) for part in (keys, values))
        queries = torch.cat([torch.zeros_like(state["keys"]), q], 1)
        return take(queries, order), (take(keys, order), take(values, order)), take(valid, order), order

    def scalars(self, x: Tensor, state: State) -> dict[str, Tensor]:
        """Entropy of the attention in nats, mean over heads."""
        q, known, valid, _ = self._known(x, state, None)
        weights = _attend(q, *known, valid, self.window)[1]
        return {"attention_entropy": torch.special.entr(weights).sum(-1).mean(1)[0]}

    def describe(self, state: State, row: int = 0) -> pd.DataFrame:
        """Keys and values a head, of the tokens held."""
        n = int(state["held"][row])
        parts = {name: state[name][:, state[name].shape[1] - n :].transpose(1, 2) for name in ("keys", "values")}
        return super().describe(parts, row)


def _attend(q: Tensor, k: Tensor, v: Tensor, valid: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
    """The last q.shape[1] of k's columns ask all before them: y (B, T, H, D) and weights (B, H, T, keys of a block).

    More queries than a window holds go in blocks of ``window``, each with the ``window`` columns before it.
    """
    size, before, columns = q.shape[1], k.shape[1] - q.shape[1], torch.arange(k.shape[1], device=k.device)
    q, k = rotate(q, columns[before:]) * q.shape[-1] ** -0.5, rotate(k, columns)
    if window is None or size <= window:
        q, k, v, valid = (x[:, None] for x in (q, k, v, valid))
    else:
        (k, v, valid), before = (_pairs(x, window - before, -size % window, window) for x in (k, v, valid)), window
        q = pad(q, (0, 0, 0, 0, 0, -size % window)).unflatten(1, (-1, window))  # b n c h d
    keys, asking = torch.arange(k.shape[2], device=q.device), torch.arange(q.shape[2], device=q.device)[:, None]
    near = keys <= asking + before
    near = near if window is None else near & (keys > asking + before - window)
    scores = torch.einsum("bnchd,bnrhd->bnhcr", q, k)
    weights = scores.masked_fill(~(near & valid[:, :, None, None]), torch.finfo(scores.dtype).min).softmax(-1)
    y = torch.einsum("bnhcr,bnrhd->bnchd", weights, v).flatten(1, 2)[:, :size]
    return y, rearrange(weights, "b n h c r -> b h (n c) r")[:, :, :size]


def _pairs(x: Tensor, left: int, right: int, window: int) -> Tensor:
    """(B, S, ...) padded and cut into blocks, each with the one before it: (B, n, 2 window, ...)."""
    blocks = pad(x, (*[0] * (2 * x.dim() - 4), left, right)).unflatten(1, (-1, window))
    return torch.cat([blocks[:, :-1], blocks[:, 1:]], 2)
