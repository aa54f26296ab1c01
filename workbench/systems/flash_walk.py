"""The FlashAttention loop as tidy frames, one moment a tile: what a tile walker shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.checks import whole
from workbench.errors import BadInput
from workbench.systems import block_patterns, flash_simulator, io_counts
from workbench.systems.arena import Arena
from workbench.systems.flash_simulator import Step
from workbench.systems.io_counts import Tiling

if TYPE_CHECKING:
    import pandas as pd

MOST_TILES, STRIP_ROWS = 256, 16


@dataclass(frozen=True)
class Walk:
    """Frames of one walk, all keyed by ``step``.

    tiles: i, j, step (-1 = skipped); counters: step, reads, writes (HBM elements so far); contents: the arena's frame;
    strips: step, row, m, l, out (norm of the running output row); tiling, sram (bytes used at most) and n, d.
    """

    tiles: pd.DataFrame
    counters: pd.DataFrame
    contents: pd.DataFrame
    strips: pd.DataFrame
    tiling: Tiling
    n: int
    d: int
    sram_bytes: int
    standard: int

    @property
    def steps(self) -> int:
        return int(self.tiles.step.max()) + 1


def walk(
    *,
    n: int = 64,
    d: int = 16,
    sram: int = 1024,
    order: str = "v1",
    causal: bool = False,
    live: Tensor | None = None,
    seed: int = 0,
    tiling: Tiling | None = None,
) -> Walk:
    """Walk one head of random data. ``sram`` counts elements; a causal walk skips tiles above the diagonal.

    Raises BadInput for a grid of more than 256 tiles: nobody can follow it.
    """
    import pandas as pd

    n = whole("n", n, more=" (tokens)")
    tiling = tiling or Tiling.of_sram(sram, d)
    t_r, t_c = tiling.grid(n)
    if t_r * t_c > MOST_TILES:
        raise BadInput(f"n={n} with blocks {tiling.rows} x {tiling.cols} has {t_r * t_c} tiles; {MOST_TILES} are shown")
    live = _live(live, tiling, t_r, t_c, causal)
    watch = _Watch(max(1, n // STRIP_ROWS))
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(n, d, generator=generator) for _ in range(3))
    words: dict[str, Any] = {"order": order, "live": live, "causal": causal, "history": True}
    run = flash_simulator.flash_forward(q, k, v, tiling, on_step=watch.see, **words)
    visited = {(i, j): step for step, (i, j) in enumerate(watch.visited)}
    grid = [(i, j, visited.get((i, j), -1)) for i in range(t_r) for j in range(t_c)]
    return Walk(
        pd.DataFrame(grid, columns=["i", "j", "step"]),
        _counters(watch, run.arena),
        run.arena.contents(),
        pd.DataFrame(watch.rows, columns=["step", "row", "m", "l", "out"]),
        tiling,
        n,
        d,
        run.arena.peak("SRAM"),
        io_counts.standard_forward(n, d),
    )


def _live(live: Tensor | None, tiling: Tiling, t_r: int, t_c: int, causal: bool) -> Tensor | None:
    if not causal:
        return live
    band = block_patterns.causal(tiling.rows, tiling.cols, t_r, t_c)
    return band if live is None else live & band


class _Watch:
    """Collects what the simulator shows after every tile."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.visited: list[tuple[int, int]] = []
        self.moved: list[tuple[int, int, int]] = []
        self.rows: list[tuple[int, int, float, float, float]] = []

    def see(self, step: Step) -> None:
        self.visited.append((step.i, step.j))
        self.moved.append((step.number, step.read, step.written))
        norm = step.out.norm(dim=1)
        for row in range(0, len(norm), self.every):
            self.rows.append((step.number, row, float(step.m[row]), float(step.row_sum[row]), float(norm[row])))


def _counters(watch: _Watch, arena: Arena) -> pd.DataFrame:
    """HBM elements moved after each tile; the last row block of order v2 is written after its last tile."""
    import pandas as pd

    frame = pd.DataFrame(watch.moved, columns=["step", "reads", "writes"])
    if len(frame):
        frame.loc[len(frame) - 1, "writes"] = arena.traffic("HBM").stored
    return frame


def partial_softmax(*, n: int = 96, d: int = 16, block: int = 8, row: int = 0, seed: int = 0) -> pd.DataFrame:
    """The trace of one query over key blocks: keys, m, l, norm of O, distance from attention on the prefix."""
    import pandas as pd

    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(3))
    found: list[dict[str, float]] = []

    def see(step: Step) -> None:
        keys = min((step.j + 1) * block, n)
        weights = torch.softmax(q[row] @ k[:keys].T * d**-0.5, 0)
        gap = float((step.out[0] - weights @ v[:keys]).abs().max())
        m, total = float(step.m[0]), float(step.row_sum[0])
        found.append({"keys": keys, "m": m, "l": total, "out": float(step.out[0].norm()), "gap": gap})

    one_query = q[row : row + 1].expand(n, d).contiguous()  # every row block repeats it; the first is watched
    flash_simulator.flash_forward(one_query, k, v, Tiling(n, block), on_step=see)
    return pd.DataFrame(found)
