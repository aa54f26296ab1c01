"""``random``: sinks and as many random tokens as SirLLM keeps surprising ones. Isolates what the score is worth."""

from __future__ import annotations

import numpy as np

from workbench.checks import whole
from workbench.memory.base import MEMORIES
from workbench.memory.cache._checks import bounded
from workbench.memory.cache._rows import Choice, Row, ranked
from workbench.memory.cache.base import TokenCache


@MEMORIES.register("random")
class RandomCache(TokenCache):
    """Each token draws a number when it is read; the highest stay (SirLLM's rule with a meaningless score).

    The draw depends on ``seed``, the name of the row (``name_rows``) and the place in the stream, on nothing else.

    Args:
        budget: tokens held, ``n_sink`` first ones included.
        seed: of the draws.
    """

    slug = "random"

    def __init__(self, budget: int = 1024, n_sink: int = 4, seed: int = 0):
        super().__init__(budget)
        self.n_sink, self.seed = bounded(self.budget, n_sink), whole("seed", seed, 0)

    def room(self) -> int:
        assert self.budget is not None
        return self.budget - self.n_sink

    def on_written(self, row: Row, n_new: int) -> None:
        start = int(row.items["position"][-n_new])
        row.items["raw"][-n_new:] = np.random.default_rng([self.seed, row.stream, start]).random(n_new)

    def scores(self, row: Row) -> dict[str, np.ndarray]:
        return {"score": row.items["raw"].copy()}

    def select(self, row: Row, n_new: int) -> Choice:
        order, size = np.argsort(-row.items["raw"], kind="stable"), self.room() - n_new
        return ranked(
            order,
            size=size + self.n_sink,
            n_sink=self.n_sink,
            n_best=size,
            n_recent=0,
            label="random",
            why="drew a low number",
        )
