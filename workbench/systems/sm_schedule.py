"""How the programs of an attention kernel fall onto a GPU's multiprocessors (SMs): waves, list scheduling, utilisation.

One program computes one row block of one head (FlashAttention-2, grid "rows") or all row blocks of one head in turn
(the first version's parallelism, grid "heads"). Its length is the number of key tiles it visits; with a causal mask
programs have unequal lengths, and the order in which they are started matters (Dao 2023, Sec. 3.2).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workbench.errors import BadInput

if TYPE_CHECKING:
    import pandas as pd

GRIDS = ("rows", "heads")
ORDERS = ("launch", "reversed", "longest-first", "persistent")
#: Multiprocessors of the paper's GPU and of this project's.
A100_SMS, HOPPER_SMS = 108, 132
MOST_PROGRAMS = 200_000


@dataclass(frozen=True)
class Program:
    """``tiles`` is its length; ``row`` is -1 for a program that owns a whole head."""

    head: int
    row: int
    tiles: int


@dataclass(frozen=True)
class Launch:
    """A forward launch: ``heads`` counts batch x heads, ``rows`` x ``cols`` is the tile B_r x B_c."""

    heads: int
    n: int
    rows: int = 128
    cols: int = 128
    causal: bool = False
    grid: str = "rows"

    def __post_init__(self) -> None:
        for name in ("heads", "n", "rows", "cols"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.grid not in GRIDS:
            raise BadInput(f"grid must be one of {', '.join(GRIDS)}, got {self.grid!r}")
        if self.heads * self.row_blocks > MOST_PROGRAMS:
            count = self.heads * self.row_blocks
            raise BadInput(
                f"{self.heads} heads x {self.row_blocks} row blocks = {count} programs; at most {MOST_PROGRAMS}"
            )

    @property
    def row_blocks(self) -> int:
        return math.ceil(self.n / self.rows)

    def tiles_of(self, row: int) -> int:
        """Key tiles that row block ``row`` visits; a causal one skips those beyond its last query."""
        last = min((row + 1) * self.rows, self.n) if self.causal else self.n
        return math.ceil(last / self.cols)

    def programs(self) -> list[Program]:
        """In the order in which a grid numbers them: row blocks run fastest."""
        lengths = [self.tiles_of(row) for row in range(self.row_blocks)]
        if self.grid == "heads":
            return [Program(head, -1, sum(lengths)) for head in range(self.heads)]
        return [Program(head, row, tiles) for head in range(self.heads) for row, tiles in enumerate(lengths)]


@dataclass(frozen=True)
class Placed:
    """A program on a slot (``sm`` of ``sms`` x occupancy) from ``start`` to ``end``, in tile times."""

    program: Program
    sm: int
    start: float
    end: float


@dataclass(frozen=True)
class Schedule:
    """``placed`` in the order of starting; ``slots`` = multiprocessors x programs that fit on one."""

    placed: tuple[Placed, ...]
    slots: int

    @property
    def makespan(self) -> float:
        """Tile times until the last program has finished."""
        return max(p.end for p in self.placed)

    @property
    def utilisation(self) -> float:
        """Share of the slots' time that computes tiles."""
        return sum(p.program.tiles for p in self.placed) / (self.slots * self.makespan)

    def frame(self) -> pd.DataFrame:
        """One row a program: sm, start, end, head, row, tiles."""
        import pandas as pd

        rows = [(p.sm, p.start, p.end, p.program.head, p.program.row, p.program.tiles) for p in self.placed]
        return pd.DataFrame(rows, columns=["sm", "start", "end", "head", "row", "tiles"])


def ordered(programs: Sequence[Program], order: str) -> list[Program]:
    """ "launch": as numbered. "reversed": last row block first, head by head. "longest-first": over all heads."""
    if order not in ORDERS:
        raise BadInput(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
    if order == "reversed":
        return sorted(programs, key=lambda p: (p.head, -p.row))
    if order in ("longest-first", "persistent"):
        return sorted(programs, key=lambda p: -p.tiles)
    return list(programs)


def schedule(
    launch: Launch, *, sms: int = HOPPER_SMS, occupancy: int = 1, order: str = "launch", start_cost: float = 0.0
) -> Schedule:
    """Place every program of a launch.

    The hardware gives the next program to the slot that is free first (list scheduling). "persistent" starts one
    program a slot; slot s works through numbers s, s + slots, s + 2 slots, ... of the longest-first list and pays
    ``start_cost`` (tile times for starting a program: its Q tile, empty pipelines) once instead of every time.
    """
    if sms < 1 or occupancy < 1:
        raise BadInput(f"sms and occupancy must be >= 1, got sms={sms}, occupancy={occupancy}")
    if start_cost < 0:
        raise BadInput(f"start_cost must be >= 0 tile times, got {start_cost}")
    queue, slots = ordered(launch.programs(), order), sms * occupancy
    place = _strided if order == "persistent" else _first_free
    return Schedule(tuple(place(queue, slots, start_cost)), slots)


def _first_free(queue: Iterable[Program], slots: int, cost: float) -> Iterable[Placed]:
    free = [(0.0, slot) for slot in range(slots)]
    for program in queue:
        now, slot = free[0]
        end = now + cost + program.tiles
        heapq.heapreplace(free, (end, slot))
        yield Placed(program, slot, now, end)


def _strided(queue: Sequence[Program], slots: int, cost: float) -> Iterable[Placed]:
    now = [cost] * slots
    for number, program in enumerate(queue):
        slot = number % slots
        end = now[slot] + program.tiles
        yield Placed(program, slot, now[slot], end)
        now[slot] = end


def waves(programs: int, *, sms: int = HOPPER_SMS, occupancy: int = 1) -> int:
    """ceil(programs / (SMs x occupancy)): how many rounds equal programs need."""
    return math.ceil(programs / (sms * occupancy))


def wave_time(launch: Launch, *, sms: int = HOPPER_SMS, occupancy: int = 1) -> float:
    """The wave model for programs of equal length: waves x tiles of a program, in tile times."""
    programs = launch.programs()
    if len({program.tiles for program in programs}) > 1:
        raise BadInput("the wave model needs programs of equal length (no causal mask, grid 'rows' or 'heads')")
    return waves(len(programs), sms=sms, occupancy=occupancy) * programs[0].tiles


def knee(share: float, *, sms: int, occupancy: int = 1) -> int:
    """Fewest programs of equal length that keep at least ``share`` of the slots busy in one wave."""
    if not 0 < share <= 1:
        raise BadInput(f"share must lie in (0, 1], got {share}")
    return math.ceil(share * sms * occupancy)
