"""Products whose sum is long and whose result is small, cut into parts, so that a whole GPU works on them.

The gradient of a stacked weight is such a product: (seeds, out, batch x tokens) times (seeds, batch x tokens, in). The
library gives each tile of the result to one multiprocessor, which then adds up tens of thousands of terms alone, while
the others wait; for a plain matrix product it cuts the sum, for a batch of them it does not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

#: Multiprocessors to keep busy, side of a tile, and the shortest part worth a tile of its own.
BUSY, TILE, PART = 264, 64, 256


class LongSums(TorchDispatchMode):
    """Within it ``bmm`` cuts long sums, in forward and backward passes, below ``vmap`` and ``grad``.

    Every operation passes through Python, so it is for steps that are recorded once and replayed.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.bmm.default:
            return long_bmm(*args)
        return func(*args, **(kwargs or {}))


def long_bmm(a: Tensor, b: Tensor) -> Tensor:
    """a (n, m, k) times b (n, k, p): the product of each pair, its sum over k in parts where that pays."""
    parts = parts_of(a.shape[0], a.shape[1], a.shape[2], b.shape[2])
    if parts == 1:
        return torch.ops.aten.bmm.default(a, b)
    left = a.unflatten(2, (parts, -1)).transpose(1, 2).flatten(0, 1)  # n·parts m k/parts
    right = b.unflatten(1, (parts, -1)).flatten(0, 1)  # n·parts k/parts p
    return torch.ops.aten.bmm.default(left, right).unflatten(0, (-1, parts)).sum(1)


def parts_of(n: int, m: int, k: int, p: int) -> int:
    """A power of two that divides k: enough tiles for the GPU, none of them with fewer than ``PART`` terms."""
    tiles = max(1, n * -(-m // TILE) * -(-p // TILE))
    parts = 1
    while tiles * parts < BUSY and k % (2 * parts) == 0 and k // (2 * parts) >= PART:
        parts *= 2
    return parts
