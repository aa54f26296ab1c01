"""What an encoder and an index say. Anything that says the same can be put in their place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np

    from workbench.memory.durable.items import Hit


@runtime_checkable
class Encoder(Protocol):
    """Texts to vectors. Encoders with equal ``name`` make equal vectors; ``label`` is what people are shown."""

    @property
    def name(self) -> str: ...

    @property
    def dim(self) -> int: ...

    @property
    def label(self) -> str: ...

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """(n, dim) float32 with rows of length one; a text without content may give a row of zeros."""


@runtime_checkable
class Index(Protocol):
    """Vectors by id, and the nearest of them by inner product (the cosine, for rows of length one)."""

    def add(self, ids: Sequence[int], vectors: np.ndarray) -> None:
        """Keep ``vectors`` (n, dim) under ``ids``; an id that is there already gets the new vector."""

    def reserve(self, room: int) -> None:
        """Make room for this many vectors at once (a hint)."""

    def remove(self, ids: Iterable[int]) -> None:
        """Forget ``ids``; one that is not there is no error."""

    def search(self, vector: np.ndarray, k: int, ids: Iterable[int] | None = None) -> list[Hit]:
        """The ``k`` nearest (of ``ids``, if given), best first; equal scores by id."""

    def __len__(self) -> int: ...
