"""One arena for every memory system: named blocks in tiers, with every load and store counted in bytes.

A tier is a memory of some capacity (HBM, SRAM, registers; DRAM and flash; device and host). A block is a part of a
tensor that lives in a tier from one step to another. Moving data between tiers is a load from the slower tier or a
store to it; the arena counts, the caller computes. ``contents()`` is what the memory inspector shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from workbench.errors import BadInput, MemoryError_

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("tier", "tensor", "block", "shape", "bytes", "loads", "stores", "live from step", "live to step")


@dataclass
class Block:
    """A part of a tensor in a tier. ``loads`` and ``stores`` count moves of this block, ``died`` is exclusive."""

    tier: str
    tensor: str
    index: tuple[int, ...]
    shape: tuple[int, ...]
    itemsize: int
    born: int
    died: int | None = None
    loads: int = 0
    stores: int = 0

    @property
    def elements(self) -> int:
        total = 1
        for size in self.shape:
            total *= size
        return total

    @property
    def nbytes(self) -> int:
        return self.elements * self.itemsize


@dataclass(frozen=True)
class Traffic:
    """Elements and bytes that crossed a tier's door."""

    loaded: int
    stored: int
    loaded_bytes: int
    stored_bytes: int

    @property
    def elements(self) -> int:
        return self.loaded + self.stored

    @property
    def nbytes(self) -> int:
        return self.loaded_bytes + self.stored_bytes


@dataclass
class Arena:
    """Tiers with capacities in bytes (``None`` = unbounded).

    ``history=False`` keeps only the blocks alive now (and all counters), for long simulations.
    """

    capacity: Mapping[str, int | None]
    history: bool = True
    step: int = 0
    flops: int = 0
    _live: dict[tuple[str, str, tuple[int, ...]], Block] = field(default_factory=dict)
    _past: list[Block] = field(default_factory=list)
    _used: dict[str, int] = field(default_factory=dict)
    _peak: dict[str, int] = field(default_factory=dict)
    _moved: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.capacity:
            raise BadInput("capacity must name at least one tier, for example {'HBM': None, 'SRAM': 65536}")
        self._used = dict.fromkeys(self.capacity, 0)
        self._peak = dict.fromkeys(self.capacity, 0)
        self._moved = {tier: [0, 0, 0, 0] for tier in self.capacity}

    def allocate(
        self, tier: str, tensor: str, shape: Iterable[int], *, index: tuple[int, ...] = (), itemsize: int = 4
    ) -> Block:
        """Make room for a block; raises ``MemoryError_`` when the tier is full."""
        self._known(tier)
        block = Block(tier, tensor, tuple(index), tuple(int(n) for n in shape), itemsize, self.step)
        limit = self.capacity[tier]
        if limit is not None and self._used[tier] + block.nbytes > limit:
            held = ", ".join(sorted({b.tensor for b in self._live.values() if b.tier == tier})) or "nothing"
            raise MemoryError_(
                f"{tensor}{list(index)} needs {block.nbytes} bytes in {tier}; {self._used[tier]} of {limit} are used"
                f" (by {held}); free a block or choose a smaller one"
            )
        if (tier, tensor, block.index) in self._live:
            raise MemoryError_(f"{tensor}{list(index)} already lives in {tier}; free it before allocating it again")
        self._live[tier, tensor, block.index] = block
        self._used[tier] += block.nbytes
        self._peak[tier] = max(self._peak[tier], self._used[tier])
        return block

    def free(self, block: Block) -> None:
        if self._live.pop((block.tier, block.tensor, block.index), None) is not block:
            raise MemoryError_(f"{block.tensor}{list(block.index)} is not alive in {block.tier}; it was freed before")
        block.died = self.step + 1
        self._used[block.tier] -= block.nbytes
        if self.history:
            self._past.append(block)

    def block(self, tier: str, tensor: str, index: tuple[int, ...] = ()) -> Block:
        self._known(tier)
        try:
            return self._live[tier, tensor, tuple(index)]
        except KeyError:
            raise MemoryError_(f"{tensor}{list(index)} is not alive in {tier}") from None

    def load(self, block: Block, into: str | None = None) -> Block | None:
        """Count a read of ``block``; with ``into`` a copy of it comes to live in that tier."""
        block.loads += 1
        moved = self._moved[block.tier]
        moved[0] += block.elements
        moved[2] += block.nbytes
        if into is None:
            return None
        return self.allocate(into, block.tensor, block.shape, index=block.index, itemsize=block.itemsize)

    def store(self, block: Block) -> None:
        """Count a write of ``block``."""
        block.stores += 1
        moved = self._moved[block.tier]
        moved[1] += block.elements
        moved[3] += block.nbytes

    def tick(self) -> int:
        """Go to the next step."""
        self.step += 1
        return self.step

    def traffic(self, tier: str) -> Traffic:
        self._known(tier)
        return Traffic(*self._moved[tier])

    def used(self, tier: str) -> int:
        self._known(tier)
        return self._used[tier]

    def peak(self, tier: str) -> int:
        """Most bytes that were alive at once."""
        self._known(tier)
        return self._peak[tier]

    def contents(self, step: int | None = None) -> pd.DataFrame:
        """One row per block, all that ever lived (``step=None``) or those alive at ``step``; columns ``COLUMNS``."""
        import pandas as pd

        blocks = [*self._past, *self._live.values()]
        if step is not None:
            if not 0 <= step <= self.step:
                raise BadInput(f"step must lie in 0..{self.step}, got {step}")
            blocks = [b for b in blocks if b.born <= step and (b.died is None or step < b.died)]
        rows = [_row(b, self.step) for b in sorted(blocks, key=lambda b: (b.tier, b.born, b.tensor, b.index))]
        return pd.DataFrame(rows, columns=list(COLUMNS))

    def _known(self, tier: str) -> None:
        if tier not in self.capacity:
            raise BadInput(f"tier must be one of {', '.join(self.capacity)}, got {tier!r}")


def _row(block: Block, now: int) -> tuple[object, ...]:
    last = now if block.died is None else block.died - 1
    where = ",".join(map(str, block.index))
    shape = "x".join(map(str, block.shape))
    return (block.tier, block.tensor, where, shape, block.nbytes, block.loads, block.stores, block.born, last)
