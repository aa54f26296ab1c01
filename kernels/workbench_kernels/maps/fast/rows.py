"""Regions and per-row numbers on the card."""

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor

from workbench_kernels.maps.fast import launch
from workbench_kernels.maps.fast.row_kernels import (
    PROFILE,
    lse_rows,
    mass_rows,
    region_cells,
    statistics_rows,
    top_rows,
)
from workbench_kernels.maps.problem import Look, distance_edges
from workbench_kernels.masking import Index, positions

#: Kernel -> its tile for a look.
TILES = {
    "region_cells": lambda look: launch.tiles(look, 64, 64),
    "mass_rows": launch.tiles,
    "lse_rows": launch.tiles,
    "statistics_rows": lambda look: launch.tiles(look, 128, 64),
    "top_rows": lambda look: launch.tiles(look, 64, 128),
}


def near_bins(tile: launch.Tiles) -> int:
    """Bins of distances that a tile near the diagonal can hold: those below 2 (rows + keys)."""
    return (2 * (tile.rows + tile.keys)).bit_length() + 1


def region(look: Look, rows: Index, cols: Index) -> Tensor:
    """(B, heads, R, C) exact probabilities."""
    device = look.q.device
    chosen = [positions(rows, look.queries, device).int(), positions(cols, look.keys, device).int()]
    sizes = [len(index) for index in chosen]
    out = torch.empty(look.batch, len(look.heads), *sizes, device=device)
    tile = TILES["region_cells"](look)
    grid = triton.cdiv(sizes[0], tile.rows), triton.cdiv(sizes[1], tile.keys)
    with launch.on_device(out):
        region_cells[(out.shape[0] * out.shape[1] * grid[0] * grid[1],)](
            *launch.tensors(look), out, *chosen, *launch.numbers(look), *grid, *sizes,
            **launch.constants(look), **tile.words,
        )  # fmt: skip
    return out


def mass(look: Look, keys: Tensor) -> Tensor:
    """(B, heads, Nq): probability on ``keys`` (n,) or (B, n) int64; -1 stands for no key."""
    index = keys.reshape(-1, keys.shape[-1]).sort(-1).values.int().contiguous()
    out = _per_row(look)
    tile = TILES["mass_rows"](look)
    arguments = [*launch.tensors(look), out, index, _ends(look, index, tile.rows), *launch.numbers(look)]
    row_tiles = triton.cdiv(look.queries, tile.rows)
    with launch.on_device(out):
        mass_rows[(out.shape[0] * out.shape[1] * row_tiles,)](
            *arguments, row_tiles, index.shape[1] if len(index) > 1 else 0, index.shape[1],
            **launch.constants(look), **tile.words,
        )  # fmt: skip
    return out


def _ends(look: Look, index: Tensor, height: int) -> Tensor:
    """How many of the ascending keys each tile of rows can see, at most."""
    tops = torch.arange(0, look.queries, height, device=index.device)
    last = (tops + height).clamp(max=look.queries) - 1 + look.masking.offset
    if not look.masking.causal:
        last = torch.full_like(last, look.keys)
    return torch.stack([torch.searchsorted(row, last.int(), right=True) for row in index]).amax(0).int()


def _per_row(look: Look, *more: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(look.batch, len(look.heads), look.queries, *more, device=look.q.device, dtype=dtype)


def row_lse(look: Look) -> Tensor:
    """(B, Nq, h) natural log, float32; -inf where a row sees nothing. ``look.lse`` is not read."""
    out = torch.empty(look.batch, look.queries, look.q.shape[2], device=look.q.device)
    look = Look(look.q, look.k, out, look.heads, look.scale, look.softcap, look.masking)
    tile = TILES["lse_rows"](look)
    row_tiles = triton.cdiv(look.queries, tile.rows)
    with launch.on_device(out):
        lse_rows[(look.batch * len(look.heads) * row_tiles,)](
            *launch.tensors(look), *launch.numbers(look), row_tiles, **launch.constants(look), **tile.words
        )
    return out


def statistics(look: Look, topk: int, sink_keys: Tensor) -> dict[str, Tensor]:
    """See :func:`workbench_kernels.maps.api.attention_statistics`; ``sink_keys`` (B, n), -1 for none."""
    found = _streamed(look)
    found |= dict(zip(("top_probs", "top_keys"), _strongest(look, min(topk, look.keys)), strict=True))
    return {**found, "sink_mass": mass(look, sink_keys)}


def _streamed(look: Look) -> dict[str, Tensor]:
    entropy, total, distance = (_per_row(look) for _ in range(3))
    tile = TILES["statistics_rows"](look)
    row_tiles = triton.cdiv(look.queries, tile.rows)
    profile = torch.empty(look.batch, len(look.heads), row_tiles, PROFILE.value, device=look.q.device)
    arguments = [*launch.tensors(look), entropy, total, distance, profile, *launch.numbers(look)]
    with launch.on_device(entropy):
        statistics_rows[(look.batch * len(look.heads) * row_tiles,)](
            *arguments, row_tiles, NEAR=near_bins(tile), **launch.constants(look), **tile.words
        )
    edges = distance_edges(look.keys)
    return {
        "entropy": entropy.mul_(math.log(2.0)),
        "mass": total,
        "mean_distance": distance.div_(total.clamp_min(torch.finfo(total.dtype).tiny)),
        "distance_profile": profile.sum(2)[..., : len(edges)] / look.queries,
        "distance_edges": edges,
    }


def _strongest(look: Look, count: int) -> tuple[Tensor, Tensor]:
    """Probabilities, descending, and keys of the strongest; 0 and -1 where a row sees fewer."""
    kept = triton.next_power_of_2(count)
    scores, keys = _per_row(look, kept), _per_row(look, kept, dtype=torch.int32)
    tile = TILES["top_rows"](look)
    row_tiles = triton.cdiv(look.queries, tile.rows)
    with launch.on_device(scores):
        top_rows[(look.batch * len(look.heads) * row_tiles,)](
            *launch.tensors(look), scores, keys, *launch.numbers(look), row_tiles,
            TOP=kept, **launch.constants(look), **tile.words,
        )  # fmt: skip
    found = _per_row(look, kept, dtype=torch.int64)
    for plane in zip(scores.flatten(0, 1), keys.flatten(0, 1), found.flatten(0, 1), strict=True):
        _in_order(*plane)
    return scores[..., :count], found[..., :count]


def _in_order(scores: Tensor, keys: Tensor, found: Tensor) -> None:
    """Log-2 probabilities of one head to probabilities, descending, in place; their keys into ``found``.

    A head at a time, because sorting takes several times the memory of what is sorted.
    """
    ordered, order = scores.sort(-1, descending=True)
    scores.copy_(ordered.exp2_())
    found.copy_(keys.gather(-1, order)).masked_fill_(scores == 0, -1)
