"""Queries, keys and row LSE of some heads, packed so that one matrix product gives log-2 probabilities.

A probability is ``exp(scale * q.k - lse)``. The query gets one more component (-lse) and the key a matching 1, so the
product already holds the exponent and ``exp2`` in place finishes the tile: two passes over a tile instead of three.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor

from workbench_kernels.masking import Index, Masking

LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class Looked:
    """Validated input of one map: ``heads`` are the query heads looked at, packed as n = batch * heads."""

    batch: int
    heads: Tensor  # (h,) query heads
    q: Tensor  # (n, Nq, D + 1), scaled, last component -lse (or scaled only, under a soft cap)
    k: Tensor  # (m, Nk, D + 1), m = batch * distinct key heads
    key_head: Tensor | None  # (n,) row of k that serves row n of q; None when they correspond one to one
    lse: Tensor  # (n, Nq, 1) in log-2 units, +inf where the row sees nothing
    softcap: float | None
    masking: Masking
    progress: Callable[[float], object] | None = None

    @property
    def queries(self) -> int:
        return self.q.shape[1]

    @property
    def keys(self) -> int:
        return self.k.shape[1]

    def log2_probs(self, rows: Index, cols: Index, out: Tensor | None = None) -> Tensor:
        """(n, R, C): log-2 probabilities of a tile, -inf where masked."""
        q, k = self.q[:, rows], self.k[:, cols]
        k = k if self.key_head is None else k[self.key_head]
        tile = torch.bmm(q, k.transpose(1, 2)) if out is None else torch.bmm(q, k.transpose(1, 2), out=out)
        if self.softcap is not None:
            tile.tanh_().mul_(self.softcap * LOG2_E).sub_(self.lse[:, rows])
        self._mask(tile, rows, cols)
        return tile

    def _mask(self, tile: Tensor, rows: Index, cols: Index) -> None:
        view = tile.view(self.batch, -1, *tile.shape[1:])
        bias = self.masking.added(rows, cols)
        if bias is not None:
            view.add_(bias.to(tile.dtype) * LOG2_E)
        if isinstance(rows, slice) and isinstance(cols, slice) and not self._crosses(rows, cols):
            return
        seen = self.masking.visible(rows, cols, device=tile.device)
        if seen is not None:
            minus = torch.zeros(seen.shape, dtype=tile.dtype, device=tile.device)
            view.add_(minus.masked_fill_(~seen, -torch.inf))

    def _crosses(self, rows: slice, cols: slice) -> bool:
        if (rows.step or 1) != 1 or (cols.step or 1) != 1:
            return True
        i, j = rows.indices(self.queries), cols.indices(self.keys)
        return self.masking.crosses((i[0], i[1]), (j[0], j[1]))

    def unpack(self, x: Tensor) -> Tensor:
        """(n, ...) to (B, heads, ...)."""
        return rearrange(x, "(b h) ... -> b h ...", b=self.batch)

    def with_progress(self, progress: Callable[[float], object]) -> Looked:
        return replace(self, progress=progress)

    def tell(self, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(done / max(total, 1))


def look(
    q: Tensor, k: Tensor, lse: Tensor, *, scale: float, softcap: float | None, masking: Masking, heads: Tensor
) -> Looked:
    """Pack the chosen heads. Costs one float32 copy of their queries and of the key heads they use."""
    group = q.shape[2] // k.shape[2]
    used, key_head = torch.unique(heads // group, return_inverse=True)
    kind = torch.float64 if q.dtype == torch.float64 else torch.float32
    factor = scale * LOG2_E if softcap is None else scale / softcap
    rows = rearrange(q[:, :, heads], "b i h d -> (b h) i d").to(kind) * factor
    keys = rearrange(k[:, :, used], "b j h d -> (b h) j d").to(kind)
    log2 = rearrange(lse[:, :, heads], "b i h -> (b h) i 1").to(kind) * LOG2_E
    log2 = log2.masked_fill(torch.isneginf(log2), torch.inf)
    if softcap is None:
        rows = torch.cat([rows, -log2], -1)
        keys = torch.cat([keys, keys.new_ones(*keys.shape[:2], 1)], -1)
    serves = key_head + len(used) * torch.arange(q.shape[0], device=q.device)[:, None]
    same = torch.equal(key_head, torch.arange(len(used), device=q.device))
    return Looked(q.shape[0], heads, rows, keys, None if same else serves.flatten(), log2, softcap, masking)


def head_indices(heads: object, count: int, device: torch.device) -> Tensor:
    """Heads named by None (all), an int, a slice, a sequence or a tensor; negative ones count from the end."""
    if heads is None:
        return torch.arange(count, device=device)
    if isinstance(heads, slice):
        return torch.arange(*heads.indices(count), device=device)
    index = torch.as_tensor(heads, device=device).reshape(-1)
    index = torch.where(index < 0, index + count, index).long()
    if index.numel() == 0 or int(index.min()) < 0 or int(index.max()) >= count:
        raise ValueError(f"heads must name query heads in 0..{count - 1}, got {heads}")
    return index


def checked_index(name: str, index: object, length: int, device: torch.device) -> Index:
    """A slice or an int64 vector of positions inside ``length``; ``None`` means everything."""
    if index is None:
        return slice(0, length)
    if isinstance(index, slice):
        if len(range(*index.indices(length))) == 0:
            raise ValueError(f"{name} selects nothing: {index} of {length} positions")
        return index
    vector = torch.as_tensor(index, device=device)
    if vector.dtype == torch.bool:
        if tuple(vector.shape) != (length,):
            raise ValueError(f"{name} as a bool vector must have shape ({length},), got {tuple(vector.shape)}")
        vector = vector.nonzero().flatten()
    vector = torch.where(vector < 0, vector + length, vector).reshape(-1).long()
    if vector.numel() == 0 or int(vector.min()) < 0 or int(vector.max()) >= length:
        raise ValueError(f"{name} must hold positions in 0..{length - 1}, got {index}")
    return vector
