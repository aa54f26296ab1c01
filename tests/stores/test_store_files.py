"""The file of a store: what is not one is left alone, what is damaged is named, two may use one at once."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from store_kit import Letters, state

from workbench.errors import BadInput, BundleError, StorageError, WorkbenchError
from workbench.memory.durable import NewItem, Store
from workbench.memory.durable.schema import APPLICATION_ID, SCHEMA_VERSION


def pragma(path: Path, name: str) -> int | str:
    with sqlite3.connect(path) as database:
        found = database.execute(f"PRAGMA {name}").fetchone()[0]
    database.close()
    return found


def filled(path: Path) -> Path:
    with Store(path, encoder=Letters()) as store:
        store.add_many([NewItem(f"{chr(97 + i % 26)} text {i}" * 20, key=f"k{i}") for i in range(60)])
        store.link(1, 2)
        store.delete(3)
    return path


def test_a_file_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "store.db"
    with Store(path, encoder=Letters()):
        pass
    assert pragma(path, "application_id") == APPLICATION_ID
    assert pragma(path, "user_version") == SCHEMA_VERSION
    assert pragma(path, "journal_mode") == "wal"


def test_what_was_written_is_there_when_opened_again(tmp_path: Path) -> None:
    path = filled(tmp_path / "store.db")
    with Store(path, encoder=Letters()) as store:
        before, found, log = state(store), store.search("c text", 5), list(store.events())
    with Store(str(path), encoder=Letters()) as store:
        assert state(store) == before
        assert store.search("c text", 5) == found
        assert list(store.events()) == log
        assert store.check() == []
        store.undo()
        assert 3 in store
    assert os.listdir(tmp_path) == ["store.db"]


def sqlite_of_another(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE bookmarks (url TEXT)")
    database.close()


def from_the_future(path: Path) -> None:
    filled(path)
    with sqlite3.connect(path) as database:
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
        database.execute("PRAGMA journal_mode = DELETE")
    database.close()


def cut_short(path: Path) -> None:
    filled(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_a_table(path: Path) -> None:
    filled(path)
    with sqlite3.connect(path) as database:
        database.execute("DROP TABLE links")
        database.execute("PRAGMA journal_mode = DELETE")
    database.close()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b"hello, I am a letter, not a database" * 9), "is not a store"),
        (lambda path: path.write_bytes(b"x"), "is not a store"),
        (lambda path: path.write_bytes(b"SQLite format 3\0"), "is not a store"),
        (sqlite_of_another, "another program"),
        (from_the_future, "schema version 2, this program reads up to 1"),
        (cut_short, "cut short"),
        (without_a_table, "table 'links' is missing"),
    ],
    ids=["letter", "one byte", "half a header", "other program", "future", "cut short", "no table"],
)  # fmt: skip
def test_what_is_no_store_is_refused_and_left_alone(tmp_path: Path, make: object, message: str) -> None:
    path = tmp_path / "file.db"
    make(path)  # type: ignore[operator]
    before = path.read_bytes()
    with pytest.raises(BundleError, match=message):
        Store(path, encoder=Letters())
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["file.db"]


def test_a_damaged_page_is_named(tmp_path: Path) -> None:
    path = filled(tmp_path / "store.db")
    data = bytearray(path.read_bytes())
    data[4096 : len(data)] = bytes(len(data) - 4096)
    path.write_bytes(data)
    with pytest.raises(BundleError, match="damaged"), Store(path, encoder=Letters()) as store:
        store.items()


@pytest.mark.parametrize("seed", range(30))
def test_random_damage_never_crashes(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = bytearray(filled(tmp_path / "store.db").read_bytes())
    for place in rng.integers(100, len(data), size=40):
        data[place] = rng.integers(256)
    (tmp_path / "store.db").write_bytes(data)
    try:
        with Store(tmp_path / "store.db", encoder=Letters()) as store:
            if not store.check():
                store.items()
                store.search("a")
    except WorkbenchError:
        pass


def test_folders_and_forbidden_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is a folder"):
        Store(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkbenchError):
        Store(tmp_path / "file" / "store.db")


def test_an_empty_file_becomes_a_store(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.touch()
    with Store(path, encoder=Letters()) as store:
        store.add("a")
    assert pragma(path, "application_id") == APPLICATION_ID


def test_another_encoder_is_refused_until_the_store_is_encoded_anew(tmp_path: Path) -> None:
    path = filled(tmp_path / "store.db")
    for other in (Letters(26, "other"), Letters(25)):
        with pytest.raises(BadInput, match=r"made by 'letters' \(26 numbers\).*reencode"):
            Store(path, encoder=other)
    with Store(path) as store:
        assert len(store) == 59  # whatever needs no encoder works without
        with pytest.raises(BadInput, match="cannot be found by its name"):
            store.search("a")
        texts = [item.index_text for item in store]
        assert store.reencode(Letters(7, "seven")) == 60
        assert np.array_equal(store.vectors(), Letters(7).encode(texts))
        assert store.search("b", 1)[0].id == 2
        assert store.at(0).vectors().shape == (1, 26)
        with pytest.raises(BadInput, match="made by 'letters'"):
            store.at(0).search("a")
        assert store.encoder_label == "letters"
        store.undo()  # the deletion: re-encoding is no step that can be undone
        assert np.array_equal(store.vectors([3]), Letters(7).encode([store.get(3).index_text]))
        store.undo()
        store.undo()
        assert len(store) == 0
        assert store.check() == []
    with pytest.raises(BadInput, match="'seven'"):
        Store(path, encoder=Letters())


def test_undoing_a_change_from_before_a_new_encoder_encodes_anew() -> None:
    with Store(encoder=Letters()) as store:
        store.add("aaa", key="k")
        store.update(1, text="bbb")
        store.reencode(Letters(5, "five"))
        store.undo()
        assert store.get(1).text == "aaa"
        assert np.array_equal(store.vectors(), Letters(5).encode(["aaa"]))
        assert [len(store.at(step)) for step in range(len(store.events()))] == [1, 1, 1, 1]
        assert [store.at(step).vectors().shape[1] for step in range(4)] == [26, 26, 5, 5]
        assert store.replay().vectors().tobytes() == store.vectors().tobytes()
        assert store.check() == []


def test_a_second_store_sees_what_the_first_writes(tmp_path: Path) -> None:
    with Store(tmp_path / "s.db", encoder=Letters()) as one, Store(tmp_path / "s.db", encoder=Letters()) as two:
        one.add("aaa", key="k")
        assert two.get("k").text == "aaa"
        assert two.search("a")[0].id == 1
        two.update(1, text="bbb")
        assert round(one.search("b")[0].score) == 1
        assert round(one.search("a")[0].score) == 0
        one.delete(1)
        assert two.search("b") == []
        two.undo()
        assert one.search("b")[0].id == 1
        assert state(one) == state(two)
        assert list(one.events()) == list(two.events())
        one.reencode(Letters(7, "seven"))
        with pytest.raises(BadInput, match="made by 'seven'"):
            two.search("b")
        with pytest.raises(BadInput, match="made by 'seven'"):
            two.add("ccc")
        assert one.check() == []


def test_a_writer_that_waits_too_long_says_who_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.memory.durable.schema.BUSY_SECONDS", 0.05)
    with Store(tmp_path / "s.db", encoder=Letters()) as one, Store(tmp_path / "s.db", encoder=Letters()) as two:
        one.add("a")
        with one.transaction():
            one.add("b")
            with pytest.raises(StorageError, match="another process has been writing"):
                two.add("c")
            assert [item.text for item in two] == ["a"]
        two.add("d")
        assert [item.text for item in one] == ["a", "b", "d"]


def test_threads_lose_nothing(store: Store) -> None:
    store.add("counter", meta={"n": 0})
    errors: list[BaseException] = []

    def work(name: int) -> None:
        try:
            for i in range(15):
                with store.transaction():
                    store.update(1, meta={"n": store.get(1).meta["n"] + 1})
                item = store.add(f"{'abcd'[name]} {i}", key=f"{name}-{i}")
                store.search("abcd", 3)
                store.link(item.id, 1)
                store.contents(0, 2)
                len(store.events())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert store.get(1).meta["n"] == 60
    assert len(store) == 61
    assert all(item.links == (1,) for item in store if item.id != 1)
    assert len(store.search("abcd", 100)) == 61
    assert store.check() == []


def test_another_thread_waits_for_the_end_of_a_transaction(store: Store) -> None:
    store.add("aaa")
    undone: list[int] = []
    thread = threading.Thread(target=lambda: undone.append(len(store.undo())))
    with store.transaction():
        store.add("bbb")
        thread.start()
        thread.join(0.05)
        assert thread.is_alive()
        store.add("ccc")
    thread.join()
    assert undone == [2]
    assert [item.text for item in store] == ["aaa"]


WRITER = """
import sys
sys.path.insert(0, sys.argv[1])
from store_kit import Letters
from workbench.memory.durable import Store
with Store(sys.argv[2], encoder=Letters()) as store:
    for i in range(20):
        with store.transaction():
            found = store.find("counter") or store.add("counter", key="counter", meta={"n": 0})
            store.update(found.id, meta={"n": found.meta["n"] + 1})
        store.add(f"{sys.argv[3]} {i}")
