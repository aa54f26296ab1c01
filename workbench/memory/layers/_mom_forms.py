"""Two ways to the same reads: all memories over all tokens and blanked, or each memory over its own tokens.

Both take a ``Part``: some of the memories with their weights and state, so that the shared one can be run by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import normalize as unit

from workbench.memory.layers._mom_rules import applied, per_group

if TYPE_CHECKING:
    from workbench.memory.layers.mom import MoM


@dataclass(frozen=True)
class Part:
    """G memories: who writes and the weight of the reads (B, T, G), ``own`` weights, memory (B, G, H, k, v), conv."""

    chosen: Tensor
    w: Tensor
    own: slice
    memory: Tensor
    conv: Tensor | None


@dataclass(frozen=True)
class Done:
    """``y`` (B, T, H, v) weighted and summed over G, the new memory and conv, ``decay`` (B, G): sum over its tokens."""

    y: Tensor
    memory: Tensor
    conv: Tensor | None
    decay: Tensor


# ------------------------------------------------------------------ shared
def _features(layer: MoM, x: Tensor, own: slice) -> Tensor:
    """[q, k, v] before the convolution, (B, T, G, channels); x as for ``applied``."""
    k, v = applied(x, per_group(layer.to_k, layer.groups)[own]), applied(x, per_group(layer.to_v, layer.groups)[own])
    q = x @ layer.to_q
    q = q if x.dim() == 4 else q[:, :, None].expand(-1, -1, k.shape[2], -1)
    return torch.cat([q, k, v], -1)


def _convolved(layer: MoM, rows: Tensor, tail: Tensor, member: Tensor | None) -> tuple[Tensor, Tensor]:
    """Each memory's convolution over the tokens that are ``member`` (B, T, G); None: over all."""
    assert layer.short is not None
    b, g = tail.shape[:2]
    mask = None if member is None else rearrange(member, "b t g -> (b g) t")
    y, after = layer.short(rearrange(rows, "b t g c -> (b g) t c"), tail.flatten(0, 1), mask)
    return rearrange(y, "(b g) t c -> b t g c", b=b), after.unflatten(0, (b, g))


