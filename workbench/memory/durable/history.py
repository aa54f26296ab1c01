"""The append-only log of a store: written in units, read as events, walked forwards and backwards.

Each event carries its *changes*: a list of [item id, old, new]. Old and new are rows (None: no such row) or, where a
row stays, the columns that changed. The log and the vectors, which are never removed either, are enough to rebuild
every state the store was ever in; a unit is undone by writing its changes backwards, as new events.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from workbench.errors import BadInput
from workbench.memory.base import EVENT_KINDS, Event
from workbench.memory.durable import rows as table
from workbench.memory.durable.items import Row, json_text, plain

Change = tuple[int, Row | None, Row | None]

#: What undoing an event of this kind is an event of.
INVERSE = {"write": "evict", "evict": "restore", "restore": "evict", "reset": "restore"}
#: Kinds that `Store.record` may write: those that do not change which items are held.
RECORDABLE = ("read", "rerank", "decay", "update", "link")

#: The events that made the state that stands: neither undone nor themselves an undoing.
EFFECTIVE = "undoable = 1 AND unit NOT IN (SELECT undoes FROM events WHERE undoes IS NOT NULL)"

_COLUMNS = "step, kind, items, why, time, unit, detail, changes, undoes"


@dataclass
class Unit:
    """What is written between BEGIN and COMMIT: one durable unit and one undo step.

    ``at`` is the time of its events, ``number`` counts units from 0. Times in the log never run backwards: while the
    clock reads earlier than the last event, the last event's time is noted again.
    """

    database: sqlite3.Connection
    why: str
    number: int
    step: int
    at: float
    undoable: bool = True
    undoes: int | None = None
    events: list[Event] = field(default_factory=list)

    @classmethod
    def begin(cls, database: sqlite3.Connection, why: str, now: float, **options: Any) -> Unit:
        last = database.execute("SELECT unit, step, time FROM events ORDER BY step DESC LIMIT 1").fetchone()
        unit, step, time = last or (-1, -1, 0.0)
        return cls(database, plain(why, "why"), unit + 1, step + 1, max(now, time), **options)

    def log(
        self, kind: str, items: Iterable[int], why: str = "", *, changes: Sequence[Change] | None = None, **detail: Any
    ) -> Event:
        """Append one event; with ``changes`` it can be undone (unless the whole unit cannot)."""
        if kind not in EVENT_KINDS:
            raise BadInput(f"event kind {kind!r} is not one of {', '.join(EVENT_KINDS)}")
        values = (
            self.step,
            kind,
            json.dumps(list(items)),
            plain(why, "why") or self.why,
            self.at,
            self.number,
            json_text(detail, "detail"),
            None if changes is None else table.dumps(changes),
            self.undoes,
        )
        self.database.execute(
            f"INSERT INTO events ({_COLUMNS}, undoable) VALUES ({table.marks(values)}, ?)",
            (*values, int(self.undoable and changes is not None)),
        )
        self.step += 1
        event = _event(values)
        self.events.append(event)
        return event


def _event(found: Sequence[Any]) -> Event:
    """A row of ``events`` as the rest of the package knows it; ``detail`` tells time, unit and what was undone."""
    step, kind, items, why, time, unit, detail, changes, undoes = found
    told: dict[str, Any] = {"time": time, "unit": unit, **json.loads(detail)}
    if "field" in told and "old" not in told and changes is not None:
        _, old, new = json.loads(changes)[0]
        told |= {side: value.get(told["field"]) for side, value in (("old", old), ("new", new)) if value is not None}
    if undoes is not None:
        told["undoes"] = undoes
    return Event(step, kind, tuple(json.loads(items)), why, told)


def events(database: sqlite3.Connection, start: int = 0) -> Iterator[Event]:
    """The events from step ``start`` on."""
    for found in database.execute(f"SELECT {_COLUMNS} FROM events WHERE step >= ? ORDER BY step", (start,)):
        yield _event(found)


def last_step(database: sqlite3.Connection) -> int:
    """The step of the last event; -1 before the first."""
    step = database.execute("SELECT max(step) FROM events").fetchone()[0]
    return -1 if step is None else step


def step_at(database: sqlite3.Connection, time: float) -> int:
    """The last step whose event is not later than ``time``; -1 when all are."""
    found = database.execute("SELECT step FROM events WHERE time <= ? ORDER BY step DESC LIMIT 1", (time,)).fetchone()
    return found[0] if found else -1


def last_unit(database: sqlite3.Connection) -> int | None:
    """The last unit that changed items and was not undone yet; None when there is none."""
    found = database.execute(f"SELECT unit FROM events WHERE {EFFECTIVE} ORDER BY unit DESC LIMIT 1").fetchone()
    return found[0] if found else None


def unit_changes(database: sqlite3.Connection, unit: int) -> list[tuple[Event, list[Change]]]:
    """The events of ``unit`` with their changes, last first."""
    first = database.execute("SELECT min(step) FROM events WHERE undoable = 1 AND unit = ?", (unit,)).fetchone()[0]
    found = database.execute(
        f"SELECT {_COLUMNS} FROM events WHERE step >= ? AND unit = ? AND undoable = 1 ORDER BY step DESC", (first, unit)
    ).fetchall()
    return [(_event(row), json.loads(row[7])) for row in found]


def backwards(changes: Iterable[Change]) -> list[Change]:
    """The changes that take ``changes`` back, in the order in which to write them."""
    return [(id, new, old) for id, old, new in reversed(list(changes))]


def apply(state: dict[int, Row], changes: Iterable[Change]) -> None:
    """Carry ``changes`` out on rows by id. Rows are replaced, never altered, so copies of ``state`` stay true."""
    for id, _, new in changes:
        if new is None:
            state.pop(id, None)
        else:
            state[id] = {**state.get(id, {}), **new}


class Cursor:
    """The rows as of one step of the log. Moving to a step near the last one asked for is quick, as a slider does."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.step = -1
        self._state: dict[int, Row] = {}

    def at(self, database: sqlite3.Connection, step: int) -> dict[int, Row]:
        """The rows, living and forgotten, after event ``step``; the dict is the caller's own."""
        ahead = step >= self.step
        order = "step > ? AND step <= ? ORDER BY step" if ahead else "step <= ? AND step > ? ORDER BY step DESC"
        found = database.execute(f"SELECT changes FROM events WHERE changes IS NOT NULL AND {order}", (self.step, step))
        for (changes,) in found:
            listed = json.loads(changes)
            apply(self._state, listed if ahead else backwards(listed))
        self.step = step
        return dict(sorted(self._state.items()))


def write(database: sqlite3.Connection, changes: Iterable[Change]) -> None:
    """Carry ``changes`` out on the tables ``items`` and ``links``."""
    changes = list(changes)
    state: dict[int, Row] = table.fetch_ids(database, {id for id, _, _ in changes})
    for change in changes:
        id, _, new = change
        apply(state, [change])
        if new is None:
            table.remove(database, id)
        else:
            table.put(database, id, state[id], linked="links" in new or "alive" in new)
