"""What A-MEM derives from its store and keeps at hand: who is linked with whom, which terms are rare, recent vectors.

A store alone is the truth: everything here follows its log, whoever wrote it (an edit in the app, an undo, another
process), and is rebuilt when a store is opened.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from workbench.memory.stores import _amem_read as reading
from workbench.memory.stores._amem_notes import KIND, Note
from workbench.memory.stores._amem_rules import Terms

if TYPE_CHECKING:
    from workbench.memory.durable import Store
    from workbench.memory.retrieval import Encoder

#: Events that change no item.
_HARMLESS = frozenset({"read", "rerank", "decay"})
#: Events that may touch links of other items than those they name.
_FAR = frozenset({"evict", "restore", "merge", "reset"})


class Notes:
    """The notes that a store holds, in both directions of their links."""

    def __init__(self, store: Store):
        self.store = store
        self.terms = Terms()
        self.held: dict[int, Note] = {}
        self._into: defaultdict[int, set[int]] = defaultdict(set)
        self._seen = 0
        self._order: list[int] | None = None

    def sync(self) -> Notes:
        """Follow the log to its end."""
        events = self.store.events()
        if len(events) == self._seen:
            return self
        new = list(islice(events, self._seen, None))
        if self._seen == 0 or any(event.kind in _FAR for event in new):
            touched, now = set(self.held), self.store.items(kinds=KIND)
        else:
            touched = {id for event in new if event.kind not in _HARMLESS for id in event.items}
            now = self.store.items([id for id in touched if id in self.store], kinds=KIND)
        self._replace(touched, {item.id: Note.of(item) for item in now})
        self._seen = len(events)
        return self

    def _replace(self, touched: set[int], now: dict[int, Note]) -> None:
        for id in touched | set(now):
            old, new = self.held.pop(id, None), now.get(id)
            for to in old.links if old else ():
                self._into[to].discard(id)
            for to in new.links if new else ():
                self._into[to].add(id)
            if new is not None:
                self.held[id] = new
            if (old and old.content) != (new and new.content):
                self.terms.replace(id, new.content if new else None)
        self._order = None

    def links(self, id: int, directed: bool) -> list[int]:
        """Notes that ``id`` points to and, unless ``directed``, those that point to it; only notes that are held."""
        note = self.held.get(id)
        out = [to for to in note.links if to in self.held] if note else []
        return out if directed else list(dict.fromkeys([*out, *sorted(self._into.get(id, ()))]))

    def links_in(self, id: int) -> list[int]:
        return sorted(self._into.get(id, ()))

    @property
    def order(self) -> list[int]:
        """Ids in the order of writing."""
        if self._order is None:
            self._order = sorted(self.held)
        return self._order


class Memo:
    """An encoder that remembers the last ``size`` texts: one ``add`` needs the same vectors several times.

    It bears the name of the encoder it wraps, which is loaded when it is first asked for anything.
    """

    def __init__(self, encoder: Encoder | str, size: int = 512):
        self._given, self._size = encoder, size
        self._rows: OrderedDict[str, np.ndarray] = OrderedDict()

    @property
    def encoder(self) -> Encoder:
        if isinstance(self._given, str):
            from workbench.memory.retrieval import encoder

            self._given = encoder(self._given)
        return self._given

    @property
    def name(self) -> str:
        return self.encoder.name

    @property
    def dim(self) -> int:
        return self.encoder.dim

    @property
    def label(self) -> str:
        return self.encoder.label

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """(n, dim) float32; what is not remembered is encoded in one batch."""
        texts = list(texts)
        new = list(dict.fromkeys(text for text in texts if text not in self._rows))
        rows = dict(zip(new, self.encoder.encode(new))) if new else {}
        for text in texts:
            if text in self._rows:
                rows[text] = self._rows[text]
                self._rows.move_to_end(text)
        self._rows.update((text, rows[text]) for text in new)
        while len(self._rows) > self._size:
            self._rows.popitem(last=False)
        return np.stack([rows[text] for text in texts]) if texts else np.zeros((0, self.dim), np.float32)


class Cosines:
    """Cosines of one query with the notes of a store, asked of its index once for each note."""

    def __init__(self, store: Store, vector: np.ndarray):
        self.store, self.vector = store, vector
        self._known: dict[int, float] = {}

    def nearest(self, k: int, exclude: set[int]) -> list[reading.Found]:
        hits = self.store.search(self.vector, k, kinds=KIND, exclude=exclude)
        self._known.update((hit.id, hit.score) for hit in hits)
        return reading.direct([(hit.id, hit.score) for hit in hits])

    def __call__(self, ids: Sequence[int]) -> dict[int, float]:
        if new := [id for id in ids if id not in self._known]:
            self._known.update((hit.id, hit.score) for hit in self.store.search(self.vector, len(new), ids=new))
        return {id: self._known[id] for id in ids}

    def alike(self, ids: Sequence[int], others: Sequence[int]) -> dict[int, float]:
        """Mean cosine of each of ``ids`` with ``others``."""
        if not ids:
            return {}
        rows, columns = self.store.vectors(ids), self.store.vectors(others)
        return dict(zip(ids, map(float, (rows @ columns.T).mean(axis=1))))
