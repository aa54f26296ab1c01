"""BM25 by the bm25s library: search by words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from workbench.checks import whole
from workbench.errors import BadInput
from workbench.memory.durable.items import Hit


def words(text: str) -> list[str]:
    """The words of ``text`` in lower case; nothing is stemmed and nothing left out."""
    return re.findall(r"\w+", text.lower())


class Bm25:
    """Okapi BM25 over texts by id (Robertson and Zaragoza 2009), in Lucene's form (method "lucene" of bm25s).

    score(q, d) = sum over words w of q: idf(w) * tf / (tf + k1 * (1 - b + b * |d| / mean |d|)), where
    idf(w) = log(1 + (N - df + 0.5) / (df + 0.5)) is never negative. A word that the query says twice counts twice.
    The library's index is rebuilt at the first search after a change.
    """

    def __init__(self, k1: float = 1.2, b: float = 0.75):
        if not 0 <= k1 < float("inf") or not 0 <= b <= 1:
            raise BadInput(f"BM25 needs k1 >= 0 and 0 <= b <= 1, got k1={k1!r} and b={b!r}")
        self.k1, self.b = k1, b
        self._words: dict[int, list[str]] = {}
        self._built: tuple[Any, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self._words)

    def add(self, ids: Sequence[int], texts: Sequence[str]) -> None:
        """Keep ``texts`` under ``ids``; an id that is there already gets the new text."""
        if len(ids) != len(texts):
            raise BadInput(f"got {len(ids)} ids for {len(texts)} texts")
        if not all(isinstance(text, str) for text in texts):
            raise BadInput("BM25 indexes texts")
        self._words.update((int(id), words(text)) for id, text in zip(ids, texts))
        self._built = None

    def remove(self, ids: Iterable[int]) -> None:
        """Forget ``ids``; one that is not there is no error."""
        for id in ids:
            self._words.pop(int(id), None)
        self._built = None

    def search(self, query: str, k: int = 10, ids: Iterable[int] | None = None) -> list[Hit]:
        """The best ``k`` texts (of ``ids``) that share a word with ``query``, best first, ties by id.

        Raises BadInput for an empty query or k < 1. A query of unknown words finds nothing.
        """
        if not isinstance(query, str) or not query.strip():
            raise BadInput("the query is empty; ask with at least one word")
        k = whole("k", k)
        scores = self.scores(query)
        held = np.fromiter(sorted(self._words), dtype=np.int64, count=len(self))
        found = scores > 0
        if ids is not None:
            found &= np.isin(held, np.fromiter({int(id) for id in ids}, dtype=np.int64))
        held, scores = held[found], scores[found]
        return [Hit(int(held[place]), float(scores[place])) for place in np.lexsort((held, -scores))[:k]]

    def scores(self, query: str) -> np.ndarray:
        """(n,) float32: the score of every text, by id."""
        wanted = words(query)
        if not self._words or not any(self._words.values()):
            return np.zeros(len(self), dtype=np.float32)
        library = self._library()
        known = [word for word in wanted if word in library.vocab_dict]
        return library.get_scores(known) if known else np.zeros(len(self), dtype=np.float32)

    def _library(self) -> Any:
        if self._built is None:
            try:
                import bm25s
            except ImportError as error:
                raise BadInput("BM25 needs bm25s: pip install 'memory-workbench[stores]'") from error
            library = bm25s.BM25(k1=self.k1, b=self.b, method="lucene")
            library.index([self._words[id] for id in sorted(self._words)], show_progress=False)
            self._built = (library, np.zeros(0))
        return self._built[0]
