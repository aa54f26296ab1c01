"""``full``: nothing is evicted. The reference for every other cache; valid only inside the trained window."""

from __future__ import annotations

from workbench.memory.base import MEMORIES
from workbench.memory.cache.base import TokenCache


@MEMORIES.register("full")
class FullCache(TokenCache):
    """Keeps every token. Positions grow with the stream, so beyond the trained window the model is out of its depth."""

    slug = "full"

    def __init__(self) -> None:
        super().__init__(budget=None)
