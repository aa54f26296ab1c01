"""Queries, keys and row LSE of some heads, packed so that one matrix product gives log-2 probabilities.

A probability is ``exp(scale * q.k - lse)``. The query gets one more component (-lse) and the key a matching 1, so the
product already holds the exponent and ``exp2`` in place finishes the tile: two passes over a tile instead of three.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from workbench_kernels.maps.problem import Look
from workbench_kernels.masking import Index

LOG2_E = math.log2(math.e)
EVERY = slice(None)


@dataclass(frozen=True)
class Looked:
    """A look whose queries and keys (all, or those asked for) are packed as n = batch * heads."""

    look: Look
    q: Tensor  # (n, R, D + 1), scaled, last component -lse (or scaled only, under a soft cap)
    k: Tensor  # (m, C, D + 1), m = batch * distinct key heads
    key_head: Tensor | None  # (n,) row of k that serves row n of q; None when they correspond one to one
    lse: Tensor  # (n, R, 1) in log-2 units, +inf where the row sees nothing

    def log2_probs(self, rows: Index, cols: Index, out: Tensor | None = None) -> Tensor:
        """(n, R, C): log-2 probabilities of a tile, -inf where masked, when everything is packed."""
        return self._finished(self._product(self.q[:, rows], self.k[:, cols], out), self.lse[:, rows], rows, cols)

    def log2_probs_of_all(self, rows: Index, cols: Index) -> Tensor:
        """The same of everything packed, which are the positions ``rows`` and ``cols``."""
        return self._finished(self._product(self.q, self.k), self.lse, rows, cols)

    def log2_probs_of_keys(self, rows: Index, cols: Index) -> Tensor:
        """The same of some rows and all packed keys, which are the positions ``cols``."""
        return self._finished(self._product(self.q[:, rows], self.k), self.lse[:, rows], rows, cols)

    def _product(self, q: Tensor, k: Tensor, out: Tensor | None = None) -> Tensor:
        k = k if self.key_head is None else k[self.key_head]
        return torch.bmm(q, k.transpose(1, 2)) if out is None else torch.bmm(q, k.transpose(1, 2), out=out)

    def _finished(self, tile: Tensor, lse: Tensor, rows: Index, cols: Index) -> Tensor:
        if self.look.softcap is not None:
            tile.tanh_().mul_(self.look.softcap * LOG2_E).sub_(lse)
        self._mask(tile, rows, cols)
        return tile

    def _mask(self, tile: Tensor, rows: Index, cols: Index) -> None:
        masks = self.look.masking
        view = tile.view(self.look.batch, -1, *tile.shape[1:])
        bias = masks.added(rows, cols)
        if bias is not None:
            view.add_(bias.to(tile.dtype) * LOG2_E)
        if isinstance(rows, slice) and isinstance(cols, slice) and not self._crosses(rows, cols):
            return
        seen = masks.visible(rows, cols, device=tile.device)
        if seen is not None:
            minus = torch.zeros(seen.shape, dtype=tile.dtype, device=tile.device)
            view.add_(minus.masked_fill_(~seen, -torch.inf))

    def _crosses(self, rows: slice, cols: slice) -> bool:
        if (rows.step or 1) != 1 or (cols.step or 1) != 1:
            return True
        i, j = rows.indices(self.look.queries), cols.indices(self.look.keys)
        return self.look.masking.crosses((i[0], i[1]), (j[0], j[1]))

    def unpack(self, x: Tensor) -> Tensor:
        """(n, ...) to (B, heads, ...)."""
        return rearrange(x, "(b h) ... -> b h ...", b=self.look.batch)


def pack(look: Look, rows: Index = EVERY, cols: Index = EVERY) -> Looked:
    """Pack the chosen heads. Costs one float32 copy of their queries (at ``rows``) and of their keys (at ``cols``)."""
    q, k, lse = look.q[:, rows][:, :, look.heads], look.k[:, cols], look.lse[:, rows][:, :, look.heads]
    used, key_head = torch.unique(look.heads // look.group, return_inverse=True)
    kind = torch.float64 if q.dtype == torch.float64 else torch.float32
    factor = look.scale * LOG2_E if look.softcap is None else look.scale / look.softcap
    queries = rearrange(q, "b i h d -> (b h) i d").to(kind) * factor
    keys = rearrange(k[:, :, used], "b j h d -> (b h) j d").to(kind)
    log2 = rearrange(lse, "b i h -> (b h) i 1").to(kind) * LOG2_E
    log2 = log2.masked_fill(torch.isneginf(log2), torch.inf)
    if look.softcap is None:
        queries = torch.cat([queries, -log2], -1)
        keys = torch.cat([keys, keys.new_ones(*keys.shape[:2], 1)], -1)
    serves = key_head + len(used) * torch.arange(look.batch, device=q.device)[:, None]
    same = torch.equal(key_head, torch.arange(len(used), device=q.device))
    return Looked(look, queries, keys, None if same else serves.flatten(), log2)
