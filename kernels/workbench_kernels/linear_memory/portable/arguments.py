"""What the kernels are given, as named tuples: tensors with strides, the rows of the memory, sizes, constants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

MAPS = {"identity": 0, "elu+1": 1, "relu": 2, "taylor": 3}
GATES = {"none": 0, "scalar": 1, "vector": 2}


class Strided(NamedTuple):
    """(B, S, H, D), or (B, S, H) for what is one number a head; the last dimension is contiguous. None = not there."""

    data: Any
    b: int
    n: int
    h: int


class Rows(NamedTuple):
    """The rows of the memory: a batch, or packed documents. Nothing of it is known on the host."""

    offsets: Any  # (rows + 1,) first tokens, or None: row = batch
    chunks: Any  # (rows + 1,) first chunks
    places: Any  # (chunks, 2) row and chunk in the row of every chunk, -1 = there is none
    length: int


class Sizes(NamedTuple):
    heads: int
    group: int  # query heads a key head
    dim: int  # of the features
    raw: int  # of q and k before the feature map
    value_dim: int  # with the column of ones
    width: int  # of the values without it
    segments: int = 1  # pieces of a row that run beside each other


class Flags(NamedTuple):
    """Compile-time constants (each wrapped in ``tl.constexpr``)."""

    C: Any  # tokens of a chunk
    BK: Any  # key features of a tile
    BV: Any  # value components of a tile
    BR: Any  # raw components, all of them (Taylor map)
    MAP: Any
    GATE: Any
    DELTA: Any
    ONES: Any  # a column of ones follows the values
    LEVELS: Any  # log2 of C
    X: Any  # type of the factors of a product
    PRECISION: Any  # of products of float32
    SOLVE: Any  # precision of the delta rule's triangular system


@dataclass(frozen=True)
class Plan:
    """A call: its rows, sizes, and the numbers the launches need."""

    rows: Rows
    sizes: Sizes
    count: int  # rows
    chunks: int  # chunks of all rows, at most
    chunk: int
    map: int
    gate: int
    delta: bool
    wide: torch.dtype  # of the factors of a product and of what is stored between kernels
    precision: str
    scale: float
    tiled: tuple[int, int]  # key features and value components that tiles are made for, at least those of the sizes
    device: torch.device
    given: Mapping[str, Any]  # tiles and numbers in place of the frozen ones


class Systems(NamedTuple):
    """The delta rule's triangular systems, and what is made with them."""

    inverses: Tensor | None  # None, as w: another rule, u are its values
    w: Tensor | None
    u: Tensor
    grown: Tensor | None  # exp of the running log decay of the chunk, up to a token
    left: Tensor | None  # from a token to the chunk's end


class States(NamedTuple):
    """What the forward pass makes before its reads, and the backward pass needs."""

    inverses: Tensor | None
    w: Tensor | None
    grown: Tensor | None
    left: Tensor | None
    h: Tensor  # at the chunks' starts
    written: Tensor
    decays: Tensor | None  # log decays of the segments


def strided(x: Tensor | None) -> Strided:
    return Strided(None, 0, 0, 0) if x is None else Strided(x, x.stride(0), x.stride(1), x.stride(2))


def optional(*tensors: Tensor | None) -> tuple[Strided | None, ...]:
    """As :func:`strided`, for arguments whose absence is to leave no trace in the compiled code."""
    return tuple(None if x is None else strided(x) for x in tensors)


def rows_of(offsets: Tensor | None, batch: int, length: int, chunk: int) -> tuple[Rows, int, int]:
    """(rows, how many, chunks at most). Made on the device, without waiting for it."""
    if offsets is None:
        return Rows(None, None, None, length), batch, batch * triton.cdiv(length, chunk)
    count = len(offsets) - 1
    most = length // chunk + count
    ends = offsets.to(torch.int64)
    starts = torch.zeros_like(ends)
    starts[1:] = ((ends[1:] - ends[:-1] + chunk - 1) // chunk).cumsum(0)
    ids = torch.arange(most, device=offsets.device)
    row = torch.searchsorted(starts, ids, right=True) - 1
    there = ids < starts[-1]
    place = torch.stack([row, ids - starts[row.clamp(max=count - 1)]], 1)
    places = torch.where(there[:, None], place, -1).to(torch.int32)
    return Rows(ends, starts, places, length), count, most


def flags_of(plan: Plan, *, keys: int, values: int) -> Flags:
    kinds = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}
    solve = "tf32" if plan.wide == torch.bfloat16 else plan.precision
    ones, levels = plan.sizes.value_dim > plan.sizes.width, plan.chunk.bit_length() - 1
    raw = plan.sizes.raw if plan.map == MAPS["taylor"] else plan.tiled[0]
    tiles = (plan.chunk, keys, values, tile(raw, 256))
    rule = (plan.map, plan.gate, plan.delta, ones, levels)
    return Flags(*map(tl.constexpr, (*tiles, *rule, kinds[plan.wide], plan.precision, solve)))


def tile(size: int, most: int) -> int:
    """A power of two from 16 to ``most``."""
    return min(most, max(16, triton.next_power_of_2(size)))
