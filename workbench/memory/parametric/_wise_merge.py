"""Merging of what several shards changed: Ties (Yadav et al. 2023), linear, slerp."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.errors import BadInput, UnknownName


@dataclass(frozen=True)
class Conflicts:
    """Entries after trimming: changed by ``one`` shard, by several that ``agree``, by several that ``differ``."""

    one: int
    agree: int
    differ: int


def trimmed(delta: Tensor, density: float) -> Tensor:
    """``delta`` with the largest ``density`` of its entries by magnitude, zeros elsewhere."""
    if density >= 1:
        return delta
    kept = max(1, int(density * delta.numel()))
    threshold = delta.abs().flatten().kthvalue(delta.numel() - kept + 1).values
    return torch.where(delta.abs() >= threshold, delta, torch.zeros_like(delta))


def ties(deltas: Sequence[Tensor], weights: Sequence[float], density: float = 0.53) -> Tensor:
    """Trim, elect the sign of the weighted sum (0 counts as +), take the weighted mean of those that agree."""
    rest, share = _weighted(deltas, weights, density)
    sign = torch.where((rest * share).sum(0) < 0, -1.0, 1.0).to(rest.dtype)
    agrees = (rest * sign > 0).to(rest.dtype)
    total = (share * agrees).sum(0)
    return (rest * share * agrees).sum(0) / torch.where(total > 0, total, torch.ones_like(total))


def _weighted(deltas: Sequence[Tensor], weights: Sequence[float], density: float) -> tuple[Tensor, Tensor]:
    rest = torch.stack([trimmed(delta, density) for delta in deltas])
    share = torch.tensor(weights, dtype=rest.dtype, device=rest.device).view(-1, *[1] * (rest.ndim - 1))
    return rest, share


def linear(deltas: Sequence[Tensor], weights: Sequence[float], density: float = 1.0) -> Tensor:
    """The weighted sum."""
    rest, share = _weighted(deltas, weights, 1.0)
    return (rest * share).sum(0)


def slerp(deltas: Sequence[Tensor], weights: Sequence[float], density: float = 1.0) -> Tensor:
    """Spherical interpolation of the changes, one shard after the other, each at its share of what came so far."""
    made, total = deltas[0], float(weights[0])
    for delta, weight in zip(deltas[1:], weights[1:]):
        total += float(weight)
        made = _between(made, delta, float(weight) / total)
    return made


def _between(first: Tensor, second: Tensor, t: float) -> Tensor:
    size = first.norm() * second.norm()
    cosine = (first * second).sum() / size if float(size) > 0 else torch.ones((), device=first.device)
    angle = torch.arccos(cosine.clamp(-1, 1))
    if float(angle.sin()) < 1e-4:  # the same direction, or nothing to turn: a straight line
        return (1 - t) * first + t * second
    return (torch.sin((1 - t) * angle) * first + torch.sin(t * angle) * second) / torch.sin(angle)


MERGES: dict[str, Callable[[Sequence[Tensor], Sequence[float], float], Tensor]] = {
    "ties": ties, "linear": linear, "slerp": slerp,
}  # fmt: skip


def merged(name: str, deltas: Sequence[Tensor], density: float) -> Tensor:
    """What k shards changed, merged with weights 1/k."""
    if name not in MERGES:
        raise UnknownName("way of merging", name, MERGES)
    if not deltas:
        raise BadInput("there is no shard to merge")
    return MERGES[name](deltas, [1 / len(deltas)] * len(deltas), density)


def conflicts(deltas: Sequence[Tensor], density: float) -> Conflicts:
    """How the shards meet after trimming."""
    signs = torch.stack([trimmed(delta, density).sign() for delta in deltas])
    count, total = signs.abs().sum(0), signs.sum(0).abs()
    several = count > 1
    return Conflicts(int((count == 1).sum()), int((several & (total == count)).sum()),
                     int((several & (total < count)).sum()))  # fmt: skip
