"""``talking-heads``: edit what a head writes along one direction, or steer the residual inside a small subspace.

Merullo, Eickhoff, Pavlick 2024, arXiv 2406.09519. Which direction of a writer a reader listens to is found from the
weights alone (``workbench.probes.composition``); here it is removed, scaled, or set by hand while the model runs. Both
edits are context managers: on leaving, also by an exception, the model computes bit for bit what it did before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workbench.errors import BadInput
from workbench.probes.composition import Components, HeadWeights, components, head_weights
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
        if not isinstance(rows, Tensor) or rows.ndim != 2 or rows.shape[1] != width:
            raise BadInput(f"directions are rows of {width} numbers, got shape {tuple(np.shape(rows))}")
    if not np.isfinite(alpha):
        raise BadInput(f"alpha must be a finite number, got {alpha}")
    bases = {head: orthonormal(rows) for head, rows in directions.items()}  # refused before a weight is touched
    before = {layer: known[layer].projection.weight.detach().clone() for layer, _ in directions}
    try:
        with torch.no_grad():
            for (layer, head), rows in bases.items():
                own = known[layer].weight(head)
                basis = rows.to(own)
                own -= (1.0 - alpha) * (own @ basis.T) @ basis
        yield
    finally:
        with torch.no_grad():
            for layer, weight in before.items():
                known[layer].projection.weight.copy_(weight)


def orthonormal(rows: Tensor) -> Tensor:
    """An orthonormal basis (k, d) of the space that ``rows`` (n, d) span; raises BadInput when they span nothing."""
    rows = torch.as_tensor(rows)
    if rows.ndim != 2 or not rows.isfinite().all():
        raise BadInput(f"directions are rows (n, d) of finite numbers, got shape {tuple(rows.shape)}")
    _, s, v = torch.linalg.svd(rows.double(), full_matrices=False)
    rank = int((s > 1e-9 * s[0].clamp(min=1e-300)).sum()) if len(s) and s[0] > 0 else 0
    if not rank:
        raise BadInput("the directions are all zero and span nothing")
    return v[:rank]


def random_directions(d: int, k: int, seed: int) -> Tensor:
    """k orthonormal directions of d numbers at random: the control of every steering."""
    if not 1 <= k <= d:
        raise BadInput(f"there are 1 to {d} orthonormal directions of {d} numbers, got k={k}")
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
    _check_space(basis, point, sites(model)[0].weight(0).shape[1])
    found: list[Tensor] = []

    def before(_module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        hidden = args[0] if args else kwargs["hidden_states"]
        rows = torch.arange(len(hidden), device=hidden.device)
        _check_batch(hidden, point, ends)
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


def _check_space(basis: Tensor, point: Tensor | None, width: int) -> None:
    """Raises BadInput where x - x B^T B + p B would not set the coordinates in B to p."""
    if basis.ndim != 2 or basis.shape[1] != width:
        raise BadInput(f"basis is rows of {width} numbers, got shape {tuple(basis.shape)}")
    gram = basis.double() @ basis.double().T
    if not torch.allclose(gram, torch.eye(len(gram), dtype=gram.dtype, device=gram.device), atol=1e-2):
        raise BadInput("the rows of basis must be orthonormal; pass them through talking_heads.orthonormal first")
    if point is not None and (point.ndim not in (1, 2) or point.shape[-1] != len(basis)):
        raise BadInput(f"a point has {len(basis)} coordinates, one a row of basis, got shape {tuple(point.shape)}")


def _check_batch(hidden: Tensor, point: Tensor | None, ends: Sequence[int] | None) -> None:
    rows, length = hidden.shape[:2]
    if point is not None and point.ndim == 2 and len(point) not in (1, rows):
        raise BadInput(f"the batch has {rows} rows, but points were given for {len(point)}")
    if ends is not None and (len(ends) != rows or not all(-length <= end < length for end in ends)):
        raise BadInput(f"ends must be a position of each of {rows} rows of {length} tokens, got {list(ends)}")


def _blocks(model: Any) -> list[nn.Module]:
    """The decoder layers: what holds each attention module."""
    modules = dict(_network(model).named_modules())
    return [modules[site.name.rsplit(".", 1)[0]] for site in sites(model)]


@torch.no_grad()
def steered_ends(model: Any, ids: Sequence[int], layer: int, basis: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities (P, V) of the next token with the residual before ``layer`` set to each of ``points`` (P, k).

    Also returns the natural coordinates (k,). What stands before the last token is read once and kept in a cache.
    """
    import copy

    from transformers import DynamicCache

    from workbench.memory.cache._hooks import cache_word

    if len(ids) < 2:
        raise BadInput(f"steering the last token needs at least one before it, got {len(ids)} tokens")
    if points.ndim != 2 or not len(points):
        raise BadInput(f"points are rows (P, k), at least one, got shape {tuple(points.shape)}")
    network = _network(model)
    word = cache_word(network)
    row = torch.tensor([list(ids)], device=next(network.parameters()).device)
    before = DynamicCache(config=network.config)
    network(input_ids=row[:, :-1], use_cache=True, **{word: before})
    with steered(model, [layer], basis, None) as found:
        network(input_ids=row[:, -1:], use_cache=True, **{word: copy.deepcopy(before)})
    before.batch_repeat_interleave(len(points))
    with steered(model, [layer], basis, points):
        out = network(input_ids=row[:, -1:].repeat(len(points), 1), use_cache=True, **{word: before})
    return out.logits[:, -1].float().log_softmax(-1).cpu(), found[0][0].cpu()


