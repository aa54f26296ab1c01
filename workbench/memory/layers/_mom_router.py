"""Which memories a token goes to, and how evenly tokens are spread (Mixture-of-Memories, arXiv 2502.13685, 3.2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Routing(NamedTuple):
    """One choice of ``top_k`` of N memories a token, all (B, T, N).

    ``p`` softmax probabilities, ``chosen`` bool, ``w`` the weights of the reads: 0 where not chosen.
    """

    p: Tensor
    chosen: Tensor
    w: Tensor


def route(logits: Tensor, top_k: int, *, renormalize: bool = True, keep: Tensor | None = None) -> Routing:
    """The ``top_k`` largest of softmax(logits); equal probabilities go to the lower number, always.

    With ``renormalize`` the weights of a token sum to 1; with ``top_k`` 1 they are then constant and the router learns
    nothing from the read. ``keep`` (B, T) bool: padding is not routed. No sort and no branch on data.

    Probabilities of half-precision logits are float32: rounded, many would be equal and go to the lower number.
    """
    p = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    n = p.shape[-1]
    number = torch.arange(n, device=p.device)
    before = (p[..., None, :] > p[..., :, None]) | ((p[..., None, :] == p[..., :, None]) & (number < number[:, None]))
    chosen = before.sum(-1) < top_k  # fewer than k memories come before this one
    w = p * chosen
    if renormalize:
        w = w / w.sum(-1, keepdim=True)
    if keep is not None:
        chosen, w = chosen & keep[..., None], w * keep[..., None]
    return Routing(p, chosen, w)


def spread(routing: Routing, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(f, P), each (N,): share of tokens sent to each memory, mean probability; padding is not counted."""
    p, chosen = routing.p.flatten(0, 1), routing.chosen.flatten(0, 1).to(routing.p.dtype)
    if keep is None:
        return chosen.mean(0), p.mean(0)
    kept = keep.flatten().to(p.dtype)[:, None]
    count = kept.sum().clamp_min(1)
    return (chosen * kept).sum(0) / count, (p * kept).sum(0) / count


def balance_loss(share: Tensor, probability: Tensor) -> Tensor:
    """N sum_m f_m P_m from (N,) each: k under perfect balance, N when the same k memories get everything."""
    return share.shape[-1] * (share * probability).sum(-1)
