"""Plain retrieval: raw pieces of text, and the k whose vectors are nearest to the question.

The baseline of every memory of agents: nothing is summarised, linked or forgotten (Lewis et al. 2020, "Retrieval-
Augmented Generation for Knowledge-Intensive NLP Tasks", arXiv 2005.11401, without its trained retriever).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from workbench.checks import whole
from workbench.errors import BadInput
from workbench.memory.base import MEMORIES
from workbench.memory.durable import NewItem, Store
from workbench.memory.stores.base import Reading, Recalled, StoreMemory, check_read, count_tokens, fitting

if TYPE_CHECKING:
    from workbench.memory.retrieval import Encoder

KIND = "piece"


@MEMORIES.register("flat")
class Flat(StoreMemory):
    """A memory that keeps every piece as it came and gives back the nearest ones, of whatever a store holds.

    Args:
        path: the store's file; None keeps it in memory.
        store: a store that is open already (then ``path`` and ``encoder`` are its own).
        encoder: what makes vectors, by name or object; None: the file's own, else the default encoder.
        k: how many pieces a read gives back unless it says otherwise.

    Raises BadInput for k < 1, or for a store together with a path or an encoder.
    """

    slug: ClassVar[str] = "flat"

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        store: Store | None = None,
        encoder: Encoder | str | None = None,
        k: int = 10,
    ):
        k = whole("k", k)
        if store is not None and (path is not None or encoder is not None):
            raise BadInput("give either store, or path and encoder: an open store has its own")
        self.k = k
        self.store = store if store is not None else Store(path, encoder=encoder)

    def write(
        self, text: str, *, time: float | None = None, key: str | None = None, meta: dict[str, Any] | None = None
    ) -> int:
        """Keep ``text`` as it is; see :class:`StoreMemory`."""
        return self.store.add(text, key=key, kind=KIND, time=time, meta=meta, why="written").id

    def write_many(self, texts: Iterable[str]) -> list[int]:
        """Keep many pieces in one transaction with their vectors made in one batch; their ids in order."""
        pieces = [NewItem(text, kind=KIND) for text in texts]
        return [item.id for item in self.store.add_many(pieces, "written")]

    def read(
        self,
        query: str,
        *,
        k: int | None = None,
        budget_notes: int | None = None,
        budget_tokens: int | None = None,
        time: float | None = None,
    ) -> Reading:
        """The ``k`` nearest pieces, scored by cosine; see :class:`StoreMemory`.

        Under ``budget_tokens`` a piece that does not fit is passed over for the next of the k that does. ``time`` does
        not matter: a piece does not fade.
        """
        query = check_read(query, k=k, budget_notes=budget_notes, budget_tokens=budget_tokens)
        most = min(k or self.k, budget_notes or k or self.k)
        hits = self.store.search(query, most)
        texts = [item.text for item in self.store.items([hit.id for hit in hits])]
        kept, used = fitting(map(count_tokens, texts), budget_tokens)
        items = tuple(Recalled(hits[place].id, texts[place], hits[place].score) for place in kept)
        if items:
            self.store.record("read", [item.id for item in items], "asked", query=query)
        left = len(texts) - len(kept)
        return Reading(query, items, used, f"{left} pieces do not fit into {budget_tokens} tokens" if left else "")
