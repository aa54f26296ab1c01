"""What each row of attention does, streamed: entropy, sink mass, how far it looks, its strongest keys."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from workbench_kernels.maps.problem import Look, distance_edges
from workbench_kernels.maps.view import Looked, pack

CELLS = 1 << 19
LN_2 = math.log(2.0)


def statistics(look: Look, topk: int, sink_keys: Tensor) -> dict[str, Tensor]:
    """See :func:`workbench_kernels.maps.api.attention_statistics`; ``sink_keys`` (B, n) positions, -1 for none."""
    looked = pack(look)
    n, queries, keys = len(looked.q), look.queries, look.keys
    edges = distance_edges(keys)
    sinks = _weights(sink_keys, look).to(looked.q)
    found = {name: looked.q.new_zeros(n, queries) for name in ("entropy", "sink_mass", "mass", "mean_distance")}
    found["profile"] = looked.q.new_zeros(n, queries, len(edges))
    found["top_probs"] = looked.q.new_zeros(n, queries, min(topk, keys))
    found["top_keys"] = torch.full((n, queries, min(topk, keys)), -1, device=looked.q.device)
    width = min(keys, 512)
    step = max(1, CELLS // max(1, n * width))
    for start in range(0, queries, step):
        rows = slice(start, min(start + step, queries))
        _rows(looked, rows, width, edges, sinks, {name: x[:, rows] for name, x in found.items()})
        look.tell(rows.stop, queries)
    found["mean_distance"] /= found["mass"].clamp_min(torch.finfo(looked.q.dtype).tiny)
    found["top_keys"].masked_fill_(found["top_probs"] == 0, -1)
    seen = {name: looked.unpack(x) for name, x in found.items()}
    profile = seen.pop("profile").mean(2)
    return {**seen, "distance_profile": profile, "distance_edges": edges}


def _weights(index: Tensor, look: Look) -> Tensor:
    """(B, Nk): 1 at the positions of ``index`` (B, n), which may hold -1 for none."""
    weights = torch.zeros(look.batch, look.keys, device=index.device)
    return weights.scatter_add_(1, index.clamp(min=0), (index >= 0).to(weights))


def _rows(looked: Looked, rows: slice, width: int, edges: Tensor, sinks: Tensor, out: dict[str, Tensor]) -> None:
    low, high = looked.look.masking.span(rows.start, rows.stop)
    for start in range(low, high, width):
        cols = slice(start, min(start + width, high))
        log2 = looked.log2_probs(rows, cols)
        probs = torch.exp2(log2)
        out["mass"].add_(probs.sum(-1))
        out["entropy"].sub_(torch.mul(probs, log2.clamp_(min=-1e30)).sum(-1) * LN_2)
        if bool(sinks[:, cols].any()):
            out["sink_mass"].add_(looked.unpack(probs).mul(sinks[:, None, None, cols]).sum(-1).flatten(0, 1))
        _add_distances(out["profile"], out["mean_distance"], probs, looked.look, rows, cols, edges)
        _merge_top(out["top_probs"], out["top_keys"], probs, start)


def _add_distances(
    profile: Tensor, total: Tensor, probs: Tensor, look: Look, rows: slice, cols: slice, edges: Tensor
) -> None:
    """Add each probability to the bin of its distance; keys after the query count by absolute distance."""
    device = probs.device
    i = torch.arange(rows.start, rows.stop, device=device)[:, None] + look.masking.offset
    away = (i - torch.arange(cols.start, cols.stop, device=device)[None, :]).abs()
    total.add_((probs * away.to(probs.dtype)).sum(-1))
    nearest = max(rows.start + look.masking.offset - cols.stop + 1, cols.start - rows.stop - look.masking.offset + 1, 0)
    if nearest < probs.shape[-2] + probs.shape[-1]:
        which = torch.bucketize(away, edges.to(device), right=True) - 1
        profile.scatter_add_(2, which[None].expand(probs.shape), probs)
        return
    power = nearest.bit_length()  # a tile this far off meets at most one power of two, the next one
    closer = torch.where(away < 1 << power, probs, 0.0).sum(-1)
    profile[..., power] += closer
    if power + 1 < profile.shape[-1]:
        profile[..., power + 1] += probs.sum(-1) - closer


def _merge_top(best: Tensor, where: Tensor, probs: Tensor, start: int) -> None:
    """Fold a tile's strongest keys into the running ones."""
    value, index = probs.topk(min(best.shape[-1], probs.shape[-1]), dim=-1)
    both, keys = torch.cat([best, value], -1), torch.cat([where, index + start], -1)
    value, index = both.topk(best.shape[-1], dim=-1)
    best.copy_(value)
    where.copy_(keys.gather(-1, index))
