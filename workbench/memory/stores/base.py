"""What every memory over a durable store says: text goes in by ``write``, and ``read`` gives back what to paste.

A mechanism (a-mem, memorybank, hipporag, ...) keeps its items in a :class:`workbench.memory.durable.Store` and adds its
own idea of what is written, linked, faded and found. A language model reads through it: ``LoadedModel.use(memory=...)``
writes what it is fed and puts ``context(question)`` before the question.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from workbench.checks import whole
from workbench.errors import BadInput
from workbench.memory.base import EventLog, settings_of

if TYPE_CHECKING:
    import pandas as pd

    from workbench.memory.durable import Store


@dataclass(frozen=True)
class Recalled:
    """One thing that a read gave back.

    ``how`` is the way it was found ("direct", "link", "graph", "summary", ...), ``via`` the id of the item that led to
    it, ``text`` what would stand in the prompt, ``score`` what it was ranked by (larger is better, of any scale).
    """

    id: int
    text: str
    score: float
    how: str = "direct"
    via: int | None = None


@dataclass(frozen=True)
class Reading:
    """The answer to one ``read``: items best first, at most what the budget allows, none twice.

    ``tokens`` counts the words and marks of all texts (``workbench.memory.stores.base.count_tokens`` unless the
    mechanism was given a tokenizer); ``note`` says what fell back or was left out, empty when nothing was.
    """

    query: str
    items: tuple[Recalled, ...]
    tokens: int
    note: str = ""

    @property
    def ids(self) -> list[int]:
        return [item.id for item in self.items]

    def text(self) -> str:
        """The items as lines, in the order given."""
        return "\n".join(item.text for item in self.items)

    def frame(self) -> pd.DataFrame:
        """One row per item: rank, id, how, via, score, text."""
        import pandas as pd

        columns = ["rank", "id", "how", "via", "score", "text"]
        rows = [(rank, i.id, i.how, i.via, i.score, i.text) for rank, i in enumerate(self.items, 1)]
        return pd.DataFrame(rows, columns=columns)


def count_tokens(text: str) -> int:
    """Words and punctuation marks: the same for every memory, whichever model reads."""
    import re

    return len(re.findall(r"\w+|[^\w\s]", text))


class StoreMemory(ABC):
    """Base of the memories of agents. Subclasses set ``slug`` and implement ``write`` and ``read``.

    ``store`` holds the items and the log; everything that can be inspected, undone or scrubbed is there. The
    constructor of a subclass must work without arguments (an in-memory store, no model, no network).
    """

    slug: ClassVar[str]
    store: Store

    @abstractmethod
    def write(
        self, text: str, *, time: float | None = None, key: str | None = None, meta: dict[str, Any] | None = None
    ) -> int:
        """Keep one piece of text; returns its item id.

        ``time`` is in seconds since 1970 UTC (``workbench.memory.durable.seconds`` converts dates), None for now;
        ``key`` is the caller's own unique name of the piece. Raises BadInput for empty text, an impossible time or a
        key that is taken; the store is then unchanged.
        """

    @abstractmethod
    def read(
        self,
        query: str,
        *,
        k: int | None = None,
        budget_notes: int | None = None,
        budget_tokens: int | None = None,
        time: float | None = None,
    ) -> Reading:
        """What the memory gives back for ``query``, best first.

        ``k`` is the mechanism's own number of direct hits; the budgets cap everything that is returned. Raises
        BadInput for an empty query, k < 1 or a budget < 1.
        """

    def consult(
        self, query: str, *, budget_tokens: int | None = None, time: float | None = None
    ) -> tuple[list[str], Reading]:
        """One read, and the lines put before the question: those of its items, unless a mechanism adds its own.

        A mechanism that composes more than what it found (a portrait, a summary) overrides this.
        """
        found = self.read(query, budget_tokens=budget_tokens, time=time)
        return [item.text for item in found.items], found

    def context(self, query: str, *, budget_tokens: int | None = None, time: float | None = None) -> str:
        """What is put before a question in a model's prompt; empty when nothing was found."""
        return "\n".join(self.consult(query, budget_tokens=budget_tokens, time=time)[0])

    def edit(self, id: int, *, text: str | None = None, tags: Sequence[str] | None = None, why: str = "edited") -> Any:
        """Change what one item says, by hand; an index text that holds the old text follows the new one.

        A mechanism whose vectors hold more than that overrides this. Raises what ``Store.update`` raises; the store is
        then unchanged.
        """
        item, fields = self.store.get(id), dict[str, Any]()
        if text is not None:
            fields["text"] = text
            if item.index_text != item.text and item.text in item.index_text and isinstance(text, str):
                fields["index_text"] = item.index_text.replace(item.text, text)
        if tags is not None:
            fields["tags"] = tags
        return self.store.update(item.id, why=why, **fields)

    def settings(self) -> dict[str, Any]:
        """The constructor's hyper-parameters as they stand."""
        return settings_of(self)

    def reset(self) -> None:
        """Empty the memory; one event in the log, so it can be undone."""
        self.store.clear()

    def nbytes(self) -> int:
        return self.store.nbytes()

    def contents(self, *, start: int = 0, count: int | None = None) -> pd.DataFrame:
        """One row per item that is held, oldest first; a page of it when ``count`` is given."""
        return self.store.contents(start=start, count=count)

    def events(self) -> EventLog:
        return self.store.events()

    def close(self) -> None:
        self.store.close()

    def __len__(self) -> int:
        return len(self.store)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.store)} items in {self.store.path or 'memory'})"


def fitting(sizes: Iterable[int], budget: int | None) -> tuple[list[int], int]:
    """The places of the pieces that fit into ``budget`` together, first come first served, and their size.

    A piece that does not fit is passed over; a shorter one behind it may. None: all of them fit.
    """
    kept, used = [], 0
    for place, size in enumerate(sizes):
        if budget is None or used + size <= budget:
            kept.append(place)
            used += size
    return kept, used


def check_read(query: object, **limits: int | None) -> str:
    """``query`` as a stripped string; every limit must be None or at least 1. Raises BadInput."""
    if not isinstance(query, str):
        raise BadInput(f"the query must be text, got {type(query).__name__}")
    if not query.strip():
        raise BadInput("the query is empty; ask with at least one word")
    for name, value in limits.items():
        if value is not None:
            whole(name, value, more=", or None")
    return query.strip()
