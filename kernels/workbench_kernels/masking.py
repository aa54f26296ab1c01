"""Which query sees which key: one description for every kernel, asked tile by tile.

Causal masks are aligned bottom-right: query ``i`` sees key ``j`` when ``j <= i + Nk - Nq``; a window ``w`` also asks
``j > i + Nk - Nq - w``. Nothing of size Nq x Nk is built here unless the caller asks for that tile.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from workbench_kernels import checks

Index: TypeAlias = slice | Tensor


@dataclass(frozen=True)
class Masking:
    """A validated mask over (batch, heads, queries, keys). Build it with :func:`masking`."""

    queries: int
    keys: int
    causal: bool = True
    window: int | None = None
    key_padding: Tensor | None = None  # (B, Nk), True = real
    allowed: Tensor | None = None  # (B|1, H|1, Nq|1, Nk|1), True = see
    bias: Tensor | None = None  # (B|1, H|1, Nq|1, Nk|1), added to the scores
    blocks: Tensor | None = None  # (B|1, H|1, Tr, Tc), True = live
    block_size: tuple[int, int] = (0, 0)

    @property
    def offset(self) -> int:
        """Key position of query 0 when the last query stands on the last key."""
        return self.keys - self.queries

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """Half-open range of keys that causal and window leave to the queries ``start..stop-1`` (may be empty)."""
        high = min(self.keys, stop + self.offset) if self.causal else self.keys
        low = max(0, start + self.offset - self.window + 1) if self.window is not None else 0
        return min(low, self.keys), max(high, 0)

    def crosses(self, rows: tuple[int, int], cols: tuple[int, int]) -> bool:
        """Whether the tile needs a mask tensor at all: False for tiles inside the causal band with nothing else set."""
        if self.key_padding is not None or self.allowed is not None or self.crosses_band(rows, cols):
            return True
        live = self._everywhere_live
        return live is not None and not bool(live[self._block_range(rows, cols)].all())

    def crosses_band(self, rows: tuple[int, int], cols: tuple[int, int]) -> bool:
        """Whether the causal diagonal or the window's edge runs through the tile."""
        above = self.causal and cols[1] - 1 > rows[0] + self.offset
        behind = self.window is not None and cols[0] <= rows[1] - 1 + self.offset - self.window
        return above or behind

    def visible(self, rows: Index, cols: Index, *, device: torch.device | str = "cpu") -> Tensor | None:
        """Bool (B|1, H|1, R|1, C|1), True = see; ``None`` when the whole tile is visible."""
        parts = [self._band(rows, cols, device), self._padding(cols), self._take(self.allowed, rows, cols)]
        parts.append(self._live(rows, cols, device))
        seen: Tensor | None = None
        for part in parts:
            if part is not None:
                seen = part if seen is None else seen & part
        return seen

    def added(self, rows: Index, cols: Index) -> Tensor | None:
        """Additive part of the mask for a tile, or ``None``."""
        return self._take(self.bias, rows, cols)

    def of_heads(self, heads: Tensor) -> Masking:
        """The same mask for some of the (query) heads."""

        def cut(x: Tensor | None) -> Tensor | None:
            return x if x is None or x.shape[1] == 1 else x[:, heads]

        return replace(self, allowed=cut(self.allowed), bias=cut(self.bias), blocks=cut(self.blocks))

    def tile_is_dead(self, rows: tuple[int, int], cols: tuple[int, int]) -> bool:
        """True when the block mask leaves nothing of the tile in any batch or head."""
        return self._somewhere_live is not None and not bool(self._somewhere_live[self._block_range(rows, cols)].any())

    def _block_range(self, rows: tuple[int, int], cols: tuple[int, int]) -> tuple[slice, slice]:
        """Blocks of the block mask that a tile touches."""
        br, bc = self.block_size
        return slice(rows[0] // br, -(-rows[1] // br)), slice(cols[0] // bc, -(-cols[1] // bc))

    @cached_property
    def _somewhere_live(self) -> Tensor | None:
        """(T_r, T_c) on the CPU: live in some batch and head, asked for every tile without stalling a GPU."""
        return None if self.blocks is None else self.blocks.flatten(0, 1).any(0).cpu()

    @cached_property
    def _everywhere_live(self) -> Tensor | None:
        return None if self.blocks is None else self.blocks.flatten(0, 1).all(0).cpu()

    def _band(self, rows: Index, cols: Index, device: torch.device | str) -> Tensor | None:
        if not self.causal and self.window is None:
            return None
        i = positions(rows, self.queries, device)[:, None] + self.offset
        j = positions(cols, self.keys, device)[None, :]
        seen = j <= i if self.causal else torch.ones((), dtype=torch.bool, device=device)
        if self.window is not None:
            seen = seen & (j > i - self.window)
        return seen[None, None]

    def _padding(self, cols: Index) -> Tensor | None:
        return None if self.key_padding is None else self.key_padding[:, cols][:, None, None, :]

    def _live(self, rows: Index, cols: Index, device: torch.device | str) -> Tensor | None:
        if self.blocks is None:
            return None
        i = positions(rows, self.queries, device) // self.block_size[0]
        j = positions(cols, self.keys, device) // self.block_size[1]
        return self.blocks[:, :, i][:, :, :, j]

    @staticmethod
    def _take(x: Tensor | None, rows: Index, cols: Index) -> Tensor | None:
        if x is None:
            return None
        x = x if x.shape[2] == 1 else x[:, :, rows]
        return x if x.shape[3] == 1 else x[:, :, :, cols]


def positions(index: Index, length: int, device: torch.device | str) -> Tensor:
    """The positions a slice or an index tensor stands for, int64."""
    if isinstance(index, slice):
        return torch.arange(*index.indices(length), device=device)
    return index.to(device)


def masking(
    q: Tensor,
    k: Tensor,
    *,
    causal: bool,
    window: int | None,
    key_padding: Tensor | None,
    mask: Tensor | None,
    block_mask: Tensor | None = None,
    block_size: int | tuple[int, int] | None = None,
) -> Masking:
    """Validate the mask arguments of a public function; raises ``ValueError`` naming the argument."""
    batch, queries, heads, _ = q.shape
    keys = k.shape[1]
    window = checks.window(window)
    if causal not in (None, False, True):  # a word such as "no" would count as True
        raise ValueError(f"causal must be True or False, got {causal!r}")
    allowed, bias = _split(mask, (batch, heads, queries, keys), q)
    blocks, size = _blocks(block_mask, block_size, (batch, heads, queries, keys), q)
    padding = _key_padding(key_padding, (batch, keys), q)
    return Masking(queries, keys, bool(causal), window, padding, allowed, bias, blocks, size)


def _key_padding(padding: Tensor | None, shape: tuple[int, int], q: Tensor) -> Tensor | None:
    if padding is None:
        return None
    checks.tensor("key_padding", padding)
    if padding.dtype != torch.bool or tuple(padding.shape) != shape:
        raise ValueError(
            f"key_padding must be bool of shape (batch, keys) = {shape}, True = real token; "
            f"got {padding.dtype} of shape {tuple(padding.shape)}"
        )
    return padding.to(q.device)


def _split(mask: Tensor | None, shape: tuple[int, ...], q: Tensor) -> tuple[Tensor | None, Tensor | None]:
    if mask is None:
        return None, None
    checks.tensor("mask", mask)
    fits = mask.dim() <= 4 and all(m in (1, s) for m, s in zip(reversed(mask.shape), reversed(shape), strict=False))
    if not fits:
        raise ValueError(
            f"mask of shape {tuple(mask.shape)} does not broadcast to (batch, heads, queries, keys) = {shape}"
        )
    if mask.dtype != torch.bool and not mask.dtype.is_floating_point:
        raise ValueError(f"mask must be bool (True = see) or floating point (added to the scores), got {mask.dtype}")
    if mask.device != q.device:
        raise ValueError(f"mask is on {mask.device} but q is on {q.device}")
    mask = mask[(None,) * (4 - mask.dim())]
    if mask.dtype == torch.bool:
        return mask, None
    checks.below_infinity("mask", mask)
    return None, mask


def _blocks(
    block_mask: Tensor | None, size: int | tuple[int, int] | None, shape: tuple[int, ...], q: Tensor
) -> tuple[Tensor | None, tuple[int, int]]:
    rows, cols = (0, 0) if size is None else _block_size(size)
    if block_mask is None:
        return None, (rows, cols)
    if size is None:
        raise ValueError("block_size (rows, columns of one block) must be given together with block_mask")
    checks.tensor("block_mask", block_mask)
    batch, heads, queries, keys = shape
    tiles = (-(-queries // rows), -(-keys // cols))
    full = block_mask[None, None] if block_mask.dim() == 2 else block_mask
    lead = full.dim() == 4 and full.shape[0] in (1, batch) and full.shape[1] in (1, heads)
    if full.dtype != torch.bool or not lead or tuple(full.shape[2:]) != tiles:
        raise ValueError(
            f"block_mask must be bool of shape (T_r, T_c) = {tiles} or (batch|1, heads|1, T_r, T_c) for block_size "
            f"{(rows, cols)}; got {block_mask.dtype} of shape {tuple(block_mask.shape)}"
        )
    return full.to(q.device), (rows, cols)


def _block_size(size: object) -> tuple[int, int]:
    pair = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(pair) != 2 or not all(checks.is_whole(x, 1) for x in pair):
        raise ValueError(f"block_size must be one or two integers >= 1, got {size!r}")
    return int(pair[0]), int(pair[1])
