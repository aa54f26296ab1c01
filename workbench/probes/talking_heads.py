"""``talking-heads``: edit what a head writes along one direction, or steer the residual inside a small subspace.

Merullo, Eickhoff, Pavlick 2024, arXiv 2406.09519. Which direction of a writer a reader listens to is found from the
weights alone (``workbench.probes.composition``); here it is removed, scaled, or set by hand while the model runs. Both
edits are context managers: on leaving, also by an exception, the model computes bit for bit what it did before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from workbench.errors import BadInput
from workbench.probes.composition import Components, components, head_weights
from workbench.probes.heads import Head, _network, sites


def channels(model: Any) -> dict[Head, Components]:
    """The components of every head of a model."""
    return {(head.layer, head.head): components(head) for head in head_weights(model)}


@contextmanager
def scaled(model: Any, directions: dict[Head, Tensor], alpha: float = 0.0) -> Iterator[None]:
    """Scale what heads write along directions: W_O <- W_O - (1 - alpha) W_O V^T V, rows of V (k, d) made orthonormal.

    alpha 0 removes the channel, 1 changes nothing, a negative one turns it round.
    """
    known = {site.layer: site for site in sites(model)}
    for (layer, head), rows in directions.items():
        if layer not in known:
            raise BadInput(f"layer {layer} is outside this model, which has layers 0 to {len(known) - 1}")
        width = known[layer].weight(head).shape[1]
        if rows.ndim != 2 or rows.shape[1] != width:
            raise BadInput(f"directions are rows of {width} numbers, got shape {tuple(rows.shape)}")
    before = {layer: known[layer].projection.weight.detach().clone() for layer, _ in directions}
    try:
        with torch.no_grad():
            for (layer, head), rows in directions.items():
                own = known[layer].weight(head)
                basis = orthonormal(rows).to(own)
                own -= (1.0 - alpha) * (own @ basis.T) @ basis
        yield
    finally:
        with torch.no_grad():
            for layer, weight in before.items():
                known[layer].projection.weight.copy_(weight)


def orthonormal(rows: Tensor) -> Tensor:
    """An orthonormal basis (k, d) of the space that ``rows`` (n, d) span; raises BadInput when they span nothing."""
    rows = torch.as_tensor(rows)
    _, s, v = torch.linalg.svd(rows.double(), full_matrices=False)
    rank = int((s > 1e-9 * s[0].clamp(min=1e-300)).sum()) if len(s) and s[0] > 0 else 0
    if not rank:
        raise BadInput("the directions are all zero and span nothing")
    return v[:rank]


def random_directions(d: int, k: int, seed: int) -> Tensor:
    """k orthonormal directions of d numbers at random: the control of every steering."""
    generator = torch.Generator().manual_seed(seed)
    return orthonormal(torch.randn(k, d, generator=generator, dtype=torch.float64))


@contextmanager
def steered(
    model: Any, layers: Iterable[int], basis: Tensor, point: Tensor | None, *, ends: Sequence[int] | None = None
) -> Iterator[list[Tensor]]:
    """Set the residual's coordinates in a subspace at the input of layers: x <- x - x B^T B + p B.

    Args:
        basis: B (k, d), orthonormal rows. point: p (k,), or one a row of the batch (B, k); None changes nothing.
        ends: position of each row that is set; the last one of the pass when not given.

    Yields a list that each pass fills with the natural coordinates (B, k) that it found there, layer by layer.
    """
    blocks = _blocks(model)
    chosen = sorted(set(layers))
    outside = [layer for layer in chosen if not 0 <= layer < len(blocks)]
    if outside:
        raise BadInput(f"layer {outside[0]} is outside this model, which has layers 0 to {len(blocks) - 1}")
    found: list[Tensor] = []

    def before(_module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        hidden = args[0] if args else kwargs["hidden_states"]
        rows = torch.arange(len(hidden), device=hidden.device)
        at = (
            torch.full_like(rows, hidden.shape[1] - 1)
            if ends is None
            else torch.tensor(list(ends), device=hidden.device)
        )
        space = basis.to(hidden)
        here = hidden[rows, at] @ space.T
        found.append(here.detach().clone())
        if point is None:
            return args, kwargs
        changed = hidden.clone()
        changed[rows, at] += (point.to(hidden) - here) @ space
        return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": changed})

    handles = [blocks[layer].register_forward_pre_hook(before, with_kwargs=True) for layer in chosen]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _blocks(model: Any) -> list[nn.Module]:
    """The decoder layers: what holds each attention module."""
    modules = dict(_network(model).named_modules())
    return [modules[site.name.rsplit(".", 1)[0]] for site in sites(model)]
