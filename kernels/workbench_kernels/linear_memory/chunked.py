"""Chunk by chunk in torch: what does not read the state is made for all chunks at once, then one short step a chunk.

Decays between two tokens of a chunk are taken for i >= j only, so no factor exceeds 1. The delta rule is in its WY
form: the writes of a chunk are T diag(beta) (v - (k exp(G)) state) with T = (I + L)^-1.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

#: Chunks that are made at once: what they need beside each other (a state each) stays bounded for rows of any length.
SIDE_BY_SIDE = 64


def _lower(size: int, diagonal: int, device: torch.device) -> Tensor:
    return torch.ones(size, size, dtype=torch.bool, device=device).tril(diagonal)


def _scores(x: Tensor, k: Tensor, total: Tensor | None, diagonal: int) -> Tensor:
    """Lower-triangular x_i diag(exp(G_i - G_j)) k_j, (..., C, C); ``diagonal`` -1 leaves i = j out."""
    seen = _lower(x.shape[-2], diagonal, x.device)
    if total is None:
        return (x @ k.mT).masked_fill(~seen, 0)
    if total.shape[-1] == 1:
        return (x @ k.mT) * (total - total.mT).masked_fill(~seen, -torch.inf).exp()
    return _channel_scores(x, k, total, diagonal)


def _channel_scores(x: Tensor, k: Tensor, total: Tensor, diagonal: int) -> Tensor:
    """A decay for each channel. Pairs are sorted by the block in which they meet: halves of 1, 2, 4, ... tokens.

    Split at the last token p of the first half, exp(G_i - G_p) and exp(G_p - G_j) are at most 1, so every level is one
    product of matrices and nothing overflows.
    """
    size = x.shape[-2]
    i = torch.arange(size, device=x.device)
    scores = torch.diag_embed((x * k).sum(-1)) if diagonal == 0 else None
    half = 1
    while half < size:
        first = i // (2 * half) * (2 * half)
        meeting = total[..., (first + half - 1).clamp(max=size - 1), :]
        ahead = x * (total - meeting).clamp(max=0).exp()
        behind = k * (meeting - total).clamp(max=0).exp()
        late = i - first >= half
        pairs = (first[:, None] == first[None, :]) & late[:, None] & ~late[None, :]
        level = (ahead @ behind.mT).masked_fill(~pairs, 0)
        scores = level if scores is None else scores + level
        half *= 2
    return torch.zeros_like(x @ k.mT) if scores is None else scores


def _inverse(lower: Tensor) -> Tensor:
    """(I + lower)^-1 of strictly lower matrices (..., C, C): blocks of 1, 2, 4, ... joined by products.

    It is block substitution, as stable as solving row after row, in 2 log2 C products for all chunks together: what a
    GPU is good at, also under ``torch.func.vmap``.
    """
    size = lower.shape[-1]
    i = torch.arange(size, device=lower.device)
    made = torch.eye(size, dtype=lower.dtype, device=lower.device).expand_as(lower)
    half = 1
    while half < size:
        block, late = i // (2 * half), i // half % 2 == 1
        joint = (block[:, None] == block[None, :]) & late[:, None] & ~late[None, :]
        corner = lower.masked_fill(~joint, 0)
        made = made - (corner if half == 1 else made @ corner @ made)
        half *= 2
    return made


def _solve(lower: Tensor, right: list[Tensor]) -> list[Tensor]:
    """(I + lower)^-1 x for every x."""
    if lower.device.type != "cpu":
        inverse = _inverse(lower)
        return [inverse @ x for x in right]
    unit = lower + torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device)
    both = torch.linalg.solve_triangular(unit, torch.cat(right, -1), upper=False, unitriangular=True)
    return list(both.split([x.shape[-1] for x in right], -1))


def _states(
    start: Tensor, decay: Tensor | None, keys: Tensor, written: Tensor, solved: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(state at every chunk's start, what the chunks wrote, final state); ``solved`` is W of the delta rule."""
    if solved is None and decay is None:  # nothing but sums
        sums = keys.mT @ written
        states = torch.cat([start[:, :, None], start[:, :, None] + sums.cumsum(2)], 2)
        return states[:, :, :-1], written, states[:, :, -1]
    states, writes, state = [], [], start
    parts = [None] * keys.shape[2]
    each = [parts if x is None else x.unbind(2) for x in (decay, keys, written, solved)]
    for gone, k, x, w in zip(*each, strict=True):
        states.append(state)
        x = x if w is None else x - w @ state
        writes.append(x)
        state = (state if gone is None else state * gone) + k.mT @ x
    return torch.stack(states, 2), torch.stack(writes, 2), state


def _whole(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, beta: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """N chunks of C tokens, (B, H, N, C, ...)."""
    total = None if log_decay is None else log_decay.cumsum(-2)
    grown = None if total is None else total.exp()
    decay = kept = solved = None
    keys, written = k, v
    if total is not None and grown is not None:
        last = total[..., -1:, :]
        decay, kept = last.exp().mT, (last - total).exp()
        keys = k * kept
    if beta is not None:
        rate = beta[..., None]
        right = [rate * v, rate * (k if grown is None else k * grown)]
        written, solved = _solve(rate * _scores(k, k, total, -1), right)
    states, written, final = _states(state, decay, keys, written, solved)
    read = (q if grown is None else q * grown) @ states + _scores(q, k, total, 0) @ written
    return read, final


def recurrence(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, beta: Tensor | None, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """At most ``chunk`` tokens a chunk; rows are filled up with tokens that write nothing and forget nothing."""
    length = q.shape[1]
    if not length:
        return v, state
    chunk = -(-length // -(-length // chunk))  # of one size, with little to fill up
    given = (q, k, v, log_decay, None if beta is None else beta[..., None])
    parts = [None if x is None else pad(x, (0, 0, 0, 0, 0, -length % chunk)).transpose(1, 2) for x in given]
    reads = []
    for first in range(0, length, chunk * SIDE_BY_SIDE):
        some = slice(first, first + chunk * SIDE_BY_SIDE)
        q, k, v, log_decay, rate = (None if x is None else x[:, :, some].unflatten(2, (-1, chunk)) for x in parts)  # type: ignore[assignment]
        read, state = _whole(q, k, v, log_decay, None if rate is None else rate[..., 0], state)
        reads.append(read.flatten(2, 3))
    return torch.cat(reads, 2)[:, :, :length].transpose(1, 2), state
