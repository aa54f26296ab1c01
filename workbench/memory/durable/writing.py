"""How a store is written: each function carries one operation out inside a unit and logs it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import BadInput, WorkbenchError
from workbench.memory.durable import history, reading, rows, vectors
from workbench.memory.durable.history import Change, Unit
from workbench.memory.durable.items import FIELDS, Item, Row, UnknownItem, index_text, item_of
from workbench.memory.durable.vectors import Maker

if TYPE_CHECKING:
    from workbench.memory.retrieval import Encoder


def same_encoder(encoder: Encoder, made: Maker | None, path: Path | None) -> None:
    """Raise BadInput when the vectors of the file were made by another encoder than ``encoder``."""
    if made is not None and (made.name, made.dim) != (encoder.name, encoder.dim):
        raise BadInput(
            f"the vectors of {path or 'this store'} were made by {made.name!r} ({made.dim} numbers), the encoder given "
            f"is {encoder.name!r} ({encoder.dim}); open it with that one, or open it without encoder= and make all "
            "vectors anew by store.reencode(the new encoder)"
        )


def recall_encoder(made: Maker) -> Encoder:
    """The encoder that a file remembers, found by its name. Raises BadInput when the name says too little."""
    from workbench.memory.retrieval import encoder

    try:
        found = encoder(made.name)
    except WorkbenchError as error:
        raise BadInput(
            f"the store's vectors were made by {made.name!r}, which cannot be found by its name ({error}); open the "
            "store with encoder=the same encoder, or call store.reencode(...)"
        ) from error
    same_encoder(found, made, None)
    return found


def encode_rows(encoder: Encoder, made: Sequence[Row]) -> np.ndarray:
    return vectors.encode(encoder, [index_text(row) for row in made])


def add(unit: Unit, made: Sequence[Row], encoded: np.ndarray, maker: Maker) -> list[Item]:
    """Write new rows with their vectors; one event each."""
    database = unit.database
    _check_keys(database, [row["key"] for row in made if row["key"] is not None])
    _check_targets(database, {link for row in made for link in row["links"]})
    items = []
    for row, vector in zip(made, encoded):
        row = {**row, "vector": vectors.keep(database, maker, vector)}
        id = rows.put(database, None, row, linked=bool(row["links"]))
        unit.log("write", [id], changes=[(id, None, row)])
        items.append(item_of(id, row))
    return items


def _check_keys(database: sqlite3.Connection, keys: Sequence[str]) -> None:
    if len(set(keys)) < len(keys):
        twice = next(key for place, key in enumerate(keys) if key in keys[:place])
        raise BadInput(f"the key {twice[:80]!r} is given twice; keys are unique, nothing was written")
    for part in rows.chunks(keys):
        where = f"SELECT key, id FROM items WHERE alive = 1 AND key IN ({rows.marks(part)})"
        if found := database.execute(where, part).fetchone():
            raise BadInput(f"the key {found[0][:80]!r} is taken by item {found[1]}; choose another or update that item")


def _check_targets(database: sqlite3.Connection, targets: set[int]) -> None:
    for id in sorted(targets - reading.living(database, targets)):
        reading.living_id(database, id)


class Vectors:
    """Vectors of texts that were encoded before the file was locked; others are encoded when asked for."""

    def __init__(self, encoder: Encoder, texts: Iterable[str]):
        self.encoder = encoder
        listed = list(dict.fromkeys(texts))
        self._made = dict(zip(listed, vectors.encode(encoder, listed))) if listed else {}

    def of(self, text: str) -> np.ndarray:
        if text not in self._made:
            self._made[text] = vectors.encode(self.encoder, [text])[0]
        return self._made[text]


def update(unit: Unit, id: int, new: Row, found: Vectors | None, maker: Maker | None) -> Item:
    """Change fields of one item; one event for each that differs. ``found`` None leaves a stale vector."""
    database = unit.database
    row = rows.fetch_ids(database, [id])[id]
    for name in FIELDS:
        if name not in new or new[name] == row[name]:
            continue
        _check_field(database, id, name, new[name])
        delta: Row = {name: new[name]}
        if index_text(row | delta) != index_text(row):
            delta |= _vector(database, index_text(row | delta), found, maker)
        row = _change(unit, id, row, delta, name)
    return item_of(id, row)


def _check_field(database: sqlite3.Connection, id: int, name: str, value: object) -> None:
    if name == "key" and isinstance(value, str):
        _check_keys(database, [value])
    if name == "links" and isinstance(value, list):
        if id in value:
            raise BadInput(f"item {id} cannot link to itself")
        _check_targets(database, set(value))


def _vector(database: sqlite3.Connection, text: str, found: Vectors | None, maker: Maker | None) -> Row:
    if found is None or maker is None:
        return {"stale": 1}
    return {"vector": vectors.keep(database, maker, found.of(text)), "stale": 0}


def _change(unit: Unit, id: int, row: Row, delta: Row, name: str) -> Row:
    """Write ``delta`` and log it as a change of the field ``name``."""
    old = {column: row[column] for column in delta}
    row = row | delta
    rows.put(unit.database, id, row, linked="links" in delta)
    touched = sorted(set(old["links"]) ^ set(delta["links"])) if name == "links" else []
    unit.log("link" if name == "links" else "update", [id, *touched], changes=[(id, old, delta)], field=name)
    return row


def link(unit: Unit, id: int, to: int, *, add: bool) -> Item:
    """Add or take away one link."""
    row = rows.fetch_ids(unit.database, [id])[id]
    if (to in row["links"]) == add:
        return item_of(id, row)
    if id == to:
        raise BadInput(f"item {id} cannot link to itself")
    links = [*row["links"], to] if add else [link for link in row["links"] if link != to]
    return item_of(id, _change(unit, id, row, {"links": links}, "links"))


def delete(unit: Unit, id: int) -> Item:
    """Make a tombstone of an item and cut the links to it, as one event."""
    database = unit.database
    found = rows.fetch_ids(database, [id, *(sources := rows.sources(database, id))])
    changes: list[Change] = []
    for source in sources:
        links = found[source]["links"]
        changes.append((source, {"links": links}, {"links": [link for link in links if link != id]}))
    changes.append((id, {"alive": 1}, {"alive": 0}))
    history.write(database, changes)
    detail: dict[str, Any] = {"unlinked": sources} if sources else {}
    unit.log("evict", [id], changes=changes, **detail)
    return item_of(id, found[id])


def restore(unit: Unit, id: int) -> Item:
    """Bring a tombstone back, with the links to items that live and those that its deletion cut."""
    database = unit.database
    row = rows.fetch_ids(database, [id]).get(id)
    if row is None:
        raise UnknownItem(f"there is no item {id} to restore; forgotten() lists what there is")
    if row["alive"]:
        raise BadInput(f"item {id} is not forgotten; there is nothing to restore")
    if row["key"] is not None:
        _check_keys(database, [row["key"]])
    alive = reading.living(database, row["links"])
    links = [link for link in row["links"] if link in alive]
    delta: Row = {"alive": 1} if links == row["links"] else {"alive": 1, "links": links}
    changes: list[Change] = [(id, {column: row[column] for column in delta}, delta), *_relink(database, id)]
    history.write(database, changes)
    unit.log("restore", [id], changes=changes)
    return item_of(id, row | delta)


def _relink(database: sqlite3.Connection, id: int) -> list[Change]:
    """The links that were cut when ``id`` was forgotten, of those sources that live.

    What was undone, and the undoing itself, never happened to the state that stands: both are passed by.
    """
    found = database.execute(
        f"SELECT kind, changes FROM events WHERE {history.EFFECTIVE} "
        "AND (kind = 'evict' AND items = ? OR kind = 'reset') ORDER BY step DESC LIMIT 1",
        (json.dumps([id]),),
    ).fetchone()
    if found is None or found[0] == "reset":
        return []
    cut = {source: old["links"] for source, old, _ in json.loads(found[1]) if source != id and old and "links" in old}
    alive = reading.living(database, cut)
    again: list[Change] = []
    for source, row in sorted(rows.fetch_ids(database, alive).items()):
        if id in cut[source] and id not in row["links"]:
            place = cut[source].index(id)
            again.append(
                (source, {"links": row["links"]}, {"links": [*row["links"][:place], id, *row["links"][place:]]})
            )
    return again


def clear(unit: Unit) -> None:
    """Make tombstones of all items, as one event; nothing when there is none."""
    database = unit.database
    ids = [id for (id,) in database.execute("SELECT id FROM items WHERE alive ORDER BY id")]
    if not ids:
        return
    database.execute("UPDATE items SET alive = 0 WHERE alive")
    database.execute("DELETE FROM links")
    unit.log("reset", ids, changes=[(id, {"alive": 1}, {"alive": 0}) for id in ids])


def refresh(unit: Unit, ids: Sequence[int], encoded: np.ndarray, maker: Maker) -> None:
    """Give stale items their new vectors; one event each."""
    found = rows.fetch_ids(unit.database, ids)
    for id, vector in zip(ids, encoded):
        delta = {"vector": vectors.keep(unit.database, maker, vector), "stale": 0}
        _change(unit, id, found[id], delta, "vector")


def reencode(unit: Unit, encoder: Encoder) -> int:
    """Give every item, forgotten ones too, a vector by ``encoder``; one event. Returns how many items."""
    database = unit.database
    old, made = vectors.maker(database), vectors.remember(database, encoder)
    found = dict(rows.fetch(database, "ORDER BY id"))
    changes: list[Change] = []
    encoded = encode_rows(encoder, list(found.values()))
    for (id, row), vector in zip(found.items(), encoded):
        delta = {"vector": vectors.keep(database, made, vector), "stale": 0}
        changes.append((id, {column: row[column] for column in delta}, delta))
    database.executemany(
        "UPDATE items SET vector = ?, stale = 0 WHERE id = ?", ((new["vector"], id) for id, _, new in changes if new)
    )
    name = old.name if old else None
    unit.log("update", list(found), changes=changes, field="vector", old=name, new=encoder.name)
    return len(found)


def undo(unit: Unit, number: int, encoder: Callable[[], Encoder]) -> None:
    """Write the changes of unit ``number`` backwards, as events of ``unit``.

    ``encoder`` is called only if vectors of that time were made by another one.
    """
    unit.undoes = number
    for event, changes in history.unit_changes(unit.database, number):
        written = [_as_of_now(unit.database, change, encoder) for change in history.backwards(changes)]
        history.write(unit.database, written)
        detail = {"field": event.detail["field"]} if "field" in event.detail else {}
        unit.log(history.INVERSE.get(event.kind, event.kind), event.items, changes=written, **detail)


def _as_of_now(database: sqlite3.Connection, change: Change, encoder: Callable[[], Encoder]) -> Change:
    """``change`` with the old values as they stand now and a vector by the encoder of now."""
    id, _, new = change
    row = rows.fetch_ids(database, [id]).get(id)
    if new is None or row is None:
        return id, row, new
    made = vectors.maker(database)
    if "vector" in new and made and vectors.maker_of(database, new["vector"]) != made:
        vector = vectors.encode(encoder(), [index_text(row | new)])[0]
        new = new | {"vector": vectors.keep(database, made, vector), "stale": 0}
    return id, {column: row[column] for column in new}, new


def replay(source: sqlite3.Connection, twin: sqlite3.Connection) -> None:
    """Fill the empty database ``twin`` from the log of ``source`` alone: events, vectors, and the items they make."""
    twin.execute("BEGIN")
    for name in ("encoders", "vectors", "events"):
        columns = [column for (_, column, *_) in source.execute(f"PRAGMA table_info({name})")]
        listed = ", ".join(columns)
        twin.executemany(
            f"INSERT INTO {name} ({listed}) VALUES ({rows.marks(columns)})",
            source.execute(f"SELECT {listed} FROM {name}"),
        )
    state: dict[int, Row] = {}
    last = 0
    for (changes,) in source.execute("SELECT changes FROM events WHERE changes IS NOT NULL ORDER BY step"):
        listed_changes = json.loads(changes)
        last = max([last, *(id for id, _, _ in listed_changes)])
        history.apply(state, listed_changes)
    for id, row in sorted(state.items()):
        rows.put(twin, id, row)
    twin.execute("DELETE FROM sqlite_sequence WHERE name = 'items'")
    twin.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('items', ?)", (last,))
    twin.execute("COMMIT")
