"""How the tiled kernel cuts a problem: chunks of (batch, key head), row blocks, key blocks, and their buffers."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from einops import rearrange
from torch import Tensor

from workbench_kernels.masking import Masking
from workbench_kernels.softmax_attention.problem import Problem, accumulator, dropout_factor

LOG2_E = math.log2(math.e)
#: Elements of one score tile over all heads of a chunk: 2 MiB of float32, about a second-level cache.
TILE_CELLS = 1 << 19
ROWS, COLS = 256, 256
#: On a GPU a tile must be large enough to pay for its launches.
GPU_TILE_CELLS, GPU_ROWS, GPU_COLS = 1 << 26, 2048, 2048


def budget(device: torch.device) -> tuple[int, int, int]:
    """(elements of one score tile over all heads, rows, columns) for a device."""
    return (GPU_TILE_CELLS, GPU_ROWS, GPU_COLS) if device.type == "cuda" else (TILE_CELLS, ROWS, COLS)


def tile_sizes(problem: Problem, q: Tensor, k: Tensor) -> tuple[int, int]:
    """(B_r, B_c): the caller's block size, else 256 x 256 with a row block shrunk for grouped heads."""
    rows, cols = problem.masking.block_size
    if rows:
        return min(rows, max(q.shape[1], 1)), cols
    group = q.shape[2] // k.shape[2]
    cells, most_rows, most_cols = budget(q.device)
    rows = max(16, min(most_rows, cells // (most_cols * group)))
    cols = most_cols if q.shape[1] * group >= 16 else 16 * most_cols
    return min(rows, max(q.shape[1], 1)), cols


_OF_THREAD = threading.local()


def workspace(like: Tensor, *shape: int) -> Tensor:
    """A score tile in memory that this thread keeps (at most ``TILE_CELLS`` elements on the CPU, else a fresh one).

    Fresh memory is handed out page by page on first touch, which costs more than the product that fills it.
    """
    size = math.prod(shape)
    if like.device.type != "cpu" or size > TILE_CELLS:
        return like.new_empty(shape)
    kept: dict[torch.dtype, Tensor] = _OF_THREAD.__dict__.setdefault("kept", {})
    if like.dtype not in kept or kept[like.dtype].numel() < size:
        kept[like.dtype] = like.new_empty(size)
    return kept[like.dtype][:size].view(shape)


def tiles_of(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    for low in range(start, stop, size):
        yield low, min(low + size, stop)


@dataclass
class Chunk:
    """A rectangle of (batch, key heads) that one tile loop works on, flattened to n = batch * key heads."""

    problem: Problem
    batch: slice
    heads: slice  # key heads
    group: int  # query heads per key head
    kind: torch.dtype
    masking: Masking
    shape: tuple[int, int, int]  # batch, key heads, group of this chunk
    q: Tensor = field(init=False)
    k: Tensor = field(init=False)
    v: Tensor = field(init=False)
    _transposed: Tensor = field(init=False)

    def load(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        """Keys and values as (n, Nk, D) in the accumulator's dtype: views where strides allow, else one linear copy."""
        self.q = self._grouped(q)
        self.k, self.v = (self._keys(x).to(self.kind) for x in (k, v))
        turned = self.k.transpose(1, 2)
        # A transposed copy makes the score product a fifth faster; for few queries it costs more than it saves.
        self._transposed = turned.contiguous() if q.shape[1] * self.group >= 64 else turned

    def _keys(self, x: Tensor) -> Tensor:
        return rearrange(x[self.batch, :, self.heads], "b j n d -> (b n) j d")

    def _grouped(self, x: Tensor) -> Tensor:
        """(b, n, g, Nq, ...) view of a per-query-head tensor (B, Nq, H, ...)."""
        x = x[self.batch].unflatten(2, (-1, self.group))[:, :, self.heads]
        return x.movedim(1, 3)

    def query_tile(self, rows: tuple[int, int], *, scaled: bool = True) -> Tensor:
        """(n, g * R, D); scaled so that ``q @ k^T`` is in log-2 units (or the argument of the soft cap's tanh)."""
        tile = self.q[:, :, :, rows[0] : rows[1]].to(self.kind).reshape(self.k.shape[0], -1, self.q.shape[-1])
        if not scaled:
            return tile
        cap = self.problem.softcap
        return tile * (self.problem.scale * (LOG2_E if cap is None else 1.0 / cap))

    def read(self, x: Tensor, rows: tuple[int, int]) -> Tensor:
        """A row block of a (B, Nq, H[, D]) tensor as (n, g * R, D or 1)."""
        x = self._grouped(x if x.dim() == 4 else x[..., None])[:, :, :, rows[0] : rows[1]]
        return x.to(self.kind).reshape(self.k.shape[0], -1, x.shape[-1])

    def write(self, target: Tensor, rows: tuple[int, int], tile: Tensor) -> None:
        """Inverse of :meth:`read`: put (n, g * R, D or 1) into a (B, Nq, H[, D]) tensor."""
        view = self._grouped(target if target.dim() == 4 else target[..., None])[:, :, :, rows[0] : rows[1]]
        view.copy_(tile.view(view.shape))

    def write_keys(self, target: Tensor, tile: Tensor) -> None:
        """Put (n, Nk, D) into a (B, Nk, Hkv, D) tensor."""
        target[self.batch, :, self.heads] = rearrange(tile, "(b n) j d -> b j n d", b=self.shape[0]).to(target.dtype)

    def per_row_of_heads(self, sinks: Tensor) -> Tensor:
        """(H,) logits as (b, n, g) in log-2 units."""
        grouped = sinks.to(self.kind).unflatten(0, (-1, self.group))[self.heads] * LOG2_E
        return grouped.expand(self.shape)

    def spread(self, per_head: Tensor, rows: tuple[int, int]) -> Tensor:
        size = rows[1] - rows[0]
        return per_head[..., None].expand(*self.shape, size).reshape(self.k.shape[0], -1, 1)

    def live_tiles(self, rows: tuple[int, int], cols: int) -> Iterator[tuple[int, int]]:
        """Key blocks that hold at least one visible key for this row block, aligned to multiples of ``cols``."""
        low, high = self.masking.span(*rows)
        for tile in tiles_of(low - low % cols, high, cols):
            if not self.masking.tile_is_dead(rows, tile):
                yield tile

    def scores(self, q: Tensor, rows: tuple[int, int], cols: tuple[int, int]) -> Tensor:
        """Masked scores of one tile in log-2 units, in a buffer that the next call reuses."""
        return self.scores_and_slope(q, rows, cols, slope=False)[0]

    def scores_and_slope(
        self, q: Tensor, rows: tuple[int, int], cols: tuple[int, int], *, slope: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Scores, and with a soft cap the derivative of the capped score by the raw one (1 - tanh^2)."""
        scores = workspace(self.k, q.shape[0], q.shape[1], cols[1] - cols[0])
        torch.bmm(q, self._transposed[:, :, cols[0] : cols[1]], out=scores)
        derivative = None
        if self.problem.softcap is not None:
            scores.tanh_()
            derivative = 1.0 - scores * scores if slope else None
            scores.mul_(self.problem.softcap * LOG2_E)
        self._mask(scores, rows, cols)
        return scores, derivative

    def _mask(self, scores: Tensor, rows: tuple[int, int], cols: tuple[int, int]) -> None:
        """Add 0 or -inf (adding a float tile is an order of magnitude faster here than masked_fill)."""
        tile = scores.view(*self.shape, rows[1] - rows[0], cols[1] - cols[0])
        bias = self.masking.added(slice(*rows), slice(*cols))
        if bias is not None:
            tile.add_(self._by_group(bias.to(scores.dtype) * LOG2_E))
        if self.masking.crosses(rows, cols):
            seen = self.masking.visible(slice(*rows), slice(*cols), device=scores.device)
            if seen is not None:
                minus = torch.zeros(seen.shape, dtype=scores.dtype, device=scores.device)
                tile.add_(self._by_group(minus.masked_fill_(~seen, -torch.inf)))

    def _by_group(self, x: Tensor) -> Tensor:
        """(B|1, H|1, R, C) of this chunk as (B|1, n|1, g|1, R, C)."""
        return x.unflatten(1, (-1, self.group)) if x.shape[1] > 1 else x[:, :, None]

    def drop(self, weights: Tensor, rows: tuple[int, int], cols: tuple[int, int]) -> None:
        """Multiply by the dropout factor of this tile, in place."""
        if not self.problem.dropout:
            return
        i, j = (torch.arange(*span, device=weights.device) for span in (rows, cols))
        batch, heads = self.batch, slice(self.heads.start * self.group, self.heads.stop * self.group)
        factor = dropout_factor(self.problem, batch, heads, i, j).to(weights.dtype)
        weights.mul_(factor.reshape(weights.shape))


def chunks(problem: Problem, q: Tensor, k: Tensor, v: Tensor, rows: int, cols: int) -> Iterator[Chunk]:
    """Cut (batch, key heads) into rectangles whose score tile is about ``TILE_CELLS`` elements."""
    batch, kv_heads = k.shape[0], k.shape[2]
    group = q.shape[2] // kv_heads
    if q.shape[1] == 0 or batch == 0:
        return
    fits = max(1, budget(q.device)[0] // max(1, min(rows, q.shape[1]) * group * min(cols, max(k.shape[1], 1))))
    step_b = max(1, fits // kv_heads)
    step_h = min(kv_heads, fits)
    for b in range(0, batch, step_b):
        for h in range(0, kv_heads, step_h):
            yield _chunk(problem, q, k, slice(b, min(b + step_b, batch)), slice(h, min(h + step_h, kv_heads)), group)


def _chunk(problem: Problem, q: Tensor, k: Tensor, batch: slice, heads: slice, group: int) -> Chunk:
    over = slice(heads.start * group, heads.stop * group)
    shape = (batch.stop - batch.start, heads.stop - heads.start, group)
    return Chunk(problem, batch, heads, group, accumulator(q.dtype), narrow(problem.masking, batch, over), shape)


def narrow(masking: Masking, batch: slice, heads: slice) -> Masking:
    """The same mask seen by a rectangle of (batch, query heads)."""

    def cut(x: Tensor | None) -> Tensor | None:
        if x is None:
            return None
        x = x if x.shape[0] == 1 else x[batch]
        return x if x.shape[1] == 1 else x[:, heads]

    padding = None if masking.key_padding is None else masking.key_padding[batch]
    return replace(
        masking, key_padding=padding, allowed=cut(masking.allowed), bias=cut(masking.bias), blocks=cut(masking.blocks)
    )
