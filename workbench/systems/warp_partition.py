"""How the warps of one program share a tile, and what crosses shared memory for it (Dao 2023, Sec. 3.3).

"split-K" (FlashAttention): every warp sees all of Q_i and owns a slice of K_j and V_j, so the partial products P V must
be summed over warps through shared memory. "split-Q" (FlashAttention-2): every warp owns rows of Q_i and needs nobody;
in return each of them reads all of K_j and V_j. :func:`run` computes a tile in both ways and counts every access.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.errors import BadInput
from workbench.systems.arena import Arena, Block

SPLITS = ("split-K", "split-Q")


@dataclass(frozen=True)
class Traffic:
    """Bytes through shared memory for one (i, j) tile: partial outputs, row statistics, reading K_j and V_j, Q_i."""

    exchange: int
    statistics: int
    keys: int
    queries: int

    @property
    def total(self) -> int:
        return self.exchange + self.statistics + self.keys + self.queries


def traffic(split: str, rows: int, cols: int, d: int, warps: int, *, itemsize: int = 2) -> Traffic:
    """Closed forms, accumulators in float32.

    split-K: W B_r d floats of partial output written and read, and W B_r row maxima and sums; K_j and V_j are read
    once, Q_i by each warp. split-Q: no exchange; Q_i once, K_j and V_j by each warp (W 2 B_c d elements).
    """
    _check(split, rows, cols, warps)
    keys, queries = 2 * cols * d * itemsize, rows * d * itemsize
    if split == "split-Q":
        return Traffic(0, 0, warps * keys, queries)
    return Traffic(2 * warps * rows * d * 4, 2 * warps * rows * 2 * 4, keys, warps * queries)


def run(split: str, q: Tensor, k: Tensor, v: Tensor, warps: int, *, itemsize: int = 2) -> tuple[Tensor, Traffic]:
    """Attention of one tile, (B_r, d) and twice (B_c, d), warp by warp: the output (B_r, d) and the counted bytes."""
    _check(split, len(q), len(k), warps)
    arena = Arena({"shared": None}, history=False)
    work = _by_rows if split == "split-Q" else _by_keys
    out = work(arena, q, k, v, warps, itemsize)
    return out, Traffic(*(_moved(arena, names) for names in (("O",), ("m", "l"), ("K", "V"), ("Q",))))


def _moved(arena: Arena, names: tuple[str, ...]) -> int:
    held = arena.contents()
    held = held[held.tensor.isin(names)]
    return int(((held.loads + held.stores) * held.bytes).sum())


def _by_rows(arena: Arena, q: Tensor, k: Tensor, v: Tensor, warps: int, itemsize: int) -> Tensor:
    """Each warp reads its rows of Q and all of K and V."""
    mine = arena.allocate("shared", "Q", (len(q) // warps, q.shape[1]), itemsize=itemsize)
    shared = [arena.allocate("shared", name, tuple(x.shape), itemsize=itemsize) for name, x in (("K", k), ("V", v))]
    out = []
    for rows in q.chunk(warps):
        _read([mine, *shared], arena)
        out.append(torch.softmax(rows @ k.T * q.shape[1] ** -0.5, 1) @ v)
    return torch.cat(out)


def _by_keys(arena: Arena, q: Tensor, k: Tensor, v: Tensor, warps: int, itemsize: int) -> Tensor:
    """Each warp reads all of Q and its slice of K and V, writes m, l and its partial O, and all are combined."""
    slices = [arena.allocate("shared", n, (len(k) // warps, k.shape[1]), itemsize=itemsize) for n in ("K", "V")]
    whole = arena.allocate("shared", "Q", tuple(q.shape), itemsize=itemsize)
    statistics = [arena.allocate("shared", name, (len(q),), itemsize=4) for name in ("m", "l")]
    partial = arena.allocate("shared", "O", tuple(q.shape), itemsize=4)
    parts = []
    for keys, values in zip(k.chunk(warps), v.chunk(warps), strict=True):
        _read([whole, *slices], arena)
        scores = q @ keys.T * q.shape[1] ** -0.5
        m = scores.amax(1, keepdim=True)
        weights = torch.exp(scores - m)
        parts.append((m, weights.sum(1, keepdim=True), weights @ values))
        for block in (*statistics, partial):
            arena.store(block)
    for _ in parts:
        _read([*statistics, partial], arena)
    highest = torch.stack([m for m, _, _ in parts]).amax(0)
    total = sum((torch.exp(m - highest) * part for m, part, _ in parts), torch.zeros_like(highest))
    return sum((torch.exp(m - highest) * part for m, _, part in parts), torch.zeros_like(q)) / total


def _read(blocks: list[Block], arena: Arena) -> None:
    for block in blocks:
        arena.load(block)


def _check(split: str, rows: int, cols: int, warps: int) -> None:
    if split not in SPLITS:
        raise BadInput(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    shared, name = (rows, "rows") if split == "split-Q" else (cols, "cols")
    if warps < 1 or shared < 1 or shared % warps:
        raise BadInput(
            f"{split} gives every warp as many of the {name}: {name}={shared} is not a multiple of warps={warps}"
        )
