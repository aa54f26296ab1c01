"""Vectors of items: how they stand in the file, and the index that follows the file's log."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from workbench.errors import BadInput
from workbench.memory.durable.rows import chunks, marks

if TYPE_CHECKING:
    from workbench.memory.retrieval import Encoder, Index

#: Vectors that are read from the file at a time.
_PART = 500


@dataclass(frozen=True)
class Maker:
    """The encoder that a store remembers: its number in the file, its name and the width of its vectors."""

    id: int
    name: str
    dim: int
    label: str


def maker(database: sqlite3.Connection) -> Maker | None:
    """The encoder of the vectors as they stand now; None before the first item."""
    found = database.execute("SELECT id, name, dim, label FROM encoders ORDER BY id DESC LIMIT 1").fetchone()
    return Maker(*found) if found else None


def remember(database: sqlite3.Connection, encoder: Encoder) -> Maker:
    """Note ``encoder`` as the one that vectors are made with from now on."""
    database.execute(
        "INSERT INTO encoders (name, dim, label) VALUES (?, ?, ?)", (encoder.name, int(encoder.dim), encoder.label)
    )
    found = maker(database)
    assert found is not None
    return found


def pack(vector: np.ndarray) -> bytes:
    """float32 values as they are, or places and values where most are zero.

    The dense form has a multiple of 4 bytes, the sparse form an odd number: the length alone tells them apart.
    """
    places = np.flatnonzero(vector)
    if 8 * len(places) + 1 < 4 * len(vector):
        return b"s" + places.astype("<u4").tobytes() + vector[places].astype("<f4").tobytes()
    return vector.astype("<f4").tobytes()


def unpack(blobs: Sequence[bytes], dim: int) -> np.ndarray:
    """(n, dim) float32 of what ``pack`` made. Raises BadInput for a blob of another width."""
    if all(len(blob) == 4 * dim for blob in blobs):
        return np.frombuffer(b"".join(blobs), dtype="<f4").reshape(-1, dim).astype(np.float32)
    made = np.zeros((len(blobs), dim), dtype=np.float32)
    for row, blob in zip(made, blobs):
        if len(blob) % 2:
            half = 1 + len(blob) // 8 * 4
            row[np.frombuffer(blob[1:half], dtype="<u4")] = np.frombuffer(blob[half:], dtype="<f4")
        elif len(blob) == 4 * dim:
            row[:] = np.frombuffer(blob, dtype="<f4")
        else:
            raise BadInput(f"a vector of {len(blob) // 4} values stands where {dim} were expected: re-encode the store")
    return made


def keep(database: sqlite3.Connection, maker: Maker, vector: np.ndarray) -> int:
    """Append ``vector`` to the file; returns its number."""
    made = database.execute("INSERT INTO vectors (encoder, data) VALUES (?, ?)", (maker.id, pack(vector))).lastrowid
    assert made is not None
    return made


def maker_of(database: sqlite3.Connection, number: int) -> Maker:
    """The encoder that made vector ``number``."""
    found = database.execute(
        "SELECT encoders.id, name, dim, label FROM encoders JOIN vectors ON encoder = encoders.id WHERE vectors.id = ?",
        (number,),
    )
    return Maker(*found.fetchone())


def load(database: sqlite3.Connection, numbers: Sequence[int], dim: int) -> np.ndarray:
    """(n, dim) float32: the vectors with these numbers, in this order."""
    found: dict[int, bytes] = {}
    for part in chunks(sorted(set(numbers))):
        found.update(database.execute(f"SELECT id, data FROM vectors WHERE id IN ({marks(part)})", part))
    return unpack([found[number] for number in numbers], dim)


def encode(encoder: Encoder, texts: Sequence[str]) -> np.ndarray:
    """(n, dim) float32 by ``encoder``, checked. Raises BadInput for another shape or values that are not finite."""
    made = np.asarray(encoder.encode(texts), dtype=np.float32)
    if made.shape != (len(texts), encoder.dim):
        raise BadInput(
            f"the encoder {encoder.name!r} gave an array of shape {made.shape} for {len(texts)} texts; "
            f"it says it makes ({len(texts)}, {encoder.dim})"
        )
    if not np.isfinite(made).all():
        raise BadInput(f"the encoder {encoder.name!r} gave values that are not finite")
    return made


class Live:
    """The index of the living items' vectors; ``sync`` brings it up to the last event, whoever wrote it."""

    def __init__(self, make: Callable[[int], Index]):
        self._make = make
        self.forget()

    def forget(self) -> None:
        """Drop everything; the next ``sync`` loads it anew (after a rollback, say)."""
        self.index: Index | None = None
        self.step = -1
        self._maker: Maker | None = None
        self._numbers: dict[int, int] = {}

    def sync(self, database: sqlite3.Connection) -> Index | None:
        """The index as of the last event; None while the store holds no vector."""
        last = database.execute("SELECT max(step) FROM events").fetchone()[0]
        last = -1 if last is None else last
        if last == self.step:
            return self.index
        current = maker(database)
        if current is None:
            return None
        if self.index is None or current != self._maker:
            self._load(database, current)
        else:
            self._follow(database, current)
        self.step = last
        return self.index

    def _load(self, database: sqlite3.Connection, current: Maker) -> None:
        self._maker, self.index, self._numbers = current, self._make(current.dim), {}
        self.index.reserve(database.execute("SELECT count(*) FROM items WHERE alive = 1").fetchone()[0])
        found = database.execute(
            "SELECT items.id, vector, data FROM items JOIN vectors ON vectors.id = vector WHERE alive ORDER BY items.id"
        )
        # Part by part: what was read is still in the processor's cache when it is put into the index.
        while part := found.fetchmany(_PART):
            self._numbers.update((id, number) for id, number, _ in part)
            self.index.add([id for id, _, _ in part], unpack([blob for _, _, blob in part], current.dim))

    def _follow(self, database: sqlite3.Connection, current: Maker) -> None:
        touched = _touched(database, self.step)
        now: dict[int, int] = {}
        for part in chunks(touched):
            now.update(
                database.execute(f"SELECT id, vector FROM items WHERE alive AND id IN ({marks(part)})", part).fetchall()
            )
        assert self.index is not None
        gone = [id for id in touched if id in self._numbers and id not in now]
        if gone:
            self.index.remove(gone)
        for id in gone:
            del self._numbers[id]
        new = [id for id, number in now.items() if self._numbers.get(id) != number]
        if new:
            self.index.add(new, load(database, [now[id] for id in new], current.dim))
        self._numbers.update(now)


def _touched(database: sqlite3.Connection, after: int) -> list[int]:
    rows: Iterable[tuple[str]] = database.execute(
        "SELECT items FROM events WHERE step > ? AND changes IS NOT NULL", (after,)
    )
    return sorted({id for (items,) in rows for id in json.loads(items)})
