"""Rows of the tables ``items`` and ``links``: read, put, removed. Nothing here is logged; the store does that."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from workbench.memory.durable.items import COLUMNS, Row

T = TypeVar("T")

_JSON = frozenset({"tags", "links", "meta"})
_SELECT = f"SELECT id, {', '.join(COLUMNS)} FROM items"
_PUT = (
    f"INSERT INTO items (id, {', '.join(COLUMNS)}) VALUES ({', '.join('?' * (len(COLUMNS) + 1))}) "
    f"ON CONFLICT (id) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in COLUMNS)}"
)
#: SQLite allows some thousand parameters in one statement; this many are surely fine.
_CHUNK = 500


def dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def put(database: sqlite3.Connection, id: int | None, row: Row, *, linked: bool = True) -> int:
    """Write ``row`` under ``id`` (None: a new id, never one used before) and return the id.

    ``linked=False`` says that neither links nor alive changed, so that the table of links stays as it is.
    """
    values = [dumps(row[name]) if name in _JSON else row[name] for name in COLUMNS]
    made = database.execute(_PUT, (id, *values)).lastrowid
    id = made if id is None else id
    assert id is not None
    if linked:
        database.execute("DELETE FROM links WHERE source = ?", (id,))
        if row["alive"]:
            database.executemany(
                "INSERT INTO links (target, source) VALUES (?, ?)", ((target, id) for target in row["links"])
            )
    return id


def remove(database: sqlite3.Connection, id: int) -> None:
    """Take a row away altogether (an addition that was undone)."""
    database.execute("DELETE FROM links WHERE source = ?", (id,))
    database.execute("DELETE FROM items WHERE id = ?", (id,))


def fetch(database: sqlite3.Connection, where: str = "", values: Sequence[Any] = ()) -> Iterator[tuple[int, Row]]:
    """(id, row) of the items that ``where`` selects."""
    for id, *found in database.execute(f"{_SELECT} {where}", values):
        row = dict(zip(COLUMNS, found))
        for name in _JSON:
            row[name] = json.loads(row[name])
        yield id, row


def fetch_ids(database: sqlite3.Connection, ids: Iterable[int]) -> dict[int, Row]:
    """The rows of ``ids``, living or forgotten; what is unknown is absent."""
    found: dict[int, Row] = {}
    for part in chunks(list(ids)):
        found.update(fetch(database, f"WHERE id IN ({marks(part)})", part))
    return found


def sources(database: sqlite3.Connection, target: int) -> list[int]:
    """The living items that point to ``target``, by id."""
    return [id for (id,) in database.execute("SELECT source FROM links WHERE target = ? ORDER BY source", (target,))]


def chunks(values: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(values), _CHUNK):
        yield values[start : start + _CHUNK]


def marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))
