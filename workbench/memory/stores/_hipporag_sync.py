"""The graph's other half: keeps what is derived (graph, names, flat indices) in step with the store."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from workbench.errors import BadInput
from workbench.memory.stores._hipporag_openie import Extraction, Gazetteer, OpenIE, from_meta

if TYPE_CHECKING:
    import numpy as np

    from workbench.memory.base import Event
    from workbench.memory.durable import Store
    from workbench.memory.durable.items import Item
    from workbench.memory.stores._hipporag_graph import PhraseGraph

KIND = "passage"
_NO_CHANGE = ("read", "rerank", "decay")


class Mirror:
    """Follows a store's log: what was written, edited, forgotten, restored or undone is so in the graph at ``sync``.

    The log may be written by anybody (the inspector, another process). A passage whose text no longer is the one its
    triples were extracted from gets them anew, in the store as well. Whoever reads what is derived holds ``lock``.
    """

    def __init__(self, store: Store, graph: PhraseGraph, openie: OpenIE, accents: str):
        self.store, self.graph, self.openie, self.accents = store, graph, openie, accents
        self.gazetteer = Gazetteer()
        self._items: dict[int, tuple[str, Extraction]] = {}  # digest of the text, extraction
        self._by_text: dict[str, int] = {}
        self.lock = threading.RLock()
        self._seen = 0
        self._last: Event | None = None
        self._vectors: np.ndarray | None = None
        self._bm25: Any = None

    @staticmethod
    def digest(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def malformed(self) -> int:
        return sum(found.malformed for _, found in self._items.values())

    def find(self, text: str) -> int | None:
        """The id of the passage with exactly this text."""
        return self._by_text.get(self.digest(text))

    def sync(self) -> None:
        """Bring everything to where the store is now; cheap when nothing happened."""
        with self.lock:
            self._follow()

    def _follow(self) -> None:
        log = self.store.events()
        fresh = list(islice(log, max(self._seen - 1, 0), None))
        if self._seen and (not fresh or fresh[0] != self._last):  # a transaction was rolled back: start over
            return self._rebuild()
        new = fresh[1:] if self._seen else fresh
        if not new:
            return None
        if not self._seen or any(event.kind == "reset" for event in new):
            return self._rebuild()
        touched = {item for event in new if event.kind not in _NO_CHANGE for item in event.items}
        self._seen, self._last = self._seen + len(new), new[-1]
        for item in sorted(touched):
            self._drop(item)
        self._take([item for item in sorted(touched) if item in self.store])
        return None

    def _rebuild(self) -> None:
        for item in list(self._items):
            self._drop(item)
        events = list(self.store.events())
        self._seen, self._last = len(events), events[-1] if events else None
        self._take(None)

    def _take(self, ids: Sequence[int] | None) -> None:
        if ids is not None and not ids:
            return
        stale: list[tuple[Item, Extraction]] = []
        for item in self.store.items(ids, kinds=KIND):
            digest = self.digest(item.text)
            kept = self._kept(item, digest)
            found = kept or self._extract(item.text)
            if kept is None:
                stale.append((item, found))
            self._items[item.id] = (digest, found)
            self._by_text.setdefault(digest, item.id)
            self.graph.add(item.id, found.triples)
            self.gazetteer.add(found.entities)
            self._vectors = self._bm25 = None
        for item, found in stale:
            meta = {**item.meta, **found.meta(), "extracted_from": self.digest(item.text)}
            self.store.update(item.id, why="triples extracted from the text as it is now", meta=meta)

    def _kept(self, item: Item, digest: str) -> Extraction | None:
        """What was extracted from exactly this text; None when the text or the extraction was edited beyond reading."""
        if item.meta.get("extracted_from") != digest:
            return None
        with contextlib.suppress(BadInput):
            return from_meta(item.meta, self.accents)
        return None

    def _extract(self, text: str) -> Extraction:
        """An edited passage is not among those with given triples: rules then."""
        known = self.openie.given is None or text in self.openie.given
        return (self.openie if known else OpenIE(ledger=self.openie.ledger)).passage(text, self.accents)

    def _drop(self, item: int) -> None:
        if item not in self._items:
            return
        digest, found = self._items.pop(item)
        if self._by_text.get(digest) == item:
            del self._by_text[digest]
        self.graph.remove(item)
        self.gazetteer.remove(found.entities)
        self._vectors = self._bm25 = None

    # -- flat scores ----------------------------------------------------------------------------------------------

    def dense(self, query: str, passages: Sequence[int]) -> np.ndarray:
        """(P,) cosines."""
        if self._vectors is None:
            self._vectors = self.store.vectors(list(passages))
        return (self._vectors @ self.store.encoder.encode([query])[0]).astype(float)

    def bm25(self, query: str, passages: Sequence[int]) -> np.ndarray:
        """(P,) BM25 scores (k1 1.2, b 0.75); in the order of their ids, as ``passages``."""
        if self._bm25 is None:
            from workbench.memory.retrieval import Bm25

            self._bm25 = Bm25(k1=1.2, b=0.75)
            self._bm25.add(list(passages), [item.text for item in self.store.items(list(passages))])
        return self._bm25.scores(query).astype(float)
