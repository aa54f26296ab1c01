"""Attention beside a neural memory: a window that slides, or segments; what each token may see is one bool matrix."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import pad

from workbench.checks import whole
from workbench.memory.layers._conv import ShortConv
from workbench.memory.layers._norm import rms_norm
from workbench.memory.layers.base import Slot, State, divides


def window_mask(tokens: int, held: int, window: int, persistent: int, device: Any = None) -> Tensor:
    """(T, N_p + window - 1 + T): persistent tokens always, then the ``window - 1`` slots before this call (the last
    ``held`` of them filled), then this call's tokens; each sees itself and the ``window - 1`` tokens before it."""
    own = torch.arange(tokens, device=device)
    place = torch.arange(-(window - 1), tokens, device=device)  # of each slot and token, counted from this call's start
    gap = own[:, None] - place
    seen = (gap >= 0) & (gap < window) & (place >= -held)
    return torch.cat([seen.new_ones(tokens, persistent), seen], 1)


def segment_mask(tokens: int, filled: int, persistent: int, device: Any = None) -> Tensor:
    """(n, N_p + 2 (filled + n)): persistent tokens, what the old memory answered to each token of the segment, and the
    segment itself. A token sees the answers of tokens up to itself: those of later ones would tell what they are."""
    own = torch.arange(filled, filled + tokens, device=device)
    causal = own[:, None] >= torch.arange(filled + tokens, device=device)
    return torch.cat([causal.new_ones(tokens, persistent), causal, causal], 1)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """q (B, T, H, D) over k, v (B, N, H, D) where mask (T, N) is True; (B, T, H D)."""
    scores = torch.einsum("bthd,bnhd->bhtn", q, k) * q.shape[-1] ** -0.5
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    return rearrange(torch.einsum("bhtn,bnhd->bthd", weights, v), "b t h d -> b t (h d)")


class Attention(nn.Module):
    """Projections (with the short convolution, which tells neighbours apart: there are no positions), persistent keys
    and values made from N_p learned tokens, and the output projection."""

    def __init__(self, dim: int, heads: int, conv: int):
        super().__init__()
        self.heads, self.head_dim = whole("heads", heads), divides("heads", heads, dim)
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.short = ShortConv(3 * dim, conv) if conv else None
        self.to_out = nn.Linear(dim, dim, bias=False)

    def layout(self, batch: int) -> dict[str, Slot]:
        return {} if self.short is None else {"conv_attention": Slot(self.short.shape(batch))}

    def split(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = rearrange(mixed, "b t (p h d) -> p b t h d", p=3, h=self.heads).unbind(0)
        return q, k, v

    def project(self, x: Tensor, state: State) -> tuple[tuple[Tensor, Tensor, Tensor], State]:
        """q, k, v (B, T, H, D) and the convolution's new state."""
        mixed = self.to_qkv(x)
        if self.short is None:
            return self.split(mixed), {}
        mixed, conv = self.short(mixed, state["conv_attention"])
        return self.split(mixed), {"conv_attention": conv}

    def plain(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of tokens that have no neighbours: persistent ones, answers of the memory."""
        return self.split(self.to_qkv(x))[1:]


class WindowAttention(Attention):
    """Each token sees ``window`` tokens, itself included, and the persistent ones. State: the last ``window - 1``
    keys and values, and how many of them are filled."""

    def __init__(self, dim: int, heads: int, conv: int, window: int):
        super().__init__(dim, heads, conv)
        self.window = whole("window", window)

    def layout(self, batch: int) -> dict[str, Slot]:
        shape = (batch, self.window - 1, self.heads, self.head_dim)
        held = Slot((), most=self.window - 1)
        return {**super().layout(batch), "keys": Slot(shape), "values": Slot(shape), "held": held}

    def start(self, batch: int, device: Any, dtype: torch.dtype) -> State:
        zeros = {n: torch.zeros(s.shape, device=device, dtype=dtype) for n, s in self.layout(batch).items() if s.shape}
        return {**zeros, "held": 0}

    def run(self, x: Tensor, state: State, persistent: Tensor) -> tuple[Tensor, State]:
        """x (B, T, dim), persistent (N_p, dim): y (B, T, dim). A window at a time, so that memory is linear in T."""
        (q, k, v), after = self.project(x, state)
        fixed = [part.expand(len(x), *part.shape[1:]) for part in self.plain(persistent[None])]
        old = [state["keys"].to(x.dtype), state["values"].to(x.dtype)]
        held, reads = state["held"], []
        for at in range(0, x.shape[1], self.window):
            now = [part[:, at : at + self.window] for part in (q, k, v)]
            n = now[0].shape[1]
            mask = window_mask(n, held, self.window, persistent.shape[0], x.device)
            known = [torch.cat([o, new], 1) for o, new in zip(old, now[1:])]
            keys, values = (torch.cat([f, o], 1) for f, o in zip(fixed, known))
            reads.append(attend(now[0], keys, values, mask))
            old = [part[:, n:] for part in known]
            held = min(held + n, self.window - 1)
        kept = {name: part.to(state[name].dtype) for name, part in zip(("keys", "values"), old)}
        return self.to_out(torch.cat(reads, 1)), {**after, **kept, "held": held}


class SegmentAttention(Attention):
    """Full causal attention inside segments of ``segment`` tokens over [persistent, answers of the memory, segment]."""

    NAMES = ("answer_keys", "answer_values", "keys", "values")

    def __init__(self, dim: int, heads: int, conv: int, segment: int):
        super().__init__(dim, heads, conv)
        self.segment = whole("segment", segment)

    def layout(self, batch: int) -> dict[str, Slot]:
        shape = (batch, self.segment, self.heads, self.head_dim)
        return {**super().layout(batch), **{name: Slot(shape) for name in self.NAMES}}

    def start(self, batch: int, device: Any, dtype: torch.dtype) -> State:
        return {n: torch.zeros(s.shape, device=device, dtype=dtype) for n, s in self.layout(batch).items()}

    def run(self, x: Tensor, answers: Tensor, state: State, filled: int, persistent: Tensor) -> tuple[Tensor, State]:
        """x, answers (B, n, dim) of one segment that already holds ``filled`` tokens: y (B, n, dim)."""
        (q, k, v), after = self.project(x, state)
        new = [*self.plain(answers), k, v]
        known = [torch.cat([state[name][:, :filled].to(x.dtype), part], 1) for name, part in zip(self.NAMES, new)]
        fixed = [part.expand(len(x), *part.shape[1:]) for part in self.plain(persistent[None])]
        mask = segment_mask(x.shape[1], filled, persistent.shape[0], x.device)
        keys, values = (torch.cat([fixed[i], known[i], known[i + 2]], 1) for i in (0, 1))
        spare = self.segment - known[0].shape[1]
        kept = {n: pad(part, (0, 0, 0, 0, 0, spare)).to(state[n].dtype) for n, part in zip(self.NAMES, known)}
        return self.to_out(attend(q, keys, values, mask)), {**after, **kept}


class Joined(nn.Module):
    """The paper's two branches put together: each normalised with a learned weight, then RMSNorm(y) sigmoid(RMSNorm(m))
    ("product") or their sum ("sum"); the non-linearity is not published."""

    def __init__(self, dim: int, gate: str):
        super().__init__()
        self.gate = gate
        self.of_attention, self.of_memory = rms_norm(dim), rms_norm(dim)

    def forward(self, y: Tensor, m: Tensor) -> Tensor:
        y, m = self.of_attention(y), self.of_memory(m)
        return y * torch.sigmoid(m) if self.gate == "product" else y + m
