"""Exact search: every vector is compared. The specification that approximate indices are measured against."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from workbench.checks import whole
from workbench.errors import BadInput
from workbench.memory.durable.items import Hit

#: More than float32 can be wrong about an inner product of unit rows; candidates this near are compared in float64.
_MARGIN = 1e-5
#: A search among less than this part of the vectors copies them out first; for more, comparing all is quicker.
_FEW = 8


class Exact:
    """All vectors in one float32 matrix; one matrix-vector product by torch for each search.

    The best candidates are compared again in float64, row by row, so that the order does not depend on where a row
    stands in the matrix: equal vectors tie exactly, and ties go by id.
    """

    def __init__(self, dim: int):
        self.dim = dim
        self._vectors = np.zeros((0, dim), dtype=np.float32)
        self._ids = np.zeros(0, dtype=np.int64)
        self._places: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._places)

    def add(self, ids: Sequence[int], vectors: np.ndarray) -> None:
        """Keep ``vectors`` (n, dim) under ``ids``. Raises BadInput for another width or values that are not finite."""
        vectors = check_vectors(ids, vectors, self.dim)
        fresh = list(dict.fromkeys(id for id in ids if id not in self._places))
        start, end = len(self), len(self) + len(fresh)
        if end > len(self._ids):
            self.reserve(max(end, 2 * len(self._ids)))
        self._places.update(zip(fresh, range(start, end)))
        self._ids[start:end] = fresh
        places = slice(start, end) if len(fresh) == len(ids) else [self._places[id] for id in ids]
        self._vectors[places] = vectors

    def reserve(self, room: int) -> None:
        """Make room for this many vectors at once, so that adding them moves nothing."""
        if room > len(self._ids):
            for name in ("_vectors", "_ids"):
                old = getattr(self, name)
                new = np.empty((room, *old.shape[1:]), dtype=old.dtype)
                new[: len(self)] = old[: len(self)]
                setattr(self, name, new)

    def remove(self, ids: Iterable[int]) -> None:
        """Forget ``ids``: the last row moves into each gap."""
        for id in ids:
            place = self._places.pop(id, None)
            if place is None:
                continue
            last = len(self._places)
            if place != last:
                moved = int(self._ids[last])
                self._ids[place], self._vectors[place] = moved, self._vectors[last]
                self._places[moved] = place

    def ids(self) -> list[int]:
        """The ids that are here."""
        return list(self._places)

    def get(self, ids: Sequence[int]) -> np.ndarray:
        """(n, dim) float32: the vectors of ``ids``."""
        return self._vectors[[self._places[id] for id in ids]]

    def search(self, vector: np.ndarray, k: int, ids: Iterable[int] | None = None) -> list[Hit]:
        """The ``k`` nearest of all, or of those of ``ids`` that are here."""
        import torch

        vector, k = check_query(vector, self.dim), whole("k", k)
        rows, places = self._vectors[: len(self)], None
        if ids is not None:
            places = np.array([self._places[id] for id in set(ids) if id in self._places], dtype=np.int64)
            if few := len(places) < len(self) // _FEW:
                rows = rows[places]
        if not len(self) or (places is not None and not len(places)):
            return []
        scores = (torch.from_numpy(rows) @ torch.from_numpy(vector)).numpy()
        if places is None:
            near = candidates(scores, k)
        else:
            near = places[candidates(scores if few else scores[places], k)]
        return rank(self._ids[near], self._vectors[near], vector, k)


def candidates(scores: np.ndarray, k: int) -> np.ndarray:
    """Places of all scores that may belong to the best ``k`` (with a margin for rounding)."""
    if k >= len(scores):
        return np.arange(len(scores))
    kth = np.partition(scores, len(scores) - k)[len(scores) - k]
    return np.flatnonzero(scores >= kth - _MARGIN)


def rank(ids: np.ndarray, rows: np.ndarray, vector: np.ndarray, k: int) -> list[Hit]:
    """The best ``k`` of ``rows`` by their inner product with ``vector`` in float64; ties by id."""
    scores = (rows.astype(np.float64) * vector.astype(np.float64)).sum(axis=1)
    order = np.lexsort((ids, -scores))[:k]
    return [Hit(int(ids[place]), float(scores[place])) for place in order]


def check_vectors(ids: Sequence[int], vectors: np.ndarray, dim: int) -> np.ndarray:
    vectors = np.asarray(vectors, dtype=np.float32)
    if vectors.shape != (len(ids), dim):
        raise BadInput(f"expected vectors of shape ({len(ids)}, {dim}), got {vectors.shape}")
    if not np.isfinite(vectors).all():
        raise BadInput("the vectors hold values that are not finite; nothing was added")
    return vectors


def check_query(vector: np.ndarray, dim: int) -> np.ndarray:
    """``vector`` as (dim,) float32. Raises BadInput for another width or values that are not finite."""
    try:
        made = np.ascontiguousarray(vector, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise BadInput(f"the query vector must be {dim} numbers, got {type(vector).__name__}") from error
    if made.shape != (dim,):
        raise BadInput(f"the query vector has shape {made.shape}, the index holds vectors of width {dim}")
    if not np.isfinite(made).all():
        raise BadInput("the query vector holds values that are not finite")
    return made
