"""Where a sequence's keys lie in a cache: in row b, in the row a slot names, or in the blocks of a table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from workbench_kernels import checks

INTEGERS = (torch.int32, torch.int64)
Kind = Literal["contiguous", "slots", "blocks"]


@dataclass(frozen=True)
class CacheView:
    """A validated cache: keys and values (rows, capacity of a row, Hkv, D), and how sequence b finds its rows.

    ``where`` is None (row b), slots (B,), or a block table (B, max_blocks); ``lengths`` (B,) are valid tokens.
    """

    k: Tensor
    v: Tensor
    lengths: Tensor
    kind: Kind
    where: Tensor | None

    @property
    def page(self) -> int:
        """Tokens of one row of the cache."""
        return self.k.shape[1]

    @property
    def capacity(self) -> int:
        """Most tokens that a sequence can have."""
        blocks = self.where.shape[1] if self.kind == "blocks" and self.where is not None else 1
        return blocks * self.page

    def sequences(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Keys and values (1, length, Hkv, D) of each sequence: views, or gathered from blocks."""
        for b, length in enumerate(self.lengths.tolist()):
            yield self._sequence(self.k, b, length), self._sequence(self.v, b, length)

    def _sequence(self, x: Tensor, b: int, length: int) -> Tensor:
        if self.where is None:
            return x[b : b + 1, :length]
        if self.kind == "slots":
            slot = int(self.where[b])
            return x[slot : slot + 1, :length]
        blocks = self.where[b, : -(-length // self.page)].long()
        return x[blocks].flatten(0, 1)[None, :length]


def cache_view(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    slots: Tensor | None,
    block_table: Tensor | None,
    check: bool | None,
) -> CacheView:
    """Validate the tensors of one call. What is inside index tensors is read on a CPU, or when ``check`` says so."""
    checks.tensor_bshd("q", q)
    checks.no_nan("q", q)
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        checks.tensor_bshd(name, cache)
        checks.same_kind(name, cache, q)
    _shapes(q, k_cache, v_cache)
    if slots is not None and block_table is not None:
        raise ValueError("give slots or block_table, not both: a sequence lies in one slot or in blocks")
    _integers("lengths", lengths, (q.shape[0],), q)
    if block_table is not None:
        view = CacheView(k_cache, v_cache, lengths, "blocks", _table(block_table, k_cache, q))
    elif slots is not None:
        _integers("slots", slots, (q.shape[0],), q)
        view = CacheView(k_cache, v_cache, lengths, "slots", slots)
    else:
        view = _contiguous(q, k_cache, v_cache, lengths)
    if check or (check is None and q.device.type == "cpu"):
        _contents(view)
    return view


def _shapes(q: Tensor, k: Tensor, v: Tensor) -> None:
    if v.shape != k.shape:
        raise ValueError(f"v_cache has shape {tuple(v.shape)}; it must be that of k_cache, {tuple(k.shape)}")
    if k.shape[3] != q.shape[3]:
        raise ValueError(f"k_cache has head dim {k.shape[3]} but q has head dim {q.shape[3]}")
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"k_cache has {k.shape[2]} heads, which does not divide the {q.shape[2]} heads of q")
    if q.shape[1] < 1:
        raise ValueError("q needs at least one query a sequence, got 0")
    if q.shape[3] > 256:
        raise ValueError(f"head dim must be at most 256, got {q.shape[3]}")


def _integers(name: str, x: Tensor, shape: tuple[int, ...], q: Tensor) -> None:
    if not isinstance(x, Tensor) or x.dtype not in INTEGERS:
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{name} must be an int32 or int64 tensor, got {got}")
    if tuple(x.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, one entry a sequence of q, got {tuple(x.shape)}")
    if x.device != q.device:
        raise ValueError(f"{name} is on {x.device} but q is on {q.device}; a call needs one device")


def _table(table: Tensor, k: Tensor, q: Tensor) -> Tensor:
    if not isinstance(table, Tensor) or table.dtype != torch.int32:
        got = table.dtype if isinstance(table, Tensor) else type(table).__name__
        raise ValueError(f"block_table must be an int32 tensor (batch, max blocks), got {got}")
    if table.dim() != 2 or table.shape[0] != q.shape[0]:
        raise ValueError(
            f"block_table must have shape (batch, max blocks) with batch {q.shape[0]}, got {tuple(table.shape)}"
        )
    if table.device != q.device:
        raise ValueError(f"block_table is on {table.device} but q is on {q.device}; a call needs one device")
    if table.shape[1] > 1 and table.stride(1) != 1:
        raise ValueError(f"block_table must be contiguous in its last dimension, got strides {table.stride()}")
    block = k.shape[1]
    if block < 1 or block & (block - 1):
        raise ValueError(
            f"the block size (dimension 1 of k_cache) must be a power of two: 1, 2, ..., 16, ..., 256, ...; got {block}"
        )
    return table


def _contiguous(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> CacheView:
    if k.shape[0] != q.shape[0]:
        raise ValueError(
            f"k_cache has {k.shape[0]} rows but q has batch {q.shape[0]}; give slots to pick rows, or block_table"
        )
    return CacheView(k, v, lengths, "contiguous", None)


def _contents(view: CacheView) -> None:
    """Lengths within the capacity, slots and used table entries within the cache."""
    lengths = view.lengths.cpu()
    if len(lengths) and (int(lengths.min()) < 0 or int(lengths.max()) > view.capacity):
        wrong = int(((lengths < 0) | (lengths > view.capacity)).nonzero()[0])
        raise ValueError(
            f"lengths must lie in 0..{view.capacity}, the capacity of a sequence in this cache; "
            f"sequence {wrong} has {int(lengths[wrong])}"
        )
    if view.where is None:
        return
    rows, where = view.k.shape[0], view.where.cpu()
    if view.kind == "slots":
        used, name = torch.ones_like(where, dtype=torch.bool), "slots"
    else:
        needed = (lengths + view.page - 1) // view.page
        used, name = torch.arange(where.shape[1]) < needed[:, None], "block_table"
    bad = used & ((where < 0) | (where >= rows))
    if bad.any():
        place = tuple(bad.nonzero()[0].tolist())
        raise ValueError(
            f"{name} entries must lie in 0..{rows - 1}, the rows of the cache; {place} is {int(where[place])}"
        )
