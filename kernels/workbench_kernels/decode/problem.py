"""The validated numbers of one call; tensors of the cache travel in a ``CacheView``."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Problem:
    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    splits: int | None = None
