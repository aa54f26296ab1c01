"""Pieces and their sentences: what MemoryBank encodes, and how neighbouring sentences are glued back.

A piece is one exchange or one daily summary. In the authors' code it is found by its sentences: each has a vector, a
query finds the k nearest sentences, and around each the neighbours of the same piece are taken along up to a number of
characters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from workbench.memory.durable import Item
    from workbench.memory.retrieval import Encoder


@dataclass(frozen=True)
class Found:
    """One piece that a query found: its best sentence's cosine, and which of its sentences are given back."""

    item: Item
    score: float
    sentences: tuple[str, ...]
    shown: tuple[int, ...]

    def text(self) -> str:
        """The sentences shown, in order; three dots where some between them are left out."""
        parts: list[str] = []
        for at, index in enumerate(self.shown):
            gap = at > 0 and index != self.shown[at - 1] + 1
            parts.append(f"... {self.sentences[index]}" if gap else self.sentences[index])
        return " ".join(parts)


def split(text: str) -> list[str]:
    """Sentences of a piece, at least one."""
    from workbench.llm.rules import sentences

    return [part.strip() for part in sentences(text) if part.strip()] or [text.strip()]


def glue(sentences: Sequence[str], hits: Sequence[int], limit: int) -> tuple[int, ...]:
    """Indices of the sentences around ``hits`` that fit into ``limit`` characters a hit, in order, each once.

    Around each hit the next sentence and the one before are tried in turn, as long as the glued text stays within
    the limit; a direction ends at the first sentence that does not fit. A hit longer than the limit stands alone.
    """
    kept: set[int] = set()
    for hit in hits:
        kept.add(hit)
        length, open_ends = len(sentences[hit]), {1: hit, -1: hit}
        while open_ends:
            for step in tuple(open_ends):
                at = open_ends[step] + step
                inside = 0 <= at < len(sentences)
                if not inside or length + 1 + len(sentences[at]) > limit:
                    del open_ends[step]
                    continue
                open_ends[step] = at
                length += 1 + len(sentences[at])
                kept.add(at)
    return tuple(sorted(kept))


class SentenceIndex:
    """Vectors of the sentences of pieces, derived from the items and kept by item id and text."""

    def __init__(self, encoder: Encoder):
        self.encoder = encoder
        self._known: dict[int, tuple[str, tuple[str, ...], np.ndarray]] = {}

    def learn(self, items: Sequence[Item]) -> None:
        """Encode the sentences of items that are new or changed, all in one batch."""
        fresh = [item for item in items if self._known.get(item.id, ("",))[0] != item.index_text]
        cut = [split(item.index_text) for item in fresh]
        texts = [sentence for part in cut for sentence in part]
        if not texts:
            return
        vectors, start = self.encoder.encode(texts), 0
        for item, part in zip(fresh, cut):
            self._known[item.id] = (item.index_text, tuple(part), vectors[start : start + len(part)])
            start += len(part)

    def forget(self, ids: Sequence[int]) -> None:
        """Drop what is no longer held, so that the index does not outgrow the store."""
        for id in ids:
            self._known.pop(id, None)

    def search(self, query: np.ndarray, items: Sequence[Item], k: int, limit: int) -> list[Found]:
        """The pieces of the ``k`` sentences nearest to ``query`` (dim,), best first; ties by item id, then sentence."""
        import numpy as np

        self.learn(items)
        if not items:
            return []
        parts = [self._known[item.id] for item in items]
        vectors = np.concatenate([part[2] for part in parts])  # sentences dim
        owner = np.repeat(np.arange(len(items)), [len(part[1]) for part in parts])
        place = np.concatenate([np.arange(len(part[1])) for part in parts])
        scores = np.round((vectors @ query).astype(np.float64), 6)
        ids = np.array([item.id for item in items])[owner]
        best = np.lexsort((place, ids, -scores))[:k]
        found: dict[int, list[int]] = {}
        for index in best:
            found.setdefault(int(owner[index]), []).append(int(index))
        made = []
        for at, indices in found.items():
            sentences = parts[at][1]
            shown = glue(sentences, [int(place[index]) for index in indices], limit)
            made.append(Found(items[at], float(scores[indices[0]]), sentences, shown))
        return made
