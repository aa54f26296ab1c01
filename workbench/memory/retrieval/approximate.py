"""Approximate search by FAISS: quicker than comparing all for very many vectors, and it may miss some.

What FAISS proposes is compared again exactly, so scores are those of exact search; only members can be missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from workbench.checks import whole
from workbench.errors import BadInput
from workbench.memory.durable.items import Hit
from workbench.memory.retrieval.exact import Exact, check_query, rank

#: Fewer vectors than this are compared all: an index would cost more than it saves.
_SMALL = 1_000


class _Faiss:
    """The part that HNSW and IVF share: places in FAISS's index, which only grows, and which of them still count."""

    def __init__(self, dim: int):
        self.dim = dim
        self._exact = Exact(dim)
        self._index: Any = None
        self._ids: list[int] = []  # the id at each place of the FAISS index
        self._place: dict[int, int] = {}  # the place that counts for each id
        self._waiting: dict[int, None] = {}  # ids that are to be put into the FAISS index

    def __len__(self) -> int:
        return len(self._exact)

    def add(self, ids: Sequence[int], vectors: np.ndarray) -> None:
        """Keep ``vectors`` under ``ids``; FAISS gets them at the next search."""
        self._exact.add(ids, vectors)
        self._waiting.update(dict.fromkeys(ids))
        for id in ids:
            self._place.pop(id, None)

    def reserve(self, room: int) -> None:
        """Make room for this many vectors at once."""
        self._exact.reserve(room)

    def remove(self, ids: Iterable[int]) -> None:
        """Forget ``ids``; their places in the FAISS index no longer count."""
        ids = list(ids)
        self._exact.remove(ids)
        for id in ids:
            self._place.pop(id, None)
            self._waiting.pop(id, None)

    def search(self, vector: np.ndarray, k: int, ids: Iterable[int] | None = None) -> list[Hit]:
        """About the ``k`` nearest; a search among ``ids``, or among few vectors, is exact."""
        vector, k = check_query(vector, self.dim), whole("k", k)
        if ids is not None or len(self) < max(_SMALL, 4 * k):
            return self._exact.search(vector, k, ids)
        self._bring_up_to_date()
        dead = len(self._ids) - len(self._place)
        _, places = self._index.search(vector[None], k + min(dead, k + dead // 4))
        found = [self._ids[place] for place in places[0] if place >= 0 and self._counts(int(place))]
        return rank(np.array(found, dtype=np.int64), self._exact.get(found), vector, k) if found else []

    def _counts(self, place: int) -> bool:
        return self._place.get(self._ids[place]) == place

    def _bring_up_to_date(self) -> None:
        dead = len(self._ids) - len(self._place)
        if self._index is None or dead > len(self) // 4 or len(self._waiting) > len(self) // 2:
            self._ids, self._place = [], {}
            self._waiting = dict.fromkeys(sorted(self._exact.ids()))
            self._index = self._make(self._exact.get(list(self._waiting)))
        if self._waiting:
            fresh = list(self._waiting)
            self._index.add(self._exact.get(fresh))
            self._place.update(zip(fresh, range(len(self._ids), len(self._ids) + len(fresh))))
            self._ids += fresh
            self._waiting = {}

    def _make(self, vectors: np.ndarray) -> Any:
        """An empty FAISS index, trained on ``vectors`` if it needs that."""
        raise TypeError("choose FaissHnsw or FaissIvf")


class FaissHnsw(_Faiss):
    """A navigable small-world graph (Malkov and Yashunin 2018): ``links`` a vector, ``effort`` candidates a search."""

    def __init__(self, dim: int, links: int = 32, effort: int = 128):
        super().__init__(dim)
        self.links, self.effort = links, effort

    def _make(self, vectors: np.ndarray) -> Any:
        faiss = _faiss()
        index = faiss.IndexHNSWFlat(self.dim, self.links, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = 80, self.effort
        return index


class FaissIvf(_Faiss):
    """Cells around centroids (Jegou et al. 2011): 4 sqrt(n) cells, of which a share of ``probe`` is searched."""

    def __init__(self, dim: int, probe: float = 0.1):
        super().__init__(dim)
        self.probe = probe

    def _make(self, vectors: np.ndarray) -> Any:
        faiss = _faiss()
        cells = max(1, min(int(4 * len(vectors) ** 0.5), len(vectors) // 39))  # FAISS asks for 39 examples a cell
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(self.dim), self.dim, cells, faiss.METRIC_INNER_PRODUCT)
        index.train(vectors)
        index.nprobe = max(1, round(self.probe * cells))
        return index


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise BadInput(
            "this index needs FAISS: pip install 'memory-workbench[stores]', or use index='exact'"
        ) from error
    return faiss
