"""``window``: the newest tokens only, no sinks. Shows what attention sinks are good for."""

from __future__ import annotations

from workbench.memory.base import MEMORIES
from workbench.memory.cache._checks import bounded
from workbench.memory.cache._rows import Choice, Row, recent
from workbench.memory.cache.base import TokenCache


@MEMORIES.register("window")
class WindowCache(TokenCache):
    """Keeps the newest ``budget`` tokens."""

    slug = "window"

    def __init__(self, budget: int = 1024):
        super().__init__(budget)
        bounded(self.budget, 0)

    def select(self, row: Row, n_new: int) -> Choice:
        assert self.budget is not None
        return recent(row, 0, self.budget - n_new, "older than the window")
