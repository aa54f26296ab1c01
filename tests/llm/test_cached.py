"""The cache of answers: one request, one answer, on any day, whatever happens to the process."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from workbench.errors import BadInput, StorageError
from workbench.llm import Cached, Ledger, LlmError, Message, Reply, Request, Scripted, Tool, ToolCall, Usage, ask
from workbench.llm.cached import request_key


class Note(BaseModel):
    title: str


class Shout(BaseModel):
    title: str
    loud: bool = True


def echo() -> Scripted:
    """Says what it was asked, with the settings that matter."""
    return Scripted(lambda r: f"{r.messages[-1].content} {r.temperature} {r.seed} {r.max_tokens} {r.stop}", name="echo")


def test_a_request_is_asked_once_and_repeats_offline(tmp_path: Path) -> None:
    model = echo()
    with Cached(model, tmp_path / "deep" / "answers.db") as llm:
        first, second = llm.chat("Hi", seed=4), llm.chat([Message("user", "Hi")], seed=4)
        assert (first.text, first.cached, second.text, second.cached) == (second.text, False, first.text, True)
        assert second.usage == first.usage != Usage()
        assert (len(model.requests), llm.hits, llm.misses, len(llm)) == (1, 1, 1, 1)
        assert llm.name == "echo"
        assert "kept" in llm.label
    with Cached(echo(), tmp_path / "deep" / "answers.db", offline=True) as llm:
        assert llm.chat("Hi", seed=4).text == first.text
        with pytest.raises(LlmError, match=r"no answer of echo to this request \('Hallo'"):
            llm.chat("Hallo", seed=4)
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["answers.db"]


DIFFERENT: list[tuple[Any, dict[str, Any]]] = [
    ("Hi", {}),
    ("Hi ", {}),
    (Message("system", "Hi"), {}),
    ([Message("user", "Hi"), Message("user", "Hi")], {}),
    (Message("assistant", "Hi", (ToolCall("f"),)), {}),
    ("Hi", {"temperature": 0.1}),
    ("Hi", {"seed": 1}),
    ("Hi", {"seed": None}),
    ("Hi", {"max_tokens": 7}),
    ("Hi", {"stop": "x"}),
    ("Hi", {"schema": Note}),
    ("Hi", {"schema": Shout}),
    ("Hi", {"tools": [Tool("f", "does f", Note)]}),
    ("Hi", {"tools": [Tool("f", "does f", Shout)]}),
]


def test_whatever_decides_an_answer_is_in_the_key() -> None:
    keys = [request_key(name, Request.of(told, **how)) for told, how in DIFFERENT for name in ("a", "b")]
    assert len(set(keys)) == 2 * len(DIFFERENT)
    assert request_key("a", Request.of("Hi")) == request_key("a", Request.of([Message("user", "Hi")], temperature=0))


def test_objects_and_malformed_answers_come_back_as_they_were(tmp_path: Path) -> None:
    model = Scripted(["no object", "```{'title': 'a'}```"])
    ledgers = Ledger(), Ledger()
    with Cached(model, tmp_path / "c.db") as llm:
        first = ask(llm, "Hi", Note, ledger=ledgers[0])
        second = ask(llm, "Hi", Note, ledger=ledgers[1])
    assert len(model.requests) == 2
    assert first.parsed == second.parsed == Note(title="a")
    assert (first.usage, first.attempts, first.repairs) == (second.usage, second.attempts, second.repairs)
    assert (ledgers[0].retries, ledgers[0].repaired) == (ledgers[1].retries, ledgers[1].repaired) == (1, 1)


class Calling(Scripted):
    def _answer(self, request: Request) -> Reply:
        return Reply("", tool_calls=(ToolCall("f", {"x": ["ü"]}, "id"),), stopped="tool_calls", usage=Usage(1, 2, 1))


def test_tool_calls_are_kept(tmp_path: Path) -> None:
    tools = [Tool("f", "does f", Note)]
    with Cached(Calling([]), tmp_path / "c.db") as llm:
        first, second = llm.chat("Hi", tools=tools), llm.chat("Hi", tools=tools)
    assert second.cached
    assert (second.tool_calls, second.stopped, second.usage) == (first.tool_calls, "tool_calls", Usage(1, 2, 1))


class Given(Scripted):
    """An object that its text does not hold, as a constrained decoder may give."""

    def _answer(self, request: Request) -> Reply:
        return Reply("plain words", parsed=Note(title="t"))


def test_an_object_that_its_text_does_not_hold_is_kept_too(tmp_path: Path) -> None:
    with Cached(Given([]), tmp_path / "c.db") as llm:
        assert llm.chat("Hi", schema=Note).parsed == llm.chat("Hi", schema=Note).parsed == Note(title="t")
        assert llm.hits == 1


class Streaming(Scripted):
    def _pieces(self, request: Request) -> Iterator[str]:
        yield from ("a", "b", "c")
        if request.seed == 9:
            raise LlmError("broke off")


def test_streams_are_kept_when_complete(tmp_path: Path) -> None:
    with Cached(Streaming([]), tmp_path / "c.db") as llm:
        next(llm.stream("Hi"))  # left after one piece
        with pytest.raises(LlmError):
            list(llm.stream("Hi", seed=9))
        assert len(llm) == 0
        assert list(llm.stream("Hi")) == ["a", "b", "c"]
        assert list(llm.stream("Hi")) == ["abc"]
        assert llm.chat("Hi").text == "abc"


def test_errors_are_not_kept(tmp_path: Path) -> None:
    with Cached(Scripted([LlmError("down"), "up"]), tmp_path / "c.db") as llm:
        with pytest.raises(LlmError, match="down"):
            llm.chat("Hi")
        assert llm.chat("Hi").text == "up"
        with pytest.raises(BadInput):
            llm.chat([])


def test_many_threads_and_two_objects_on_one_file(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    errors: list[BaseException] = []

    def work(part: int) -> None:
        try:
            with Cached(echo(), path) as llm:
                for i in range(20):
                    assert llm.chat(f"q{(i + part) % 20}").text.startswith(f"q{(i + part) % 20} ")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    with Cached(echo(), path, read_only=True) as llm:
        assert len(llm) == 20


WRITER = """
import sys
from workbench.llm import Cached, Scripted
llm = Cached(Scripted(lambda r: r.messages[-1].content * 200), sys.argv[1])
for i in range(int(sys.argv[2]), 10**6):
    llm.chat(f"question {i}")
    print(i, flush=True)
