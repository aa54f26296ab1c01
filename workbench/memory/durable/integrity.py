"""Is a store's file whole, and do its items say what its log says?"""

from __future__ import annotations

import json
import sqlite3

from workbench.memory.durable import history, rows
from workbench.memory.durable.items import Row


def problems(database: sqlite3.Connection) -> list[str]:
    """What is wrong, one sentence each; empty when nothing is.

    Looked at: SQLite's own pages and indices, steps without gaps, the items against those the log makes, the table of
    links against the items, links to items that do not live, and vectors that are missing.
    """
    found = [f"SQLite: {text}" for (text,) in database.execute("PRAGMA integrity_check") if text != "ok"]
    count, last = database.execute("SELECT count(*), max(step) FROM events").fetchone()
    if count and count != last + 1:
        found.append(f"the log has {count} events, but the last step is {last}")
    try:
        held = dict(rows.fetch(database, "ORDER BY id"))
        return found + _against_log(database, held) + _links(database, held) + _vectors(database)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        return [*found, f"an item or event cannot be read ({type(error).__name__}: {error})"]


def _against_log(database: sqlite3.Connection, held: dict[int, Row]) -> list[str]:
    told: dict[int, Row] = {}
    for (changes,) in database.execute("SELECT changes FROM events WHERE changes IS NOT NULL ORDER BY step"):
        history.apply(told, json.loads(changes))
    differing = sorted(id for id in told.keys() | held.keys() if told.get(id) != held.get(id))
    return [f"item {id} is not what the log says" for id in differing]


def _links(database: sqlite3.Connection, held: dict[int, Row]) -> list[str]:
    alive = {id: row["links"] for id, row in held.items() if row["alive"]}
    wanted = {(target, source) for source, links in alive.items() for target in links}
    table = set(database.execute("SELECT target, source FROM links"))
    found = [f"the link from {source} to {target} is in one table only" for target, source in sorted(wanted ^ table)]
    return found + [
        f"item {source} points to {target}, which does not live"
        for target, source in sorted(wanted)
        if target not in alive
    ]


def _vectors(database: sqlite3.Connection) -> list[str]:
    missing = database.execute("SELECT id FROM items WHERE vector NOT IN (SELECT id FROM vectors) ORDER BY id")
    return [f"the vector of item {id} is missing" for (id,) in missing]
