"""Which tiles a block mask leaves: found once a call, so that the kernels visit live tiles only."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from workbench_kernels.masking import Masking
from workbench_kernels.softmax_attention.portable.configurations import Tiles


class Plan(NamedTuple):
    """Live tiles as lists (``tiles``, ``counts``: one line a block of the grid) or as a map; ``tiles`` None = all."""

    tiles: Any
    counts: Any
    b: int  # strides of a line's number
    h: int
    width: int  # length of a line


NO_PLAN = Plan(None, None, 0, 0, 0)


def fitted_tiles(masking: Masking, tiles: Tiles) -> Tiles:
    """The tiles for a call's masks.

    With a block mask they shrink to a power of two that divides the block, where there is one of at least 16. The
    tiles of an additive mask are fetched ahead like those of K and V, so there is room for fewer stages.
    """
    if masking.bias is not None:
        tiles = replace(tiles, stages=min(tiles.stages, 2 if masking.bias.element_size() <= 4 else 1))
    if masking.blocks is None:
        return tiles
    rows, cols = (_fitted(n, b) for n, b in zip((tiles.rows, tiles.cols), masking.block_size, strict=True))
    return replace(tiles, rows=rows, cols=cols)


def _fitted(size: int, block: int) -> int:
    return min(size, block & -block) if block % 16 == 0 else size


def aligned(masking: Masking, rows: int, cols: int) -> bool:
    """Whether every tile lies inside one block, so that skipping dead tiles is all there is to do."""
    return masking.block_size[0] % rows == 0 and masking.block_size[1] % cols == 0


def live_map(masking: Masking, rows: int, cols: int) -> Tensor:
    """(B|1, H|1, T_r, T_c) bool: tiles of ``rows`` x ``cols`` that block mask, causal mask and window leave alive."""
    blocks = masking.blocks
    assert blocks is not None
    live = _touched(blocks, masking.block_size[0], rows, masking.queries, 2)
    live = _touched(live, masking.block_size[1], cols, masking.keys, 3)
    first = torch.arange(live.shape[2], device=blocks.device)[:, None] * rows + masking.offset
    last = (first + rows).clamp_max(masking.keys) - 1
    start = torch.arange(live.shape[3], device=blocks.device)[None, :] * cols
    if masking.causal:
        live = live & (start <= last)
    if masking.window is not None:
        live = live & (start + cols - 1 > first - masking.window)
    return live


def _touched(blocks: Tensor, size: int, tile: int, length: int, dim: int) -> Tensor:
    """Along ``dim``: does any block of ``size`` that a tile touches count? By a running sum, linear in the blocks."""
    low = torch.arange(0, length, tile, device=blocks.device)
    high = (low + tile).clamp_max(length)
    ends = [0] * (2 * (blocks.dim() - dim))
    ends[-2] = 1
    total = pad(blocks.to(torch.int32).cumsum(dim, dtype=torch.int32), ends)
    return total.index_select(dim, (high + size - 1) // size) > total.index_select(dim, low // size)


def listed(live: Tensor) -> Plan:
    """One line a row of the map: the live columns in ascending order."""
    counts = live.sum(-1, dtype=torch.int32).contiguous()
    tiles = (~live).to(torch.int8).argsort(dim=-1, stable=True).to(torch.int32).contiguous()
    lines = live.shape[2]
    return Plan(tiles, counts, *_strides(live, lines), live.shape[3])


def mapped(live: Tensor) -> Plan:
    """The map itself, for a loop that asks tile by tile."""
    flat = live.contiguous().view(torch.uint8)
    return Plan(flat, None, *_strides(live, live.shape[2]), live.shape[3])


def _strides(live: Tensor, lines: int) -> tuple[int, int]:
    heads = live.shape[1]
    return (0 if live.shape[0] == 1 else heads * lines), (0 if heads == 1 else lines)
