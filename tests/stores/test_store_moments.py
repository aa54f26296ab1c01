"""The log of a store: every moment it passed through can be seen again, and nothing in it can be changed."""

from __future__ import annotations

import pytest
from store_kit import Letters, state

from workbench.memory.durable import NewItem, Store


def test_what_an_event_log_holds_is_what_the_store_holds(store: Store) -> None:
    store.add_many([NewItem(text) for text in "abc"])
    store.delete(2)
    store.undo()
    store.clear()
    store.restore(3)
    store.undo()
    store.undo()
    store.undo()
    log = store.events()
    assert [log.held(step) for step in range(len(log))] == [{i.id for i in store.at(step)} for step in range(len(log))]
    assert [event.step for event in log] == list(range(len(log)))
    log.append("reset", (), "the caller's own copy")
    assert len(store.events()) == len(log) - 1


def test_moments_by_step_and_by_time(store: Store) -> None:
    store.add("aaa")  # the clock ticks for the item and for the event: event at 2
    store.update(1, text="bbb")  # at 3
    store.delete(1)  # at 4
    assert [len(store.at(step)) for step in (-1, 0, 1, 2)] == [0, 1, 1, 0]
    assert store.at(0).get(1).text == "aaa"
    assert store.at(0).search("a", 1)[0].score == pytest.approx(1)
    assert store.at(1).search("b")[0].score == pytest.approx(1)
    assert [store.at(time=time).step for time in (0, 2, 2.5, 3, 4, 1e9)] == [-1, 0, 0, 1, 2, 2]
    assert store.at().step == 2
    assert store.at(2).forgotten()[0].text == "bbb"
    moment = store.at(0)
    store.undo()
    store.update(1, text="ccc", key="k")
    assert moment.get(1).text == "aaa"
    assert moment.find("k") is None
    assert "k" in store.at()
    assert [item.text for item in moment] == ["aaa"]
    assert moment.contents().text.tolist() == ["aaa"]


def test_a_clock_that_runs_backwards_orders_nothing() -> None:
    readings = iter([10.0, 10.0, 3.0, 3.0, 12.0, 12.0])
    with Store(encoder=Letters(), clock=lambda: next(readings)) as store:
        store.add("first")
        store.add("second")
        store.add("third")
        assert [item.time for item in store] == [10.0, 3.0, 12.0]
        assert [event.detail["time"] for event in store.events()] == [10.0, 10.0, 12.0]
        assert [len(store.at(time=time)) for time in (9, 10, 11, 12)] == [0, 2, 2, 3]


def test_replay_rebuilds_the_store_from_its_log(store: Store) -> None:
    store.add_many([NewItem("aaa", key="k"), NewItem("bbb", links=[]), NewItem("ccc")])
    store.link(1, 3)
    store.update(2, text="ddd", meta={"x": [1.5, None]}, lazy=True)
    store.delete(3)
    store.undo()
    store.delete(2)
    store.record("decay", [1], "time", by=0.5)
    twin = store.replay()
    assert twin.path is None
    assert state(twin) == state(store)
    assert list(twin.events()) == list(store.events())
    assert twin.search("abc") == store.search("abc")
    assert twin.check() == store.check() == []
    assert [e.kind for e in twin.undo()] == [e.kind for e in store.undo()]
    assert state(twin) == state(store)


def test_the_log_cannot_be_changed(store: Store) -> None:
    import sqlite3

    store.add("a")
    for statement in ("DELETE FROM events", "UPDATE events SET why = 'x'", "DELETE FROM vectors"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            store._database.execute(statement)
