"""How a store is read: who lives, what is selected, what a search may return, and pages of it as a frame."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.checks import whole
from workbench.errors import BadInput
from workbench.memory.durable import history, rows, vectors
from workbench.memory.durable.clock import seconds, when
from workbench.memory.durable.items import Hit, Item, Row, UnknownItem, identifier, plain

if TYPE_CHECKING:
    import pandas as pd

    from workbench.memory.retrieval import Encoder, Index

_FRAME = ("id", "key", "kind", "text", "time", "when", "strength", "tags", "links", "meta", "index_text", "stale")


def living_id(database: sqlite3.Connection, id_or_key: Any) -> int:
    """The id of the living item with this id or key. Raises UnknownItem."""
    if isinstance(id_or_key, str):
        plain(id_or_key, "key")
        found = database.execute("SELECT id FROM items WHERE alive = 1 AND key = ?", (id_or_key,)).fetchone()
        if found is None:
            raise UnknownItem(f"no item has the key {id_or_key[:80]!r}; contents() lists the keys")
        return found[0]
    id = identifier(id_or_key)
    found = database.execute("SELECT alive FROM items WHERE id = ?", (id,)).fetchone()
    if found is None:
        last = database.execute("SELECT max(id) FROM items").fetchone()[0]
        held = f"ids run from 1 to {last}" if last else "the store is empty"
        raise UnknownItem(f"there is no item {id}; {held}")
    if not found[0]:
        raise UnknownItem(f"item {id} was forgotten; restore({id}) brings it back")
    return id


def several(ids: Any) -> list[Any]:
    """``ids`` as a list. Raises BadInput for what is none: a text would be taken letter by letter."""
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise BadInput(f"ids must be a list of item ids, got {ids!r:.40}; put a single one into a list")
    return list(ids)


def living(database: sqlite3.Connection, ids: Iterable[int]) -> set[int]:
    """Those of ``ids`` that live."""
    found: set[int] = set()
    for part in rows.chunks(sorted(set(ids))):
        found.update(
            id for (id,) in database.execute(f"SELECT id FROM items WHERE alive AND id IN ({rows.marks(part)})", part)
        )
    return found


def select(
    database: sqlite3.Connection, ids: Iterable[int] | None, kinds: str | Iterable[str] | None
) -> list[tuple[int, Row]]:
    """(id, row) of the living items: all by id, or those of ``ids`` in that order; only of ``kinds``."""
    wanted = kind_names(kinds)
    if ids is not None:
        order = [living_id(database, id) for id in several(ids)]
        found = rows.fetch_ids(database, order)
        return [(id, found[id]) for id in order if wanted is None or found[id]["kind"] in wanted]
    if wanted is None:
        return list(rows.fetch(database, "WHERE alive ORDER BY id"))
    where = f"WHERE alive = 1 AND kind IN ({rows.marks(wanted)}) ORDER BY id"
    return list(rows.fetch(database, where, wanted))


def kind_names(kinds: str | Iterable[str] | None) -> list[str] | None:
    """``kinds`` as a list; one name may stand alone."""
    if kinds is None:
        return None
    if not isinstance(kinds, Iterable):
        raise BadInput(f"kinds must be a kind's name or a list of them, got {kinds!r:.40}")
    names = [kinds] if isinstance(kinds, str) else list(kinds)
    return [plain(name, "kind") for name in names]


def query_vector(query: str | np.ndarray, encoder: Callable[[], Encoder]) -> np.ndarray:
    """``query`` as a vector of length one (text without content may give zeros). Raises BadInput."""
    if isinstance(query, str):
        if not query.strip():
            raise BadInput("the query is empty; ask with at least one word")
        return vectors.encode(encoder(), [plain(query, "query")])[0]
    vector = np.asarray(query)
    if vector.ndim != 1 or vector.dtype.kind not in "fiu" or not np.isfinite(vector).all():
        raise BadInput(
            f"the query must be text or one vector of finite numbers, got {type(query).__name__} with shape "
            f"{vector.shape} of {vector.dtype}"
        )
    length = float(np.linalg.norm(vector.astype(np.float64)))
    return (vector / length if length else vector).astype(np.float32)


def allowed(
    database: sqlite3.Connection, ids: Iterable[int] | None, kinds: str | Iterable[str] | None
) -> set[int] | None:
    """The ids that a search may return; None for all. Raises UnknownItem for one of ``ids`` that is not held."""
    if ids is None and kinds is None:
        return None
    wanted = kind_names(kinds)
    found = None if ids is None else {living_id(database, id) for id in several(ids)}
    if wanted is None:
        return found
    where = f"SELECT id FROM items WHERE alive = 1 AND kind IN ({rows.marks(wanted)})"
    of_kind = {id for (id,) in database.execute(where, wanted)}
    return of_kind if found is None else found & of_kind


def search(
    index: Index | None, vector: np.ndarray, k: int, allowed: set[int] | None, exclude: Iterable[int]
) -> list[Hit]:
    """The best ``k`` of ``allowed`` without ``exclude``. Raises BadInput for k < 1."""
    k = whole("k", k)
    left_out = {identifier(id) for id in exclude}
    if index is None:
        return []
    if allowed is not None:
        return index.search(vector, int(k), allowed - left_out)
    hits = index.search(vector, int(k) + len(left_out))
    return [hit for hit in hits if hit.id not in left_out][: int(k)]


def vectors_of(database: sqlite3.Connection, ids: Iterable[int] | None, dim: int) -> np.ndarray:
    """(n, dim) float32 of the living items; ``dim`` is the width where there is none."""
    made = vectors.maker(database)
    if made is None:
        if ids is not None and (listed := several(ids)):
            living_id(database, listed[0])
        return np.zeros((0, dim), dtype=np.float32)
    if ids is None:
        found = "SELECT data FROM items JOIN vectors ON vectors.id = vector WHERE alive ORDER BY items.id"
        return vectors.unpack([blob for (blob,) in database.execute(found)], made.dim)
    order = [living_id(database, id) for id in several(ids)]
    numbers: dict[int, int] = {}
    for part in rows.chunks(order):
        numbers.update(
            database.execute(f"SELECT id, vector FROM items WHERE id IN ({rows.marks(part)})", part).fetchall()
        )
    return vectors.load(database, [numbers[id] for id in order], made.dim)


def moment(database: sqlite3.Connection, step: int | None, time: Any) -> int:
    """The step that ``at(step, time)`` means. Raises BadInput for both at once or a step that is not in the log."""
    last = history.last_step(database)
    if step is not None and time is not None:
        raise BadInput("name a moment by its step or by its time, not by both")
    if time is not None:
        return history.step_at(database, seconds(time))
    if step is None:
        return last
    return whole("step", step, -1, last, more=" (-1: before the first event)")


def page(start: int, count: int | None) -> tuple[int, int | None]:
    """``start`` and ``count`` of a page, checked."""
    return whole("start", start, 0), None if count is None else whole("count", count, 0, more=", or None")


def frame(items: Iterable[Item]) -> pd.DataFrame:
    """One row per item; the columns of ``Store.contents``."""
    import pandas as pd

    listed = [
        {**vars(item), "when": when(item.time), "tags": list(item.tags), "links": list(item.links)} for item in items
    ]
    made = pd.DataFrame(listed, columns=list(_FRAME))
    made["when"] = pd.to_datetime(made["when"], utc=True)
    return made


def nbytes(database: sqlite3.Connection) -> int:
    """Bytes of the living items as UTF-8, and of their vectors as float32."""
    texts = " + ".join(
        f"ifnull(length(CAST({name} AS BLOB)), 0)"
        for name in ("text", "index_text", "key", "kind", "tags", "links", "meta")
    )
    count, size = database.execute(f"SELECT count(*), ifnull(sum({texts}), 0) FROM items WHERE alive").fetchone()
    made = vectors.maker(database)
    # time and strength are 8 bytes each
    return size + count * (16 + 4 * (made.dim if made else 0))
