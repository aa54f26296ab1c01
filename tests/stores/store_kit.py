"""What the tests of stores share: a cheap encoder, a clock that counts, and all that can be seen of a store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import numpy as np


class Letters:
    """How often each of ``dim`` letters stands in a text, as a row of length one: quick, and easy to reason about."""

    label = "letters"

    def __init__(self, dim: int = 26, name: str = "letters"):
        self.dim, self.name = dim, name

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        made = np.zeros((len(texts), self.dim), dtype=np.float32)
        for row, text in zip(made, texts):
            for letter in text.lower():
                if 0 <= (place := ord(letter) - ord("a")) < self.dim:
                    row[place] += 1
        length = np.linalg.norm(made, axis=1, keepdims=True)
        return made / np.where(length == 0, 1, length)


def ticking() -> Callable[[], float]:
    """A clock that reads 1, 2, 3, ..."""
    ticks = count(1)
    return lambda: float(next(ticks))


def state(store: Any) -> tuple[Any, ...]:
    """Everything that can be seen of the items of a store or a snapshot."""
    return store.items(), store.forgotten(), store.vectors().tobytes()
