"""The file of a store: an SQLite database with its own application id and a schema version, opened with care.

Tables: ``items`` (the state now), ``links`` (who points to whom, derived from the living items), ``vectors`` and
``events`` (append-only: triggers refuse to change or remove a row), ``encoders`` (which made which vectors).
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path

from workbench.errors import BadInput, BundleError, StorageError

#: "MWBS" as the four bytes that SQLite keeps for the program a file belongs to.
APPLICATION_ID = 0x4D574253
SCHEMA_VERSION = 1
#: How long a writer waits for another process, in seconds.
BUSY_SECONDS = 30.0

_MAGIC = b"SQLite format 3\x00"
_TABLES = frozenset({"encoders", "vectors", "items", "links", "events"})

# Short columns stand first in `items`: reading them then never follows the overflow pages of a long text.
_DDL = """
CREATE TABLE encoders (id INTEGER PRIMARY KEY, name TEXT NOT NULL, dim INTEGER NOT NULL, label TEXT NOT NULL);
CREATE TABLE vectors (id INTEGER PRIMARY KEY, encoder INTEGER NOT NULL, data BLOB NOT NULL);
CREATE TABLE items (
  id INTEGER PRIMARY KEY AUTOINCREMENT, alive INTEGER NOT NULL, vector INTEGER NOT NULL, stale INTEGER NOT NULL,
  kind TEXT NOT NULL, key TEXT, time REAL NOT NULL, strength REAL NOT NULL, tags TEXT NOT NULL, links TEXT NOT NULL,
  meta TEXT NOT NULL, text TEXT NOT NULL, index_text TEXT
);
CREATE UNIQUE INDEX item_key ON items (key) WHERE alive = 1 AND key IS NOT NULL;
CREATE INDEX item_kind ON items (kind, id) WHERE alive = 1;
CREATE TABLE links (target INTEGER NOT NULL, source INTEGER NOT NULL, PRIMARY KEY (target, source)) WITHOUT ROWID;
CREATE INDEX link_source ON links (source);
CREATE TABLE events (
  step INTEGER PRIMARY KEY, unit INTEGER NOT NULL, kind TEXT NOT NULL, items TEXT NOT NULL, why TEXT NOT NULL,
  time REAL NOT NULL, detail TEXT NOT NULL, changes TEXT, undoable INTEGER NOT NULL, undoes INTEGER
);
CREATE INDEX event_undoable ON events (unit) WHERE undoable = 1;
CREATE INDEX event_undoes ON events (undoes) WHERE undoes IS NOT NULL;
CREATE TRIGGER events_stay BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'the event log is append-only'); END;
CREATE TRIGGER events_last BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'the event log is append-only'); END;
CREATE TRIGGER vectors_stay BEFORE UPDATE ON vectors BEGIN SELECT RAISE(ABORT, 'vectors are append-only'); END;
CREATE TRIGGER vectors_last BEFORE DELETE ON vectors BEGIN SELECT RAISE(ABORT, 'vectors are append-only'); END;
"""


def connect(path: Path | None) -> sqlite3.Connection:
    """The database of the store at ``path`` (None: in memory), made when there is none yet.

    Raises BundleError when the file is not a store, is damaged or is of a newer version (it is then left as it was,
    byte for byte) and StorageError when it cannot be read or made.
    """
    if path is not None:
        _inspect(path)
    with guard(path):
        database = sqlite3.connect(
            ":memory:" if path is None else path,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
        )
    try:
        with guard(path):
            database.execute("PRAGMA trusted_schema = OFF")
            _make(database, path)
            _check_tables(database, path)
            if path is not None:
                database.execute("PRAGMA journal_mode = WAL")
                # Every commit is on the disk before it is acknowledged, also when the power fails.
                database.execute("PRAGMA synchronous = FULL")
    except BaseException:
        database.close()
        raise
    return database


@contextlib.contextmanager
def guard(path: Path | None) -> Iterator[None]:
    """Turn what SQLite reports about the file into errors that say what to do."""
    name = path or "the store in memory"
    try:
        yield
    except sqlite3.OperationalError as error:
        raise _operational(name, str(error)) from error
    except sqlite3.ProgrammingError as error:
        if "closed" in str(error):
            raise BadInput("this store is closed; open it again with Store(path)") from error
        raise
    except sqlite3.IntegrityError:
        raise
    except (sqlite3.DatabaseError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BundleError(f"{name} is damaged ({error}); restore it from a copy or an export") from error


def _operational(name: object, message: str) -> StorageError | BundleError:
    if "locked" in message or "busy" in message:
        why = f"another process has been writing to it for {BUSY_SECONDS:.0f} s; try again when it has finished"
    elif "full" in message:
        why = "the disk is full; make room and try again"
    elif "readonly" in message or "unable to open" in message:
        why = "it cannot be opened for writing; choose a folder that exists and that you may write to"
    elif "no such" in message or "malformed" in message:
        return BundleError(f"{name} is damaged ({message}); restore it from a copy or an export")
    else:
        why = f"SQLite says: {message}"
    return StorageError(f"{name} was not changed: {why}")


def _inspect(path: Path) -> None:
    """Raise unless ``path`` is absent, empty or a store of a version that we know; the file is only read."""
    if path.is_dir():
        raise StorageError(f"{path} is a folder; name a file in it, for example {path / 'memory.db'}")
    try:
        with path.open("rb") as file:
            head = file.read(100)
            size = file.seek(0, 2)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    if not head or Path(f"{path}-journal").exists():  # an interrupted creation: SQLite rolls it back by itself
        return
    if len(head) < 100 or not head.startswith(_MAGIC):
        raise BundleError(f"{path} is not a store (no SQLite database); it is left as it was, name another file")
    version, owner = struct.unpack(">I", head[60:64])[0], struct.unpack(">I", head[68:72])[0]
    if owner != APPLICATION_ID:
        raise BundleError(f"{path} is an SQLite database of another program; it is left as it was, name another file")
    if version > SCHEMA_VERSION:
        raise BundleError(
            f"{path} has schema version {version}, this program reads up to {SCHEMA_VERSION}; update memory-workbench"
        )
    page, pages = struct.unpack(">H", head[16:18])[0], struct.unpack(">I", head[28:32])[0]
    if size < pages * (65536 if page == 1 else page) and not Path(f"{path}-wal").exists():
        raise BundleError(f"{path} is cut short ({size:,} bytes); restore it from a copy or an export")


def _make(database: sqlite3.Connection, path: Path | None) -> None:
    """Create the tables in an empty database; two processes that come at once make them once."""
    if database.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID:
        return
    database.execute("BEGIN EXCLUSIVE")
    try:
        if database.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            if database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                raise BundleError(f"{path} is an SQLite database of another program; name another file")
            for statement in _statements():
                database.execute(statement)
            database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        database.execute("COMMIT")
    except BaseException:
        database.execute("ROLLBACK")
        raise


def _statements() -> list[str]:
    """The DDL one statement at a time: ``executescript`` would commit on its own."""
    found, part = [], ""
    for line in _DDL.strip().splitlines():
        part += line + "\n"
        if sqlite3.complete_statement(part):
            found.append(part)
            part = ""
    return found


def _check_tables(database: sqlite3.Connection, path: Path | None) -> None:
    names = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if missing := sorted(_TABLES - names):
        raise BundleError(f"{path} is damaged: table {missing[0]!r} is missing; restore it from a copy or an export")
