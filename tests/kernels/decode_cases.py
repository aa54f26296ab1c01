"""Caches for the decode tests: the same kind of problem in every layout, with NaN wherever no token lies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LAYOUTS = ("contiguous", "slots", "paged-4", "paged-16", "paged-64", "paged-256")


def draw(
    layout: str,
    lengths: list[int],
    *,
    queries: int = 1,
    heads: int = 8,
    kv_heads: int = 2,
    dim: int = 32,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """q, k_cache, v_cache and the words that say where tokens lie; on the CPU, values representable in ``dtype``."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(len(lengths), queries, heads, dim, generator=generator).to(dtype)
    tokens = [torch.randn(2, n, kv_heads, dim, generator=generator).to(dtype) for n in lengths]
    place = {"contiguous": _rows, "slots": _slots}.get(layout) or (lambda *x: _blocks(*x, int(layout.split("-")[1])))
    k, v, where = place(tokens, generator, (kv_heads, dim), dtype)
    return q, k, v, {"lengths": torch.tensor(lengths, dtype=torch.int32), **where}


def _empty(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.full(shape, torch.nan, dtype=dtype)


def _rows(tokens: list[Tensor], generator: Any, tail: tuple[int, int], dtype: torch.dtype) -> tuple:
    k, v = (_empty(dtype, len(tokens), max(x.shape[1] for x in tokens) + 3, *tail) for _ in range(2))
    for b, (keys, values) in enumerate(tokens):
        k[b, : len(keys)], v[b, : len(values)] = keys, values
    return k, v, {}


def _slots(tokens: list[Tensor], generator: Any, tail: tuple[int, int], dtype: torch.dtype) -> tuple:
    longest = max(x.shape[1] for x in tokens) + 1
    slots = torch.randperm(len(tokens) + 2, generator=generator)[: len(tokens)]
    k, v = (_empty(dtype, len(tokens) + 2, longest + 7, *tail)[:, :longest] for _ in range(2))
    for slot, (keys, values) in zip(slots, tokens):
        k[slot, : len(keys)], v[slot, : len(values)] = keys, values
    return k, v, {"slots": slots}


def _blocks(tokens: list[Tensor], generator: Any, tail: tuple[int, int], dtype: torch.dtype, page: int) -> tuple:
    """Entries of the table that no token needs are far out of range: reading one would show."""
    most = max(-(-x.shape[1] // page) for x in tokens) + 1
    free = torch.randperm(len(tokens) * most, generator=generator).tolist()
    k, v = (_empty(dtype, len(free), page, *tail) for _ in range(2))
    table = torch.full((len(tokens), most), 2**30, dtype=torch.int32)
    for b, (keys, values) in enumerate(tokens):
        for i, start in enumerate(range(0, len(keys), page)):
            block = table[b, i] = free.pop()
            n = min(page, len(keys) - start)
            k[block, :n], v[block, :n] = keys[start : start + n], values[start : start + n]
    return k, v, {"block_table": table}
