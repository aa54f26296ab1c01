"""What each row of attention does, streamed: entropy, sink mass, how far it looks, its strongest keys."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from workbench_kernels.maps.view import Looked

CELLS = 1 << 19
LN_2 = math.log(2.0)


def distance_edges(keys: int) -> Tensor:
    """Left edges of distance bins 0, 1, 2, 4, 8, ...: distance = query - key position, aligned bottom-right."""
    return torch.tensor([0, *(1 << p for p in range(max(keys - 1, 1).bit_length()))])


def statistics(looked: Looked, topk: int, sink_keys: Tensor) -> dict[str, Tensor]:
    """See :func:`workbench_kernels.maps.api.attention_statistics`."""
    n, queries, keys = looked.q.shape[0], looked.queries, looked.keys
    edges = distance_edges(keys)
    found = {
        "entropy": looked.q.new_zeros(n, queries),
        "sink_mass": looked.q.new_zeros(n, queries),
        "mass": looked.q.new_zeros(n, queries),
        "distance_mass": looked.q.new_zeros(n, queries, len(edges)),
        "top_probs": looked.q.new_zeros(n, queries, min(topk, keys)),
        "top_keys": torch.zeros(n, queries, min(topk, keys), dtype=torch.long, device=looked.q.device),
    }
    width = min(keys, 512)
    step = max(1, CELLS // max(1, n * width))
    for start in range(0, queries, step):
        rows = slice(start, min(start + step, queries))
        _rows(looked, rows, width, edges, sink_keys, {name: x[:, rows] for name, x in found.items()})
        looked.tell(rows.stop, queries)
    seen = {name: looked.unpack(x) for name, x in found.items()}
    profile = seen.pop("distance_mass").mean(2)
    return {**seen, "distance_profile": profile, "distance_edges": edges}


def _rows(looked: Looked, rows: slice, width: int, edges: Tensor, sink_keys: Tensor, out: dict[str, Tensor]) -> None:
    low, high = looked.masking.span(rows.start, rows.stop)
    for start in range(low, high, width):
        cols = slice(start, min(start + width, high))
        log2 = looked.log2_probs(rows, cols)
        probs = torch.exp2(log2)
        out["mass"].add_(probs.sum(-1))
        out["entropy"].sub_(torch.mul(probs, log2.clamp_(min=-1e30)).sum(-1) * LN_2)
        out["sink_mass"].add_(looked.unpack(probs).mul(sink_keys[:, None, None, cols]).sum(-1).flatten(0, 1))
        _add_distances(out["distance_mass"], probs, looked, rows, cols, edges)
        _merge_top(out["top_probs"], out["top_keys"], probs, start)


def _add_distances(total: Tensor, probs: Tensor, looked: Looked, rows: slice, cols: slice, edges: Tensor) -> None:
    """Add each probability to the bin of its distance; keys after the query count by absolute distance."""
    device = probs.device
    i = torch.arange(rows.start, rows.stop, device=device)[:, None] + looked.masking.offset
    j = torch.arange(cols.start, cols.stop, device=device)[None, :]
    which = torch.bucketize((i - j).abs(), edges.to(device), right=True) - 1
    total.scatter_add_(2, which[None].expand(probs.shape), probs)


def _merge_top(best: Tensor, where: Tensor, probs: Tensor, start: int) -> None:
    """Fold a tile's strongest keys into the running ones."""
    value, index = probs.topk(min(best.shape[-1], probs.shape[-1]), dim=-1)
    both, keys = torch.cat([best, value], -1), torch.cat([where, index + start], -1)
    value, index = both.topk(best.shape[-1], dim=-1)
    best.copy_(value)
    where.copy_(keys.gather(-1, index))
