"""``streaming``: attention sinks and a recency window (StreamingLLM; Xiao et al. 2023, arXiv 2309.17453)."""

from __future__ import annotations

from workbench.memory.base import MEMORIES
from workbench.memory.cache._checks import bounded
from workbench.memory.cache._rows import Choice, Row, recent
from workbench.memory.cache.base import TokenCache


@MEMORIES.register("streaming")
class StreamingCache(TokenCache):
    """The first ``n_sink`` tokens and the newest ``budget - n_sink``; everything between is dropped for good.

    Args:
        budget: tokens held (sinks included). The baseline's usual 1,024 is the default.
        n_sink: first tokens that always stay; 4 in the paper.
    """

    slug = "streaming"

    def __init__(self, budget: int = 1024, n_sink: int = 4):
        super().__init__(budget)
        self.n_sink = bounded(self.budget, n_sink)

    def room(self) -> int:
        return self._size() - self.n_sink

    def _size(self) -> int:
        assert self.budget is not None
        return self.budget

    def select(self, row: Row, n_new: int) -> Choice:
        return recent(row, self.n_sink, self._size() - n_new, "older than the window")
