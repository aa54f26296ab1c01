"""Block masks for block-sparse attention: which (row block, column block) tiles are live."""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.errors import BadInput


def band(blocks: int, width: int) -> Tensor:
    """Local band: |i - j| <= width."""
    i = torch.arange(_positive("blocks", blocks))
    return (i[:, None] - i[None, :]).abs() <= width


def butterfly(blocks: int, *, stripe: bool = False) -> Tensor:
    """Flat butterfly: i == j or j == i XOR 2^k; s = (1 + log2 T) / T. ``stripe`` adds a global row and column."""
    if blocks < 1 or blocks & (blocks - 1):
        raise BadInput(f"blocks must be a power of two for a butterfly, got {blocks}")
    i = torch.arange(blocks)
    live = i[:, None] == i[None, :]
    for k in range(blocks.bit_length() - 1):
        live |= (i[:, None] ^ (1 << k)) == i[None, :]
    return with_stripe(live) if stripe else live


def with_stripe(live: Tensor) -> Tensor:
    """The same mask plus a global first block row and column."""
    live = live.clone()
    live[0, :] = live[:, 0] = True
    return live


def random_density(blocks: int, s: float, generator: torch.Generator) -> Tensor:
    """Exactly round(s T^2) live tiles, the diagonal first so that every row sees something."""
    if not 0.0 < s <= 1.0:
        raise BadInput(f"s must lie in (0, 1], got {s}")
    order = torch.rand(blocks, blocks, generator=generator)
    order.fill_diagonal_(-1.0)
    keep = max(blocks, round(s * blocks * blocks))
    return order <= order.flatten().kthvalue(keep).values


def causal(rows: int, cols: int, row_blocks: int, col_blocks: int) -> Tensor:
    """Tiles of ``rows`` x ``cols`` positions that hold at least one key j <= i."""
    last_query = torch.arange(1, row_blocks + 1) * rows - 1
    first_key = torch.arange(col_blocks) * cols
    return first_key[None, :] <= last_query[:, None]


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise BadInput(f"{name} must be >= 1, got {value}")
    return value
