"""The whole map at a lower resolution: mean, sum or max of the exact probabilities over tiles, memory linear in N."""

from __future__ import annotations

import torch
from torch import Tensor

from workbench_kernels.maps.problem import Bins, Look
from workbench_kernels.maps.view import Looked, pack

CELLS = 1 << 19  # elements of the working tile, 2 MiB of float32


def pooled(look: Look, rows: Bins, cols: Bins, reduce: str) -> Tensor:
    """(B, heads, R, C)."""
    looked = pack(look)
    n = looked.q.shape[0]
    out = looked.q.new_zeros(n, rows.count, cols.count)
    bins_r, bins_c = _bins_per_tile(n, rows, cols)
    buffer = looked.q.new_empty(n * bins_r * rows.width * bins_c * cols.width)
    for r in range(0, rows.count, bins_r):
        r_stop = min(r + bins_r, rows.count)
        _row_of_tiles(looked, (rows, r, r_stop), (cols, bins_c), reduce, buffer, out)
        look.tell(r_stop, rows.count)
    if reduce == "mean":
        area = rows.sizes()[:, None] * cols.sizes()[None, :]
        out /= area.to(out)
    return looked.unpack(out)


def _bins_per_tile(n: int, rows: Bins, cols: Bins) -> tuple[int, int]:
    """How many bins of rows and columns one working tile spans: about CELLS elements, wider than high."""
    across = max(1, min(cols.count, 512 // cols.width))
    down = max(1, min(rows.count, CELLS // max(1, n * across * cols.width * rows.width)))
    return down, across


def _row_of_tiles(
    looked: Looked, rows: tuple[Bins, int, int], cols: tuple[Bins, int], reduce: str, buffer: Tensor, out: Tensor
) -> None:
    row_bins, r, r_stop = rows
    col_bins, across = cols
    top, bottom = row_bins.edge(r), row_bins.edge(r_stop)
    low, high = looked.look.masking.span(top, bottom)
    for c in range(0, col_bins.count, across):
        c_stop = min(c + across, col_bins.count)
        left, right = col_bins.edge(c), col_bins.edge(c_stop)
        if left >= high or right <= low:
            continue
        tile = buffer[: out.shape[0] * (bottom - top) * (right - left)].view(out.shape[0], bottom - top, right - left)
        looked.log2_probs(slice(top, bottom), slice(left, right), out=tile).exp2_()
        small = _reduce(_reduce(tile, row_bins, r, r_stop, 1, reduce), col_bins, c, c_stop, 2, reduce)
        out[:, r:r_stop, c:c_stop] = small


def _reduce(tile: Tensor, bins: Bins, first: int, last: int, dim: int, reduce: str) -> Tensor:
    """Sum or maximum over the bins first..last-1 along ``dim``."""
    if bins.even:
        split = tile.unflatten(dim, (last - first, bins.width))
        return split.amax(dim + 1) if reduce == "max" else split.sum(dim + 1)
    start = bins.edge(first)
    parts = [tile.narrow(dim, bins.edge(b) - start, bins.edge(b + 1) - bins.edge(b)) for b in range(first, last)]
    return torch.stack([part.amax(dim) if reduce == "max" else part.sum(dim) for part in parts], dim)
