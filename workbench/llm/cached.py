"""Answers kept by their full request, so that a run repeats offline, exactly and for nothing."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from workbench.errors import BadInput, StorageError
from workbench.llm.base import ChatModel, LlmError, Reply, Request, ToolCall, Usage, read_parsed
from workbench.llm.rules import count_words

APPLICATION = 0x4D574C4D  # "MWLM"
VERSION = 1
_TABLE = "CREATE TABLE answers (key TEXT PRIMARY KEY, model TEXT, made REAL, request TEXT, reply TEXT) STRICT"


class Cached:
    """A chat model that asks another one once for each request and remembers the answer in an SQLite file.

    The key is everything that decides the answer: the model's name, messages, schema, tools, temperature, max_tokens,
    seed and stop. Errors are not kept. A kept answer comes back with its recorded text, tokens and attempts and
    ``cached=True``. One answer is one transaction: a process that is killed loses at most the one it was writing. The
    file holds prompts and answers in the clear, and no key of a server.

    Args:
        llm: the model that is asked for what is not there.
        path: the file; made when absent.
        offline: never ask; what is not there raises LlmError.
        read_only: open the file without writing, for a folder that cannot be written to; implies ``offline``.

    Raises:
        StorageError: the file cannot be opened or written, is damaged, another program's, or of a later version.
    """

    def __init__(self, llm: ChatModel, path: str | Path, *, offline: bool = False, read_only: bool = False):
        if not isinstance(llm, ChatModel):
            raise BadInput(f"Cached wraps a chat model, got {type(llm).__name__}; open one with open_llm")
        self.name, self.label = llm.name, f"{llm.label}, answers kept"
        self.llm, self.path = llm, Path(path)
        self.offline, self.read_only = offline or read_only, read_only
        self.hits = self.misses = 0
        self._lock = threading.RLock()
        self._database = _open(self.path, read_only)

    def chat(self, messages: Any, **options: Any) -> Reply:
        """The kept answer, else the model's, which is kept. Options and errors as those of the model."""
        request = Request.of(messages, **options)
        begun = time.perf_counter()
        key = request_key(self.name, request)
        kept = self._find(key, request)
        if kept is not None:
            return replace(kept, seconds=time.perf_counter() - begun)
        reply = self._model(request).chat(messages, **options)
        self._keep(key, request, reply)
        return reply

    def stream(self, messages: Any, **options: Any) -> Iterator[str]:
        """The kept answer as one piece, else the model's pieces, kept when the last has come."""
        request = Request.of(messages, **options)
        key = request_key(self.name, request)
        kept = self._find(key, request)
        return iter([kept.text]) if kept is not None else self._pieces(key, request, messages, options)

    def _pieces(self, key: str, request: Request, messages: Any, options: dict[str, Any]) -> Iterator[str]:
        parts = []
        for piece in self._model(request).stream(messages, **options):
            parts.append(piece)
            yield piece
        if not request.tools:  # a stream carries no tool calls
            text = "".join(parts)
            read = sum(count_words(message.content) for message in request.messages)
            self._keep(key, request, Reply(text, usage=Usage(read, count_words(text), 1, 1)))

    def _model(self, request: Request) -> ChatModel:
        with self._lock:
            self.misses += 1
        if self.offline:
            last = request.messages[-1].content
            raise LlmError(
                f"{self.path} holds no answer of {self.name} to this request ({last[:60]!r}...) and is offline; run "
                "once with the model, or pass offline=False",
                attempts=0,
            )
        return self.llm

    def _find(self, key: str, request: Request) -> Reply | None:
        with self._lock, _told(self.path):
            row = self._database.execute("SELECT reply FROM answers WHERE key = ?", (key,)).fetchone()
            if row is None:
                return None
            self.hits += 1
        return _reply(row[0], request, self.path)

    def _keep(self, key: str, request: Request, reply: Reply) -> None:
        row = (key, self.name, time.time(), _text(_plain(self.name, request)), _text(_stored(reply)))
        with self._lock, _told(self.path), self._database:
            self._database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?)", row)

    def __len__(self) -> int:
        with self._lock, _told(self.path):
            return int(self._database.execute("SELECT count(*) FROM answers").fetchone()[0])

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def __enter__(self) -> Cached:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Cached({self.name!r}, {str(self.path)!r})"


