"""Exact probabilities: a region of the map, and the mass on chosen keys."""

from __future__ import annotations

import torch
from torch import Tensor

from workbench_kernels.maps.view import Looked
from workbench_kernels.masking import Index

#: Elements of the largest temporary tile, 16 MiB of float32.
CELLS = 1 << 22


def region(looked: Looked, rows: Index, cols: Index) -> Tensor:
    """(B, heads, R, C) exact probabilities."""
    return looked.unpack(looked.log2_probs(rows, cols).exp2_())


def mass(looked: Looked, keys: Index) -> Tensor:
    """(B, heads, Nq): probability on a set of keys, streamed over row blocks."""
    width = looked.k[:1, keys].shape[1]
    step = max(1, CELLS // max(1, width * looked.q.shape[0]))
    total = looked.q.new_empty(looked.q.shape[0], looked.queries)
    for start in range(0, looked.queries, step):
        rows = slice(start, min(start + step, looked.queries))
        torch.sum(looked.log2_probs(rows, keys).exp2_(), -1, out=total[:, rows])
        looked.tell(rows.stop, looked.queries)
    return looked.unpack(total)
