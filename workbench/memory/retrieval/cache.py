"""Vectors kept by what they encode, so that no text is encoded twice."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from workbench.memory.durable import schema, vectors
from workbench.memory.durable.rows import chunks, marks
from workbench.memory.retrieval.protocol import Encoder


class Cached:
    """``encoder`` with a memory: vectors are found by the SHA-256 of the encoder's name, width and the text.

    ``path`` is an SQLite file that several processes may use at once; None keeps the vectors in this process.
    ``hits`` and ``misses`` count texts.
    """

    def __init__(self, encoder: Encoder, path: str | Path | None = None):
        self.encoder, self.path = encoder, None if path is None else Path(path).expanduser()
        self.hits = self.misses = 0
        self._lock = threading.RLock()
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        with schema.guard(self.path):
            self._database = sqlite3.connect(
                self.path or ":memory:", timeout=schema.BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS encoded (hash BLOB PRIMARY KEY, data BLOB) WITHOUT ROWID"
            )
            if self.path is not None:
                self._database.execute("PRAGMA journal_mode = WAL")
                self._database.execute("PRAGMA synchronous = NORMAL")  # what a crash loses is encoded again

    @property
    def name(self) -> str:
        return self.encoder.name

    @property
    def dim(self) -> int:
        return self.encoder.dim

    @property
    def label(self) -> str:
        return self.encoder.label

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """(n, dim) float32, as the encoder makes them; only texts not seen before are encoded, once each."""
        texts = list(texts)
        keys = [self._key(text) for text in texts]
        with self._lock, schema.guard(self.path):
            found = self._found(keys)
        missing = {key: text for key, text in zip(keys, texts) if key not in found}
        self.hits += len(texts) - len(missing)
        self.misses += len(missing)
        for part in chunks(list(missing)):  # kept part by part: an interrupted run goes on where it was
            made = vectors.encode(self.encoder, [missing[key] for key in part])
            fresh = dict(zip(part, (vectors.pack(vector) for vector in made)))
            found.update(fresh)
            with self._lock, schema.guard(self.path):
                self._keep(fresh)
        return vectors.unpack([found[key] for key in keys], self.dim)

    def _key(self, text: str) -> bytes:
        return hashlib.sha256(f"{self.name}\0{self.dim}\0{text}".encode("utf-8", "surrogatepass")).digest()

    def _found(self, keys: list[bytes]) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        for part in chunks(list(dict.fromkeys(keys))):
            found.update(
                self._database.execute(f"SELECT hash, data FROM encoded WHERE hash IN ({marks(part)})", part).fetchall()
            )
        return found

    def _keep(self, made: dict[bytes, bytes]) -> None:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            self._database.executemany("INSERT OR IGNORE INTO encoded VALUES (?, ?)", made.items())
            self._database.execute("COMMIT")
        except BaseException:
            self._database.execute("ROLLBACK")
            raise

    def __len__(self) -> int:
        with self._lock:
            return self._database.execute("SELECT count(*) FROM encoded").fetchone()[0]

    def close(self) -> None:
        self._database.close()


def cached(encoder: Encoder | str, path: str | Path | None = None) -> Cached:
    """``encoder`` (or the one of that name) with a cache by content, in an SQLite file or in memory."""
    from workbench.memory.retrieval.encoders import encoder as by_name

    return Cached(by_name(encoder), path)
