"""``oracle``: told beforehand which tokens will be asked for. The upper bound for every rule that has to guess."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from workbench.memory.base import MEMORIES
from workbench.memory.cache._checks import bounded, token_ids
from workbench.memory.cache._rows import Choice, Row, ranked
from workbench.memory.cache.base import TokenCache


@MEMORIES.register("oracle")
class OracleCache(TokenCache):
    """Sinks, the given tokens wherever they occurred (oldest first), and the newest ones.

    Args:
        budget: tokens held, ``n_sink`` first ones included.
        tokens: token ids to hold in every row; :meth:`hold` names others for single rows.
    """

    slug = "oracle"

    def __init__(self, budget: int = 1024, n_sink: int = 4, tokens: Collection[int] = ()):
        super().__init__(budget)
        self.n_sink, self.tokens = bounded(self.budget, n_sink), token_ids("tokens", tokens)
        self._held: dict[int, tuple[int, ...]] = {}

    def hold(self, tokens: dict[int, Collection[int]]) -> None:
        """Token ids to hold per row, by row name (``name_rows``)."""
        self._held = {row: tuple(ids) for row, ids in tokens.items()}

    def room(self) -> int:
        assert self.budget is not None
        return self.budget - self.n_sink

    def select(self, row: Row, n_new: int) -> Choice:
        size = self.room() - n_new
        asked = np.isin(row.items["token_id"], self._held.get(row.stream, self.tokens))
        order = np.argsort(~asked, kind="stable")
        return ranked(
            order,
            size=size + self.n_sink,
            n_sink=self.n_sink,
            n_best=min(int(asked.sum()), size),
            n_recent=0,
            label="oracle",
            why="not asked for",
        )
