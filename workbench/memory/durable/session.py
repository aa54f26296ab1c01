"""The open file of a store: its lock, its transactions, and the encoder that belongs to it."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time as _time
from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import BadInput
from workbench.memory.base import EventLog
from workbench.memory.durable import history, schema, vectors, writing
from workbench.memory.durable.clock import seconds

if TYPE_CHECKING:
    from workbench.memory.retrieval import Encoder, Index


class Session:
    """What :class:`workbench.memory.durable.Store` builds on; see there for the arguments.

    One connection serves all threads, one at a time (a lock that the same thread may take again). What is kept in
    memory (index, log, a past state) follows the file's log and is dropped when something it has seen is rolled back.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        encoder: Encoder | str | None = None,
        index: str = "exact",
        clock: Callable[[], float] = _time.time,
    ):
        from workbench.memory.retrieval import check_index

        if not isinstance(path, str | PathLike | None):
            raise BadInput(f"a store's path is text or a Path, or None for one in memory; got {type(path).__name__}")
        self.path = None if path is None else Path(path).expanduser()
        self.index_name = check_index(index)
        self.clock = clock
        self._lock = threading.RLock()
        self._unit: history.Unit | None = None
        self._depth = 0
        self._log = EventLog()
        self._cursor = history.Cursor()
        self._live = vectors.Live(self._make_index)
        self._given = encoder is not None
        self._encoder: Encoder | None = None if encoder is None else self._resolve(encoder)
        self._database = schema.connect(self.path)
        try:
            if self._encoder is not None:
                writing.same_encoder(self._encoder, self._made_by(), self.path)
        except BaseException:
            self._database.close()
            raise

    def _make_index(self, dim: int) -> Index:
        from workbench.memory.retrieval import index

        return index(self.index_name, dim)

    @staticmethod
    def _resolve(encoder: Encoder | str) -> Encoder:
        from workbench.memory.retrieval import encoder as by_name

        return by_name(encoder)

    def _made_by(self) -> vectors.Maker | None:
        with self._reading() as database:
            return vectors.maker(database)

    @property
    def encoder(self) -> Encoder:
        """What makes the vectors; loaded at first use when none was given.

        Raises BadInput when another program has re-encoded the file with an encoder that differs from the one given.
        """
        made = self._made_by()
        if self._encoder is None or not self._given:
            mine = self._encoder
            if made is None:
                self._encoder = mine or self._resolve("default")
            elif mine is None or (mine.name, mine.dim) != (made.name, made.dim):
                self._encoder = writing.recall_encoder(made)
        assert self._encoder is not None
        writing.same_encoder(self._encoder, made, self.path)
        return self._encoder

    @property
    def encoder_label(self) -> str:
        """What to show for the encoder, without loading it ("none yet" before the first item)."""
        made = self._made_by()
        return made.label if made else self._encoder.label if self._encoder else "none yet"

    def _maker(self) -> vectors.Maker:
        """The file's record of our encoder, noted at the first use."""
        encoder = self.encoder
        return vectors.maker(self._database) or vectors.remember(self._database, encoder)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, schema.guard(self.path):
            yield self._database

    @contextlib.contextmanager
    def _moment(self) -> Iterator[sqlite3.Connection]:
        """Several statements that see one moment of the file, whoever writes meanwhile."""
        with self._reading() as database:
            if database.in_transaction:
                yield database
                return
            database.execute("BEGIN")
            try:
                yield database
            finally:
                database.execute("COMMIT")

    @contextlib.contextmanager
    def _writing(self, why: str = "", *, guarded: bool = True, **options: Any) -> Iterator[history.Unit]:
        """One unit: all of it is committed, or none; inside another unit a part of that one.

        ``guarded=False`` lets what goes wrong inside through as it is: it may be the caller's own.
        """
        with self._lock:
            with schema.guard(self.path):
                unit = self._begin(why, options)
            step, count, outer, reason = unit.step, len(unit.events), self._depth == 1, unit.why
            try:
                unit.why = history.plain(why, "why") or reason
                with schema.guard(self.path) if guarded else contextlib.nullcontext():
                    yield unit
                with schema.guard(self.path):
                    self._database.execute("COMMIT" if outer else f"RELEASE level{self._depth}")
            except BaseException:
                self._roll_back(outer)
                unit.step = step
                del unit.events[count:]
                self._unsee(step)
                raise
            finally:
                unit.why = reason
                self._depth -= 1
                if outer:
                    self._unit = None

    def _begin(self, why: str, options: dict[str, Any]) -> history.Unit:
        if self._unit is not None:
            self._database.execute(f"SAVEPOINT level{self._depth + 1}")
        else:
            now = self.now()
            if self._database.in_transaction:  # left by an interrupt at a bad moment
                self._database.execute("ROLLBACK")
            self._database.execute("BEGIN IMMEDIATE")
            try:
                self._unit = history.Unit.begin(self._database, why, now, **options)
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
        self._depth += 1
        return self._unit

    def _roll_back(self, outer: bool) -> None:
        if not self._database.in_transaction:  # SQLite has done it by itself (a full disk, say)
            return
        if outer:
            self._database.execute("ROLLBACK")
        else:
            self._database.execute(f"ROLLBACK TO level{self._depth}")
            self._database.execute(f"RELEASE level{self._depth}")

    def _unsee(self, step: int) -> None:
        """Drop what is kept in memory of events from ``step`` on: they never happened."""
        if self._live.step >= step:
            self._live.forget()
        if self._cursor.step >= step:
            self._cursor.forget()
        if len(self._log) > step:
            self._log.clear()

    def now(self) -> float:
        """The store's clock, checked. Raises BadInput for a time that cannot be."""
        try:
            return seconds(self.clock())
        except BadInput as error:
            raise BadInput(f"the store's clock gave an impossible time: {error}") from error

    def close(self) -> None:
        """Close the file; closing twice is no error."""
        with self._lock:
            self._database.close()