"""


def test_processes_lose_nothing(tmp_path: Path) -> None:
    path, here = tmp_path / "store.db", Path(__file__).parent
    started = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(here), str(path), name], stderr=subprocess.PIPE, text=True)
        for name in "abc"
    ]  # all at once on a file that does not exist yet
    assert [process.communicate()[1] for process in started] == ["", "", ""]
    with Store(path, encoder=Letters()) as store:
        assert store.get("counter").meta["n"] == 60
        assert len(store) == 61
        assert store.check() == []


FULL = """
import resource, signal, sys
sys.path.insert(0, sys.argv[1])
from store_kit import Letters
from workbench.errors import StorageError
from workbench.memory.durable import Store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Store(sys.argv[2], encoder=Letters()) as store:
    store.add("before")
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
    try:
        for i in range(1000):
            store.add("x" * 20_000)
    except StorageError as error:
        sys.stdout.write(f"{i} {error}")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert len(store) == i + 1, (len(store), i)
    store.add("after")
"""


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(Path(__file__).parent), str(tmp_path / "s.db")], capture_output=True, text=True
    )
    assert done.stderr == ""
    kept, message = done.stdout.split(" ", 1)
    assert "was not changed" in message
    with Store(tmp_path / "s.db", encoder=Letters()) as store:
        assert len(store) == int(kept) + 2
        assert store.check() == []