def _split(layer: MoM, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k (..., H, d_k) and v (..., H, d_v), of length one where the rule corrects."""
    keys = layer.heads * layer.key_dim
    q, k, v = (
        part.unflatten(-1, (layer.heads, -1)) for part in rows.split([keys, keys, rows.shape[-1] - 2 * keys], -1)
    )
    return (unit(q, dim=-1), unit(k, dim=-1), v) if layer.gates.rule.delta else (q, k, v)


def _recur(
    layer: MoM,
    qkv: tuple[Tensor, Tensor, Tensor],
    log_decay: Tensor | None,
    beta: Tensor | None,
    memory: Tensor,
    offsets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    from workbench_kernels.linear_memory import linear_recurrence

    q, k, v = (part.to(memory.dtype).contiguous() for part in qkv)
    return linear_recurrence(
        q, k, v, log_decay=log_decay, beta=beta, scale=layer.key_dim**-0.5, state=memory,
        offsets=offsets, chunk=layer.chunk, check_values=False, impl=layer.impl,
    )  # fmt: skip


def _mean_decay(log_decay: Tensor | None, like: Tensor) -> Tensor:
    """Mean over heads and channels, in the shape of ``like``."""
    return torch.ones_like(like) if log_decay is None else log_decay.exp().flatten(like.dim()).mean(-1).to(like.dtype)


# ------------------------------------------------------------------ masked
def masked(layer: MoM, x: Tensor, part: Part, keep: Tensor | None) -> Done:
    """beta = 0 (or v = 0) and no decay where a token is not the memory's own: it stays as it was, bit for bit."""
    (q, k, v), conv = projected(layer, x, part, keep)
    log_decay, beta = layer.gates(x, part.own)
    own = part.chosen[..., None]
    if beta is None:
        v = v * own[..., None]
    else:
        beta = (beta * own).flatten(2)
    if log_decay is not None:
        log_decay = log_decay * (own if log_decay.dim() == 4 else own[..., None])
    decay = (_mean_decay(log_decay, part.w) * part.chosen).sum(1)
    flat = (q.flatten(2, 3), k.flatten(2, 3), v.flatten(2, 3))
    gates = None if log_decay is None else log_decay.flatten(2, 3)
    y, memory = _recur(layer, flat, gates, beta, part.memory.flatten(1, 2))
    y = y.unflatten(2, (-1, layer.heads))
    y = (y * part.w[..., None, None].to(y.dtype)).sum(2)
    return Done(y, memory.unflatten(1, (-1, layer.heads)), conv, decay)


def projected(
    layer: MoM, x: Tensor, part: Part, keep: Tensor | None
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor | None]:
    """q, k, v of every memory for every token, (B, T, G, H, d), and the new tail of the convolution."""
    rows, conv = _features(layer, x, part.own), part.conv
    if conv is not None:
        rows, conv = _convolved(layer, rows, conv, _neighbourhood(layer, part, keep))
    return _split(layer, rows), conv


def _neighbourhood(layer: MoM, part: Part, keep: Tensor | None) -> Tensor | None:
    """Whose tokens the convolution runs over; None: over all, which needs no sorting."""
    if layer.conv_scope == "subsequence" and layer.top_k < layer.memories:
        return part.chosen
    return None if keep is None else keep[..., None].expand_as(part.chosen)


# ------------------------------------------------------------------ packed
def packed(layer: MoM, x: Tensor, part: Part, keep: Tensor | None) -> Done:
    """The tokens of each memory and row side by side, as documents of one long sequence; the others are not touched."""
    group, row, time = part.chosen.permute(2, 0, 1).nonzero(as_tuple=True)  # by memory, then row, in order of time
    counts = part.chosen.sum(1).T.flatten()  # g b: tokens of each document
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    if layer.conv and layer.conv_scope == "sequence":
        rows, conv = _convolved(layer, _features(layer, x, part.own), _tail(part), _neighbourhood(layer, part, keep))
        rows, (log_decay, beta) = rows[row, time, group], layer.gates(x, part.own)
        log_decay, beta = (None if gate is None else gate[row, time, group] for gate in (log_decay, beta))
    else:
        rows, log_decay, beta = _grouped(layer, x, part, (group, row, time))
        conv = part.conv
        if conv is not None:
            rows, conv = _over_documents(layer, rows, conv, counts)
    q, k, v = (piece[None] for piece in _split(layer, rows))
    gates = [None if gate is None else gate[None] for gate in (log_decay, beta)]
    memory = part.memory.transpose(0, 1).flatten(0, 1)
    y, memory = _recur(layer, (q, k, v), gates[0], gates[1], memory, offsets)
    w = part.w[row, time, group]
    total = y.new_zeros(*x.shape[:2], layer.heads, layer.value_dim)
    total = total.index_put((row, time), y[0] * w[:, None, None].to(y.dtype), accumulate=True)
    decay = part.w.new_zeros(part.w.shape[0], part.w.shape[2])
    decay = decay.index_put((row, group), _mean_decay(log_decay, w), accumulate=True)
    return Done(total, memory.unflatten(0, (part.w.shape[2], -1)).transpose(0, 1), conv, decay)


def _tail(part: Part) -> Tensor:
    assert part.conv is not None
    return part.conv


def _grouped(
    layer: MoM, x: Tensor, part: Part, where: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Projections of each memory for its own tokens only: one batched product over memories padded to the fullest."""
    group, row, time = where
    counts = part.chosen.sum((0, 1))
    first = torch.cat([counts.new_zeros(1), counts.cumsum(0)[:-1]])
    place = torch.arange(len(group), device=x.device) - first[group]
    full = x.new_zeros(1, int(counts.max()) if len(group) else 1, len(counts), x.shape[-1])
    full = full.index_put((torch.zeros_like(place), place, group), x[row, time])
    log_decay, beta = layer.gates(full, part.own)
    rows = _features(layer, full, part.own)[0, place, group]
    return rows, *(None if gate is None else gate[0, place, group] for gate in (log_decay, beta))


def _over_documents(layer: MoM, rows: Tensor, tail: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """The convolution of packed rows (P, channels), each document after its own tail (B, G, taps - 1, channels)."""
    assert layer.short is not None
    document = torch.repeat_interleave(torch.arange(len(counts), device=rows.device), counts)
    place = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[document]
    longest = max(int(counts.max()), 1)
    padded = rows.new_zeros(len(counts), longest, rows.shape[-1]).index_put((document, place), rows)
    keep = torch.arange(longest, device=rows.device) < counts[:, None]
    y, after = layer.short(padded, tail.transpose(0, 1).flatten(0, 1), keep)
    return y[document, place], after.unflatten(0, (tail.shape[1], -1)).transpose(0, 1)