# -- requests and replies as JSON -------------------------------------------------------------------------------------


def _plain(name: str, request: Request) -> dict[str, Any]:
    shape = request.schema.model_json_schema() if request.schema is not None else None
    return {
        "model": name,
        "messages": [asdict(message) for message in request.messages],
        "schema": shape,
        "tools": [[tool.name, tool.description, tool.json_schema()] for tool in request.tools],
        "temperature": request.temperature,
        "max_tokens": request.max_tokens,
        "seed": request.seed,
        "stop": list(request.stop),
    }


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))


def request_key(name: str, request: Request) -> str:
    """SHA-256 of the model's name and the whole request."""
    return hashlib.sha256(_text(_plain(name, request)).encode()).hexdigest()


def _stored(reply: Reply) -> dict[str, Any]:
    """What is kept; the object is kept when its text is not enough to read it again."""
    return {
        "text": reply.text,
        "parsed": None if reply.parsed is None else reply.parsed.model_dump(mode="json"),
        "tool_calls": [asdict(call) for call in reply.tool_calls],
        "usage": asdict(reply.usage),
        "attempts": reply.attempts,
        "seconds": reply.seconds,
        "stopped": reply.stopped,
    }


def _reply(text: str, request: Request, path: Path) -> Reply:
    """A kept reply; its object is read from the text again, or taken as kept where the text does not hold it."""
    try:
        data = json.loads(text)
        calls = tuple(ToolCall(**call) for call in data["tool_calls"])
        reply = Reply(data["text"], tool_calls=calls, usage=Usage(**data["usage"]), attempts=data["attempts"],
                      stopped=data["stopped"], cached=True)  # fmt: skip
        reply = read_parsed(reply, request.schema)
        if request.schema is not None and reply.parsed is None and data["parsed"] is not None:
            reply = replace(reply, parsed=request.schema.model_validate(data["parsed"]), problem="")
        return reply
    except (ValueError, KeyError, TypeError):
        raise StorageError(
            f"an answer in {path} is damaged; move the file away, and the model is asked again"
        ) from None


# -- the file ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """SQLite's errors as ours."""
    try:
        yield
    except sqlite3.OperationalError as error:
        told = str(error)
        if "readonly" in told or "unable to open" in told or "disk" in told:
            raise StorageError(
                f"the cache {path} cannot be opened or written ({told}); choose a folder you may write to, or open it "
                "with read_only=True"
            ) from None
        raise StorageError(f"the cache {path} cannot be used ({told}); close other programs that hold it") from None
    except sqlite3.DatabaseError as error:
        raise StorageError(
            f"the cache {path} is damaged or no cache of ours ({error}); move it away, and the model is asked again"
        ) from None


def _open(path: Path, read_only: bool) -> sqlite3.Connection:
    if read_only and not path.is_file():
        raise StorageError(f"there is no cache {path} to read; run once without read_only")
    if not read_only and not path.parent.is_dir():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"the folder of the cache {path} cannot be made: {error.strerror or error}") from None
    with _told(path):
        address = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
        database = sqlite3.connect(address, uri=True, timeout=30, check_same_thread=False)
    try:
        with _told(path):
            _prepare(database, path, read_only)
    except BaseException:
        database.close()
        raise
    return database


def _prepare(database: sqlite3.Connection, path: Path, read_only: bool) -> None:
    """Check whose file it is; make the table in an empty one."""
    if not read_only:
        database.execute("BEGIN IMMEDIATE")  # of two that open a new file, one makes the table
    application = database.execute("PRAGMA application_id").fetchone()[0]
    version = database.execute("PRAGMA user_version").fetchone()[0]
    tables = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if application == APPLICATION and version > VERSION:
        raise StorageError(f"the cache {path} has version {version}, this program reads {VERSION}; update the package")
    if application != APPLICATION and (tables or read_only):
        raise StorageError(f"{path} is a database of another program; choose another file for the cache")
    if not tables:
        database.execute(f"PRAGMA application_id = {APPLICATION}")
        database.execute(f"PRAGMA user_version = {VERSION}")
        database.execute(_TABLE)
    if not read_only:
        database.execute("COMMIT")
