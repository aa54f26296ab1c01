"""The store: durable items with text, vector, time and links; everything that happens to them is one log."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import BadInput, WorkbenchError
from workbench.memory.base import Event, EventLog
from workbench.memory.durable import history, integrity, reading, rows, transfer, vectors, writing
from workbench.memory.durable.items import (
    Hit,
    Item,
    NewItem,
    UnknownItem,
    checked,
    identifier,
    item_of,
    new_items,
    new_row,
)
from workbench.memory.durable.session import Session

if TYPE_CHECKING:
    import pandas as pd

    from workbench.memory.durable.snapshot import Snapshot
    from workbench.memory.retrieval import Encoder


class Store(Session):
    """Items in an SQLite file, or in memory by the same code when ``path`` is None.

    Every operation is one transaction: when it returns, its effect is on the disk; when it raises, nothing changed.
    ``transaction()`` joins several into one. Safe from several threads and several processes at once; where a new value
    depends on an old one, read and write inside one transaction.

    Args:
        path: the file; made with its folder when there is none.
        encoder: what makes vectors of texts (or its name, see ``workbench.memory.retrieval.encoder``). None: the one
            the file remembers, else the default, loaded when first needed.
        index: "exact", "faiss-hnsw" or "faiss-ivf".
        clock: gives the time of items without one and of events, in seconds since 1970 UTC.

    Raises:
        BundleError: the file is no store, is damaged, or is of a newer version; it is left as it was.
        BadInput: the file's vectors were made by another encoder; the message says how to re-encode.

    >>> store = Store(encoder="tfidf")
    >>> ada = store.add("Ada moved to Bergen", time="2023-05-01")
    >>> tea = store.add("Tea is served at four", links=[ada.id])
    >>> [hit.id for hit in store.search("Who lives in Bergen?", k=1)]
    [1]
    >>> store.update(ada.id, text="Ada moved to Oslo", why="she said so").text
    'Ada moved to Oslo'
    >>> store.at(step=1).get(ada.id).text
    'Ada moved to Bergen'
    >>> [event.kind for event in store.undo()], store.get(ada.id).text
    (['update'], 'Ada moved to Bergen')
    """

    @contextlib.contextmanager
    def transaction(self, why: str = "") -> Iterator[Store]:
        """Everything inside is one durable unit and one undo step; an exception takes all of it back.

        Other threads and processes wait until it ends. ``why`` is the reason of events that name none.
        """
        with self._writing(why, guarded=False):
            yield self

    def add(
        self,
        text: str,
        *,
        key: str | None = None,
        kind: str = "note",
        time: Any = None,
        strength: float = 1.0,
        tags: Iterable[str] = (),
        links: Iterable[int] = (),
        meta: Mapping[str, Any] | None = None,
        index_text: str | None = None,
        why: str = "",
    ) -> Item:
        """Write one item. Raises BadInput for what cannot be kept, a key that is taken or a link to no living item."""
        return self.add_many([NewItem(text, key, kind, time, strength, tags, links, meta, index_text)], why)[0]

    def add_many(self, items: Sequence[NewItem], why: str = "") -> list[Item]:
        """Write items in one transaction; vectors are made in one batch. If one is refused, none is written."""
        items = new_items(items)
        made = [new_row(item, self.now() if item.time is None else 0.0) for item in items]
        if not made:
            return []
        encoded = writing.encode_rows(self.encoder, made)
        with self._writing(why) as unit:
            return writing.add(unit, made, encoded, self._maker())

    def update(self, id: int, *, why: str = "", lazy: bool = False, **fields: Any) -> Item:
        """Change any field but the id; one event for each field that really changes, with old and new value.

        A changed text is encoded at once, or with ``lazy`` flagged stale until ``refresh``. Returns the item as it is
        then. Raises UnknownItem, or BadInput for a field or value that cannot be; the store is then unchanged.
        """
        new = checked(fields)
        texts = {"text", "index_text"} & set(new)
        # Encoded before the file is locked: nobody else has to wait for an encoder.
        found = writing.Vectors(self.encoder, filter(None, map(new.get, texts))) if texts and not lazy else None
        with self._writing(why) as unit:
            return writing.update(unit, self._id(id), new, found, self._maker() if found else None)

    def link(self, id: int, to: int, why: str = "") -> Item:
        """Let item ``id`` point to item ``to`` (nothing happens when it does). Raises BadInput for a link to itself."""
        with self._writing(why) as unit:
            return writing.link(unit, self._id(id), self._id(to), add=True)

    def unlink(self, id: int, to: int, why: str = "") -> Item:
        """Take the link from ``id`` to ``to`` away (nothing happens when there is none)."""
        with self._writing(why) as unit:
            return writing.link(unit, self._id(id), self._id(to), add=False)

    def delete(self, id: int, why: str = "") -> Item:
        """Forget an item: it stays in the file as a tombstone, and links to it go. Returns it as it was."""
        with self._writing(why) as unit:
            return writing.delete(unit, self._id(id))

    def restore(self, id: int, why: str = "") -> Item:
        """Bring a forgotten item back, with its links from and to items that live.

        Raises UnknownItem when it was never there, BadInput when it lives or another item has its key now.
        """
        with self._writing(why) as unit:
            return writing.restore(unit, identifier(id))

    def clear(self, why: str = "cleared") -> None:
        """Forget all items: one event, one undo step."""
        with self._writing(why) as unit:
            writing.clear(unit)

    def record(self, kind: str, ids: Iterable[int], why: str, **detail: Any) -> Event:
        """Log something that changes no item ("read", "rerank", "decay"). ``detail`` must be JSON."""
        if kind not in history.RECORDABLE:
            raise BadInput(f"record writes events of kinds {', '.join(history.RECORDABLE)}, got {kind!r}")
        with self._writing() as unit:
            return unit.log(kind, [self._id(id) for id in reading.several(ids)], why, **detail)

    def refresh(self, ids: Iterable[int] | None = None, why: str = "re-encoded") -> int:
        """Encode the stale items (of ``ids``) anew; returns how many."""
        with self._writing(why) as unit:
            stale = [item for item in self.items(ids) if item.stale]
            if stale:
                encoded = vectors.encode(self.encoder, [item.index_text for item in stale])
                writing.refresh(unit, [item.id for item in stale], encoded, self._maker())
            return len(stale)

    def reencode(self, encoder: Encoder | str, why: str = "") -> int:
        """Make all vectors anew with another encoder, which the file remembers from then on; returns how many items.

        This is no undo step: undoing an older one afterwards encodes with the new encoder.
        """
        new = self._resolve(encoder)
        with self._writing(why or f"re-encoded with {new.name}", undoable=False) as unit:
            if unit.undoable:
                raise BadInput("reencode is a unit of its own: call it outside of a transaction")
            count = writing.reencode(unit, new)
        self._encoder = new
        return count

    def undo(self) -> list[Event]:
        """Take back the last unit that changed items and was not undone, texts and vectors; an empty list when none.

        What it writes are events as well (detail "undoes": the unit); they cannot be undone in turn.
        """
        with self._writing("undo", undoable=False) as unit:
            if unit.undoable:
                raise BadInput("undo takes back finished units: call it after the transaction")
            number = history.last_unit(self._database)
            if number is not None:
                writing.undo(unit, number, lambda: self.encoder)
            return list(unit.events)

    def _id(self, id_or_key: int | str) -> int:
        """The id of a living item. Raises UnknownItem."""
        return reading.living_id(self._database, id_or_key)

    def get(self, id_or_key: int | str) -> Item:
        """The item with this id or key. Raises UnknownItem."""
        with self._reading() as database:
            id = self._id(id_or_key)
            return item_of(id, rows.fetch_ids(database, [id])[id])

    def find(self, key: str) -> Item | None:
        """The item with this key, or None."""
        with contextlib.suppress(UnknownItem):
            return self.get(str(key))
        return None

    def items(self, ids: Iterable[int] | None = None, *, kinds: str | Iterable[str] | None = None) -> list[Item]:
        """All living items by id; or those of ``ids`` in that order; only of ``kinds``. Raises UnknownItem."""
        with self._reading() as database:
            return [item_of(id, row) for id, row in reading.select(database, ids, kinds)]

    def forgotten(self) -> list[Item]:
        """The tombstones, by id."""
        with self._reading() as database:
            return [item_of(id, row) for id, row in rows.fetch(database, "WHERE NOT alive ORDER BY id")]

    def __len__(self) -> int:
        with self._reading() as database:
            return database.execute("SELECT count(*) FROM items WHERE alive = 1").fetchone()[0]

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items())

    def __contains__(self, id_or_key: object) -> bool:
        with self._reading(), contextlib.suppress(BadInput):
            self._id(id_or_key)  # type: ignore[arg-type]
            return True
        return False

    def search(
        self,
        query: str | np.ndarray,
        k: int = 10,
        *,
        kinds: str | Iterable[str] | None = None,
        ids: Iterable[int] | None = None,
        exclude: Iterable[int] = (),
    ) -> list[Hit]:
        """The ``k`` items whose vectors are nearest to ``query`` by cosine, best first, ties by id.

        Raises BadInput for an empty query, a vector of another width or k < 1.
        """
        vector = reading.query_vector(query, lambda: self.encoder)
        with self._moment() as database:
            index = self._live.sync(database)
            allowed = reading.allowed(database, ids, kinds)
            return reading.search(index, vector, k, allowed, exclude)

    def vectors(self, ids: Iterable[int] | None = None) -> np.ndarray:
        """(n, dim) float32, rows of length one: of all living items by id, or of ``ids`` in that order."""
        with self._moment() as database:
            return reading.vectors_of(database, ids, self._encoder.dim if self._encoder else 0)

    def events(self) -> EventLog:
        """The log from the first event on; the caller's own copy."""
        with self._reading() as database:
            for event in history.events(database, len(self._log)):
                self._log.append(event.kind, event.items, event.why, **event.detail)
            return self._log.copy()

    def at(self, step: int | None = None, time: Any = None) -> Snapshot:
        """The store as it was after event ``step`` (-1: before the first), or at ``time``: read-only."""
        from workbench.memory.durable.snapshot import Snapshot

        with self._moment() as database:
            step = reading.moment(database, step, time)
            return Snapshot(self, step, self._cursor.at(database, step))

    def replay(self) -> Store:
        """A store in memory, rebuilt from the log alone."""
        with self._moment() as database:
            twin = Store(encoder=self._encoder, index=self.index_name, clock=self.clock)
            writing.replay(database, twin._database)
            return twin

    def contents(self, start: int = 0, count: int | None = None) -> pd.DataFrame:
        """One row per living item by id, ``count`` of them from ``start`` on.

        Columns: id, key, kind, text, time (seconds), when (UTC), strength, tags, links, meta, index_text, stale.
        """
        start, count = reading.page(start, count)
        with self._reading() as database:
            limit = "WHERE alive ORDER BY id LIMIT ? OFFSET ?"
            found = list(rows.fetch(database, limit, (-1 if count is None else count, start)))
        return reading.frame(item_of(id, row) for id, row in found)

    def nbytes(self) -> int:
        """Bytes of what is held: texts, keys, tags and metadata as UTF-8 and vectors as float32; not the history."""
        with self._reading() as database:
            return reading.nbytes(database)

    def check(self) -> list[str]:
        """What is wrong with the file, or with its items against its log; empty when nothing is. Reads everything."""
        with self._moment() as database:
            return integrity.problems(database)

    def export_jsonl(self, path: str | Path) -> Path:
        """The living items as JSON lines (without vectors and history)."""
        return transfer.export_jsonl(self, path)

    def import_jsonl(self, path: str | Path, why: str = "") -> list[Item]:
        """Add the items of an export; ids are given anew and links follow. All or nothing."""
        return transfer.import_jsonl(self, path, why)

    def export_parquet(self, path: str | Path) -> Path:
        """The living items with their vectors as Parquet."""
        return transfer.export_parquet(self, path)

    def import_parquet(self, path: str | Path, why: str = "") -> list[Item]:
        """Add the items of an export; vectors are taken over when the same encoder made them. All or nothing."""
        return transfer.import_parquet(self, path, why)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        try:
            return f"Store({len(self)} items in {self.path or 'memory'}, {self.encoder_label})"
        except WorkbenchError as error:  # closed, say: a repr never fails
            return f"Store({self.path or 'memory'}: {error})"
