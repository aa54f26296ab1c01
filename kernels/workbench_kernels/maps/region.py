"""Exact probabilities: a region of the map, and the mass on chosen keys."""

from __future__ import annotations

import torch
from torch import Tensor

from workbench_kernels.maps.problem import Look
from workbench_kernels.maps.view import EVERY, pack
from workbench_kernels.masking import Index

#: Elements of the largest temporary tile, 16 MiB of float32.
CELLS = 1 << 22


def region(look: Look, rows: Index, cols: Index) -> Tensor:
    """(B, heads, R, C) exact probabilities."""
    looked = pack(look, rows, cols)
    return looked.unpack(looked.log2_probs_of_all(rows, cols).exp2_())


def mass(look: Look, keys: Tensor) -> Tensor:
    """(B, heads, Nq): probability on the positions ``keys`` (n,), streamed over row blocks."""
    looked = pack(look, EVERY, keys)
    step = max(1, CELLS // max(1, len(keys) * len(looked.q)))
    total = looked.q.new_empty(looked.q.shape[:2])
    for start in range(0, look.queries, step):
        rows = slice(start, min(start + step, look.queries))
        torch.sum(looked.log2_probs_of_keys(rows, keys).exp2_(), -1, out=total[:, rows])
        look.tell(rows.stop, look.queries)
    return looked.unpack(total)