"""


def test_killed_while_writing_it_keeps_every_answer_that_was_given(tmp_path: Path, root: Path) -> None:
    path, done = tmp_path / "c.db", 0
    for turn in range(4):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(done)], cwd=root, stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        seen = [int(writer.stdout.readline()) for _ in range(3 + turn)]
        time.sleep(0.003 * turn)
        os.kill(writer.pid, signal.SIGKILL)
        seen += [int(line) for line in writer.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        writer.wait()
        done = seen[-1] + 1
        with Cached(echo(), path, offline=True) as llm:
            llm.name = "scripted"
            for i in range(done):
                assert llm.chat(f"question {i}").text == f"question {i}" * 200
            assert done <= len(llm) <= done + 1


# -- files that are no cache ------------------------------------------------------------------------------------------


def ask_all(path: Path) -> None:
    with Cached(echo(), path) as llm:
        for i in range(50):
            llm.chat(f"question {i} " + "x" * 500)


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(StorageError, match="damaged or no cache of ours"):
        Cached(echo(), path)
    path.unlink()
    ask_all(path)
    data = bytearray(path.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    path.write_bytes(bytes(data))
    with pytest.raises(StorageError, match="damaged"):
        ask_all(path)


def test_a_damaged_answer_is_told(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    with Cached(echo(), path) as llm:
        llm.chat("Hi")
    with sqlite3.connect(path) as database:
        database.execute("UPDATE answers SET reply = '{}'")
    database.close()
    with Cached(echo(), path) as llm, pytest.raises(StorageError, match=r"an answer in .* is damaged"):
        llm.chat("Hi")


def test_foreign_and_future_files_are_left_alone(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.db"
    with sqlite3.connect(foreign) as database:
        database.execute("CREATE TABLE t (x)")
    database.close()
    before = foreign.read_bytes()
    with pytest.raises(StorageError, match="another program"):
        Cached(echo(), foreign)
    assert foreign.read_bytes() == before
    future = tmp_path / "future.db"
    Cached(echo(), future).close()
    with sqlite3.connect(future) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(StorageError, match="version 99"):
        Cached(echo(), future)


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no cache"):
        Cached(echo(), tmp_path / "none.db", read_only=True)
    with pytest.raises(StorageError, match="cannot be opened"):
        Cached(echo(), tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot be made"):
        Cached(echo(), tmp_path / "file" / "below" / "c.db")
    path = tmp_path / "c.db"
    with Cached(echo(), path) as llm:
        kept = llm.chat("Hi").text
    with Cached(echo(), path, read_only=True) as llm:
        assert llm.chat("Hi").text == kept
        with pytest.raises(LlmError, match="offline"):
            llm.chat("New")
        with pytest.raises(StorageError, match="read_only"):
            llm._keep("key", Request.of("New"), Reply("x"))


def test_only_a_chat_model_can_be_wrapped(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="open_llm"):
        Cached("embedded", tmp_path / "c.db")  # type: ignore[arg-type]
    assert not (tmp_path / "c.db").exists()
