"""What every program of an attention launch holds and does: what a memory inspector shows for FlashAttention-2."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from workbench.errors import BadInput
from workbench.systems.sm_schedule import Launch, Placed, Schedule

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    *("program id", "batch", "head", "row block", "SM", "wave", "smem bytes"),
    *("tiles done", "tiles masked", "tiles skipped", "bytes loaded", "bytes stored", "atomics"),
)


def programs(
    launch: Launch, schedule: Schedule, *, d: int, batch: int = 1, stages: int = 2, itemsize: int = 2
) -> pd.DataFrame:
    """One row a program in the order of starting, columns ``COLUMNS``.

    Args:
        launch: the forward launch; its heads count batch x heads and are split evenly over ``batch``.
        schedule: where :func:`workbench.systems.sm_schedule.schedule` placed its programs; the first
            that fill every slot are wave 0.
        d: head dimension. stages: K and V tiles that shared memory holds at once.
        itemsize: bytes of an element of Q, K, V and O; the log-sum-exp is float32.
    """
    import pandas as pd

    if d < 1 or stages < 1 or batch < 1 or launch.heads % batch:
        raise BadInput(f"d, stages, batch must be >= 1 and batch divide {launch.heads}; got {d}, {stages}, {batch}")
    numbers = {program: number for number, program in enumerate(launch.programs())}
    rows = [
        _row(launch, placed, numbers[placed.program], order // schedule.slots, d, batch, stages, itemsize)
        for order, placed in enumerate(schedule.placed)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _row(
    launch: Launch, placed: Placed, number: int, wave: int, d: int, batch: int, stages: int, itemsize: int
) -> tuple[Any, ...]:
    program = placed.program
    rows = range(launch.row_blocks) if program.row < 0 else [program.row]
    heads = launch.heads // batch
    queries = sum(min(launch.rows, launch.n - row * launch.rows) for row in rows)
    done = program.tiles
    masked = sum(_masked(launch, row) for row in rows)
    skipped = len(rows) * math.ceil(launch.n / launch.cols) - done
    keys = sum(min(launch.tiles_of(row) * launch.cols, launch.n) for row in rows)
    loaded = (queries + 2 * keys) * d * itemsize
    stored = queries * d * itemsize + queries * 4
    smem = (launch.rows + 2 * stages * launch.cols) * d * itemsize
    place = (number, program.head // heads, program.head % heads, "all" if program.row < 0 else program.row)
    return (*place, placed.sm, wave, smem, done, masked, skipped, loaded, stored, 0)


def _masked(launch: Launch, row: int) -> int:
    """Tiles of a row block that the diagonal cuts: those whose last key lies beyond the block's first query."""
    if not launch.causal:
        return 0
    whole = (row * launch.rows + 1) // launch.cols
    return launch.tiles_of(row) - whole
