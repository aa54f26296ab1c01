"""A store as it was after one event: read-only, whatever happens to the store afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import BadInput
from workbench.memory.durable import reading, vectors
from workbench.memory.durable.items import Hit, Item, Row, UnknownItem, identifier, item_of

if TYPE_CHECKING:
    import pandas as pd

    from workbench.memory.durable.store import Store


class Snapshot:
    """What ``Store.at`` returns. ``step`` is the event after which this state stood (-1: before the first).

    Items are here; vectors are read from the store's file when asked for, so the store must still be open then.
    """

    def __init__(self, store: Store, step: int, state: dict[int, Row]):
        self.step = step
        self._store = store
        self._rows = {id: row for id, row in state.items() if row["alive"]}
        self._tombstones = {id: row for id, row in state.items() if not row["alive"]}

    def _id(self, id_or_key: Any) -> int:
        if isinstance(id_or_key, str):
            for id, row in self._rows.items():
                if row["key"] == id_or_key:
                    return id
            raise UnknownItem(f"no item had the key {id_or_key[:80]!r} after step {self.step}")
        id = identifier(id_or_key)
        if id not in self._rows:
            raise UnknownItem(f"there was no item {id} after step {self.step}")
        return id

    def get(self, id_or_key: int | str) -> Item:
        """The item with this id or key. Raises UnknownItem."""
        id = self._id(id_or_key)
        return item_of(id, self._rows[id])

    def find(self, key: str) -> Item | None:
        """The item with this key, or None."""
        with contextlib.suppress(UnknownItem):
            return self.get(str(key))
        return None

    def items(self, ids: Iterable[int] | None = None, *, kinds: str | Iterable[str] | None = None) -> list[Item]:
        """All items by id; or those of ``ids`` in that order; only of ``kinds``."""
        wanted = reading.kind_names(kinds)
        order = list(self._rows) if ids is None else [self._id(id) for id in ids]
        return [item_of(id, self._rows[id]) for id in order if wanted is None or self._rows[id]["kind"] in wanted]

    def forgotten(self) -> list[Item]:
        """The tombstones of then, by id."""
        return [item_of(id, row) for id, row in self._tombstones.items()]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items())

    def __contains__(self, id_or_key: object) -> bool:
        with contextlib.suppress(BadInput):
            self._id(id_or_key)
            return True
        return False

    def contents(self, start: int = 0, count: int | None = None) -> pd.DataFrame:
        """One row per item of then; the columns of ``Store.contents``."""
        start, count = reading.page(start, count)
        ids = list(self._rows)[start : None if count is None else start + count]
        return reading.frame(item_of(id, self._rows[id]) for id in ids)

    def vectors(self, ids: Iterable[int] | None = None) -> np.ndarray:
        """(n, dim) float32: the vectors of then."""
        order = list(self._rows) if ids is None else [self._id(id) for id in ids]
        return self._vectors(order)[1]

    def _vectors(self, order: list[int]) -> tuple[str, np.ndarray]:
        """The name of the encoder of then, and its vectors."""
        with self._store._reading() as database:
            numbers = [self._rows[id]["vector"] for id in order]
            made = vectors.maker_of(database, numbers[0]) if numbers else vectors.maker(database)
            if made is None:
                return "", np.zeros((0, 0), dtype=np.float32)
            return made.name, vectors.load(database, numbers, made.dim)

    def search(
        self,
        query: str | np.ndarray,
        k: int = 10,
        *,
        kinds: str | Iterable[str] | None = None,
        ids: Iterable[int] | None = None,
        exclude: Iterable[int] = (),
    ) -> list[Hit]:
        """The nearest items of then by cosine, compared one by one; as ``Store.search``."""
        from workbench.memory.retrieval import index

        order = [item.id for item in self.items(ids, kinds=kinds)]
        name, found = self._vectors(order)
        if isinstance(query, str) and order and name != self._store.encoder.name:
            raise BadInput(
                f"the vectors of step {self.step} were made by {name!r}, the store encodes with "
                f"{self._store.encoder.name!r} now; search with a vector, or in the store of now"
            )
        vector = reading.query_vector(query, lambda: self._store.encoder)
        exact = index("exact", found.shape[1]) if order else None
        if exact is not None:
            exact.add(order, found)
        return reading.search(exact, vector, k, None, exclude)

    def __repr__(self) -> str:
        return f"Snapshot({len(self)} items after step {self.step})"