def planted_channel(
    d: int, width: int, *, nuisance: float, gain: float, seed: int, n: int = 8
) -> tuple[list[HeadWeights], list[HeadWeights], int]:
    """n random writers and n readers of which the first pair talks along one direction u; also u's component.

    Writer 0 writes u with its middle component (singular values |N(1, .4)|), reader 0's query matrix gets
    gain x s_max u w^T. Every writer's largest singular value is inflated by 1 + nuisance: a strong direction that has
    nothing to do with the channel.
    """
    if not 2 <= width < d or n < 1:
        raise BadInput(f"width must lie in 2 .. d - 1 and n be at least 1, got d={d}, width={width}, n={n}")
    if not (0 <= nuisance < np.inf and np.isfinite(gain)):
        raise BadInput(f"nuisance must be at least 0 and gain a number, both finite, got {nuisance} and {gain}")
    rng = np.random.default_rng(seed)

    def orthonormal_rows(rows: int) -> Any:
        return np.linalg.qr(rng.normal(size=(d, rows)))[0].T

    u, writers, readers = orthonormal_rows(1)[0], [], []
    for head in range(n):
        v, s = orthonormal_rows(width), np.sort(np.abs(rng.normal(1, 0.4, width)))[::-1].copy()
        if head == 0:
            rest = [row for row in range(width) if row != width // 2]
            v[width // 2] = u
            v[rest] = np.linalg.qr((v[rest] - np.outer(v[rest] @ u, u)).T)[0].T
        s[0] *= 1 + nuisance
        blank = torch.zeros(d, width, dtype=torch.float64)
        writers.append(HeadWeights(0, head, blank, blank, torch.tensor(orthonormal_rows(width).T * s), torch.tensor(v)))
    for head in range(n):
        q, k = rng.normal(size=(d, width)), rng.normal(size=(d, width))
        if head == 0:
            w = rng.normal(size=d)
            q, k = np.c_[q, gain * np.linalg.norm(q @ k.T, 2) * u], np.c_[k, w / np.linalg.norm(w)]
        readers.append(HeadWeights(1, head, *map(torch.tensor, (q, k, q, k.T))))
    place = int((components(writers[0]).v @ torch.tensor(u)).abs().argmax())
    return writers, readers, place
