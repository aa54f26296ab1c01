"""Closed-form counts of attention's HBM traffic and arithmetic, in elements and operations per head.

N queries and keys, head dimension d, T_r row blocks, T_c column blocks (Dao et al. 2022, Algorithms 0 to 5; the counts
follow from the algorithms' load and store lines). They hold for ragged N: a loop over all row blocks touches N rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from workbench.errors import BadInput


@dataclass(frozen=True)
class Tiling:
    """Block sizes B_r x B_c; :meth:`of_sram` is the paper's rule."""

    rows: int
    cols: int

    def __post_init__(self) -> None:
        if self.rows < 1 or self.cols < 1:
            raise BadInput(f"block sizes must be >= 1, got {self.rows} x {self.cols}")

    @classmethod
    def of_sram(cls, sram: int, d: int) -> Tiling:
        """B_c = ceil(M / 4d), B_r = min(B_c, d) for M = ``sram`` **elements** (Algorithm 1, line 1)."""
        if d < 1:
            raise BadInput(f"d must be a head dimension >= 1, got {d}")
        if sram < 4 * d:
            raise BadInput(f"sram must hold at least four rows, 4 * d = {4 * d} elements, got {sram}")
        cols = math.ceil(sram / (4 * d))
        return cls(min(cols, d), cols)

    def grid(self, n: int) -> tuple[int, int]:
        """(T_r, T_c) for n queries and keys."""
        return math.ceil(n / self.rows), math.ceil(n / self.cols)


def standard_forward(n: int, d: int, *, extra_passes: int = 0, stored_masks: int = 0) -> int:
    """4 N^2 + 4 N d; a masking or dropout pass adds 2 N^2, or 3 N^2 when the mask itself is read."""
    return (4 + 2 * extra_passes + 3 * stored_masks) * n * n + 4 * n * d


def standard_backward(n: int, d: int, *, extra_passes: int = 0, stored_masks: int = 0) -> int:
    """7 N^2 + 9 N d (dV accumulates, so it is read and written), plus the same price for every elementwise pass."""
    return (7 + 2 * extra_passes + 3 * stored_masks) * n * n + 9 * n * d


def flash_forward(n: int, d: int, tiling: Tiling, live: Sequence[Sequence[bool]] | None = None) -> int:
    """2 N d + T_c (3 N d + 4 N); with a block mask only the live (i, j) pay the second term."""
    return 2 * n * d + _rows_touched(n, tiling, live) * (3 * d + 4)


def flash_backward(n: int, d: int, tiling: Tiling, live: Sequence[Sequence[bool]] | None = None) -> int:
    """4 N d + T_c (5 N d + 2 N)."""
    return 4 * n * d + _rows_touched(n, tiling, live) * (5 * d + 2)


def flash2_forward(n: int, d: int, tiling: Tiling, live: Sequence[Sequence[bool]] | None = None) -> int:
    """2 N d + N + 2 N d T_r: row blocks outside, so O and its statistics are written once."""
    return 2 * n * d + n + _cols_touched(n, tiling, live) * 2 * d


def standard_flops(n: int, d: int, *, backward: bool = False) -> int:
    """Multiply-adds count twice: two products forward, four backward. Elementwise work is left out."""
    return (8 if backward else 4) * n * n * d


def flash_flops(n: int, d: int, *, backward: bool = False, density: float = 1.0) -> int:
    """As the standard algorithm, but the backward pass computes the scores again (a fifth product)."""
    return round((10 if backward else 4) * n * n * d * density)


def density(live: Sequence[Sequence[bool]]) -> float:
    """Share of live blocks s."""
    cells = [bool(x) for row in live for x in row]
    return sum(cells) / len(cells)


def _rows_touched(n: int, tiling: Tiling, live: Sequence[Sequence[bool]] | None) -> int:
    """Sum over live (i, j) of the rows of block i."""
    t_r, t_c = tiling.grid(n)
    if live is None:
        return n * t_c
    return sum(min(tiling.rows, n - i * tiling.rows) * sum(map(bool, live[i])) for i in range(t_r))


def _cols_touched(n: int, tiling: Tiling, live: Sequence[Sequence[bool]] | None) -> int:
    t_r, t_c = tiling.grid(n)
    if live is None:
        return n * t_r
    return sum(min(tiling.cols, n - j * tiling.cols) for i in range(t_r) for j in range(t_c) if live[i][j])
