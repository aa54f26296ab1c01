"""One log for every key-value allocator: which blocks were mapped, inherited, shared, taken back, when and for whom."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

#: create/release: physical memory made and given back. map/unmap: seen at an address. inherit: a new request takes
#: over the blocks of a finished one. share: a block is seen by two requests. copy: copy-on-write.
KINDS = ("create", "release", "admit", "finish", "inherit", "map", "unmap", "share", "copy")
COLUMNS = ("step", "kind", "slot", "request", "blocks", "groups", "source")
#: The inspector's table of every allocator.
CONTENTS = (
    "slot", "request id", "state", "len", "mapped blocks", "needed blocks", "waste bytes", "virtual range",
    "physical page ids", "shared with", "mapped at step", "source",
)  # fmt: skip


@dataclass
class KVLog:
    """Append-only; ``groups`` counts physical page groups (or blocks of a paged pool) that an event touched."""

    step: int = 0
    keep: bool = True
    events: list[tuple] = field(default_factory=list)
    counts: Counter = field(default_factory=Counter)

    def add(
        self, kind: str, slot: int = -1, request: int = -1, blocks: int = 0, groups: int = 0, source: str = ""
    ) -> None:
        self.counts[kind] += groups or 1
        if source:
            self.counts[f"{kind} {source}"] += groups or 1
        if self.keep:
            self.events.append((self.step, kind, slot, request, blocks, groups, source))

    def frame(self) -> pd.DataFrame:
        """One row an event; columns ``COLUMNS``."""
        import pandas as pd

        return pd.DataFrame(self.events, columns=list(COLUMNS))
