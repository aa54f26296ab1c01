"""What a store does: write, read, change, link, forget, restore, undo, search, go back in time."""

from __future__ import annotations

import dataclasses
from datetime import UTC, date, datetime, timedelta, timezone

import numpy as np
import pytest
from store_kit import Letters, state, ticking

from workbench.errors import BadInput
from workbench.memory.durable import Item, NewItem, Store, UnknownItem, seconds, when


def test_an_item_is_what_was_said(store: Store) -> None:
    made = store.add(
        "Ada was in Bergen", key="D1:1", kind="turn", time="2023-05-01", strength=2, tags=["place", "place", "Ada"],
        meta={"n": [1, None], "ü": {"x": 0.1}}, index_text="Bergen", why="heard"
    )  # fmt: skip
    expected = Item(
        1, "D1:1", "turn", "Ada was in Bergen", 1682899200.0, 2.0, ("place", "Ada"), (),
        {"n": [1, None], "ü": {"x": 0.1}}, "Bergen", False
    )  # fmt: skip
    assert made == store.get(1) == store.get("D1:1") == store.find("D1:1") == next(iter(store)) == expected
    assert 1 in store
    assert "D1:1" in store
    assert 2 not in store
    assert "Bergen" not in store
    assert len(store) == 1
    assert store.find("nobody") is None


def test_texts_survive_as_they_are(store: Store) -> None:
    texts = [
        "  spaced \n\t",
        "nul \0 inside",
        "snow ☃ and \U0001f600",
        "'; DROP TABLE items; --",
        "\ufeffmark",
        "e\u0301 é",
    ]
    made = store.add_many([NewItem(text, key=text) for text in texts])
    assert [item.text for item in store.items()] == texts
    assert [store.get(text).id for text in texts] == [item.id for item in made]


def test_a_read_item_cannot_change_the_store(store: Store) -> None:
    store.add("one", meta={"list": [1]})
    store.get(1).meta["list"].append(2)
    assert store.get(1).meta == {"list": [1]}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, 0.0), (12.5, 12.5), (np.float32(2), 2.0), (np.int64(7), 7.0), ("1970-01-02", 86400.0),
        ("1970-01-01T01:00:00+01:00", 0.0), ("1970-01-01T00:00:01Z", 1.0), (date(1970, 1, 2), 86400.0),
        (datetime(1970, 1, 1, 0, 0, 5), 5.0), (datetime(1970, 1, 1, 2, tzinfo=timezone(timedelta(hours=2))), 0.0),
    ],
)  # fmt: skip
def test_times_are_seconds(value: object, expected: float) -> None:
    assert seconds(value) == expected  # type: ignore[arg-type]
    assert when(expected) == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=expected)


def test_an_item_keeps_the_time_it_was_given(store: Store) -> None:
    assert store.add("said", time=5e8).time == 5e8
    assert store.add("not said").time == 2.0  # the clock read 1 when the first item was written


def test_updating_logs_each_field_that_changes(store: Store) -> None:
    store.add("old text", strength=1)
    step = len(store.events())
    item = store.update(1, text="new", strength=1.0, tags=("a",), kind="fact", why="corrected")
    assert (item.text, item.tags, item.kind, item.index_text, item.stale) == ("new", ("a",), "fact", "new", False)
    events = list(store.events())[step:]
    assert [(e.kind, e.items, e.detail["field"], e.detail["old"], e.detail["new"], e.why) for e in events] == [
        ("update", (1,), "kind", "note", "fact", "corrected"),
        ("update", (1,), "text", "old text", "new", "corrected"),
        ("update", (1,), "tags", [], ["a"], "corrected"),
    ]
    assert store.update(1, text="new") == item
    assert len(store.events()) == step + 3


def test_the_vector_follows_the_index_text(store: Store) -> None:
    store.add("aaa")
    assert store.search("a", 1)[0].score == pytest.approx(1)
    store.update(1, text="bbb")
    assert store.search("b", 1)[0].score == pytest.approx(1)
    store.update(1, index_text="ccc")
    store.update(1, text="ddd")  # the index text stands by itself now
    assert store.search("c", 1)[0].score == pytest.approx(1)
    assert store.update(1, index_text=None).index_text == "ddd"
    assert store.search("d", 1)[0].score == pytest.approx(1)
    assert np.array_equal(store.vectors(), Letters().encode(["ddd"]))


def test_a_lazy_update_is_stale_until_refreshed(store: Store) -> None:
    store.add_many([NewItem("aaa"), NewItem("bbb")])
    assert store.update(1, text="ccc", lazy=True).stale
    assert store.search("a", 1)[0].id == 1
    assert store.refresh() == 1
    assert store.refresh() == 0
    assert not store.get(1).stale
    assert store.search("c", 1)[0].score == pytest.approx(1)
    store.undo()
    assert store.get(1).stale
    assert np.array_equal(store.vectors([1]), Letters().encode(["aaa"]))


def test_links_are_directed_and_may_form_a_cycle(store: Store) -> None:
    store.add_many([NewItem("a"), NewItem("b"), NewItem("c", links=[])])
    store.link(1, 2)
    store.link(2, 3)
    assert store.link(3, 1).links == (1,)
    count = len(store.events())
    store.link(1, 2)
    store.unlink(1, 3)
    assert len(store.events()) == count
    assert [item.links for item in store] == [(2,), (3,), (1,)]
    event = list(store.events())[-1]
    assert (event.kind, event.items, event.detail["old"], event.detail["new"]) == ("link", (3, 1), [], [1])
    assert store.unlink(1, 2).links == ()
    assert store.update(1, links=[3, 2, 3]).links == (3, 2)
    assert store.check() == []


def test_forgetting_cuts_links_and_restoring_mends_them(store: Store) -> None:
    store.add_many([NewItem(text) for text in "abcd"])
    for source, target in ((1, 2), (1, 3), (1, 4), (3, 1), (4, 3)):
        store.link(source, target)
    before = state(store)
    gone = store.delete(3, why="wrong")
    assert gone.links == (1,)
    assert [item.links for item in store] == [(2, 4), (), ()]
    assert store.forgotten() == [gone]
    assert 3 not in store
    assert [hit.id for hit in store.search("abcd")] == [1, 2, 4]
    assert store.restore(3).links == (1,)
    assert state(store) == before
    store.delete(1)
    store.delete(3)
    assert store.restore(3).links == ()  # item 1 does not live
    assert store.restore(1).links == (2, 3, 4)
    assert store.check() == []


def test_restoring_after_an_undo_mends_what_the_standing_deletion_cut(store: Store) -> None:
    """Undoing a restoration forgets the item again; the links to mend are those that its deletion cut before."""
    store.add_many([NewItem("a"), NewItem("b")])
    store.link(2, 1)
    store.delete(1)
    store.delete(2)
    store.restore(1)
    store.undo()  # item 1 is forgotten once more
    store.undo()  # item 2 lives
    store.restore(1)
    assert store.get(2).links == (1,)


def test_a_key_is_free_again_when_its_item_is_forgotten(store: Store) -> None:
    store.add("a", key="k")
    store.delete(1)
    assert store.find("k") is None
    assert store.add("b", key="k").id == 2
    with pytest.raises(BadInput, match="taken by item 2"):
        store.restore(1)
    store.undo()
    assert store.restore(1).key == "k"


def test_ids_are_never_used_again(store: Store) -> None:
    store.add("a")
    store.add("b")
    store.undo()
    assert store.add("c").id == 3
    store.delete(3)
    assert store.add("d").id == 4
    assert store.replay().add("e").id == 5


def test_undo_goes_back_unit_by_unit(store: Store) -> None:
    states = [state(store)]
    store.add("aa", key="x")
    states.append(state(store))
    store.update(1, text="bb", strength=4)
    states.append(state(store))
    with store.transaction("a visit"):
        store.add("cc", links=[1])
        store.update(1, key="y")
        store.delete(1)
    states.append(state(store))
    store.record("read", [2], "asked", query="c")  # changes nothing, so undo passes it by
    store.clear()
    assert len(store) == 0
    assert len(store.forgotten()) == 2
    for wanted in reversed(states):
        events = store.undo()
        assert state(store) == wanted
        assert {event.why for event in events} == {"undo"}
        assert store.check() == []
    assert store.undo() == []


def half_a_visit(store: Store) -> None:
    with store.transaction():
        store.add("bbb")
        store.update(1, text="ccc")
        assert store.search("b", 1)[0].id == 2
        assert len(store.events()) == 3
        assert [item.text for item in store.at()] == ["ccc", "bbb"]
        store.delete(1)
        raise ZeroDivisionError


def test_a_transaction_is_all_or_nothing(store: Store) -> None:
    store.add("aaa")
    before, events = state(store), list(store.events())
    with pytest.raises(ZeroDivisionError):
        half_a_visit(store)
    assert state(store) == state(store.at()) == before
    assert list(store.events()) == events
    assert [(hit.id, round(hit.score)) for hit in store.search("a")] == [(1, 1)]
    assert store.check() == []


def test_a_refused_part_leaves_the_rest_of_a_transaction(store: Store) -> None:
    with store.transaction("outer"):
        store.add("aaa", key="k")
        with pytest.raises(BadInput):
            store.add_many([NewItem("bbb"), NewItem("ccc", key="k")])
        with pytest.raises(ZeroDivisionError):
            half_a_visit(store)
        with store.transaction("inner"):
            store.add("eee")
        with pytest.raises(BadInput, match="after the transaction"):
            store.undo()
    assert [item.text for item in store] == ["aaa", "eee"]
    assert [event.why for event in store.events()] == ["outer", "inner"]
    store.undo()
    assert len(store) == 0
    assert store.check() == []


def test_search_is_by_cosine_and_ties_go_by_id(store: Store) -> None:
    store.add_many([NewItem("ab"), NewItem("aab"), NewItem("ab", kind="fact"), NewItem("z"), NewItem("ba")])
    hits = store.search("ab", 4)
    assert [hit.id for hit in hits] == [1, 3, 5, 2]
    assert hits[0].score == hits[1].score == hits[2].score == pytest.approx(1)
    assert hits[3].score == pytest.approx(3 / np.sqrt(10))
    assert [hit.id for hit in store.search("ab", 4, kinds="fact")] == [3]
    assert [hit.id for hit in store.search("ab", 2, ids=[5, 2, 4])] == [5, 2]
    assert [hit.id for hit in store.search("ab", 2, exclude=[1, 3])] == [5, 2]
    assert [hit.id for hit in store.search("ab", 2, ids=[1, 2], kinds=["note"], exclude=[1])] == [2]
    assert store.search("ab", 2, kinds="none") == []
    by_vector = store.search(3 * Letters().encode(["ab"])[0], 4)  # of any length: it is the angle that counts
    assert [hit.id for hit in by_vector] == [hit.id for hit in hits]
    assert [hit.score for hit in by_vector] == pytest.approx([hit.score for hit in hits], abs=1e-6)
    assert len(store.search("ab", 100)) == 5


def test_an_empty_store_finds_nothing(store: Store) -> None:
    assert store.search("a") == []
    assert store.vectors().shape == (0, 26)
    assert store.items() == store.forgotten() == []
    assert store.contents().empty
    assert store.at().items() == []
    assert store.nbytes() == 0
    store.clear()
    assert len(store.events()) == 0
    assert store.check() == []


def test_contents_come_in_pages(store: Store) -> None:
    store.add_many([NewItem(f"text {i}", tags=["t"], links=[]) for i in range(7)])
    store.link(3, 1)
    store.delete(2)
    frame = store.contents()
    assert frame.id.tolist() == [1, 3, 4, 5, 6, 7]
    assert store.contents(start=2, count=3).id.tolist() == [4, 5, 6]
    assert store.contents(start=5, count=9).id.tolist() == [7]
    assert store.contents(start=99).empty
    assert list(store.contents(99).columns) == list(frame.columns)
    assert frame.links[1] == [1]
    assert frame.when.dt.tz is not None
    assert store.at().contents(2, 3).equals(store.contents(2, 3))


def test_bytes_are_counted(store: Store) -> None:
    store.add("x" * 1000)
    one = store.nbytes()
    assert 1000 + 26 * 4 <= one <= 1200 + 26 * 4
    store.add("ü" * 1000)
    assert store.nbytes() - one == one + 1000
    store.delete(2)
    assert store.nbytes() == one


def test_reading_events_are_kept(store: Store) -> None:
    store.add("a")
    event = store.record("read", [1], "a question", query="who?", scores=[np.float32(0.5)], rank=np.int64(1))
    assert (event.step, event.kind, event.items, event.detail["scores"]) == (1, "read", (1,), [0.5])
    assert list(store.events())[-1] == event


def test_items_are_frozen_and_given_in_order(store: Store) -> None:
    store.add_many([NewItem("a"), NewItem("b", kind="fact"), NewItem("c")])
    assert [item.id for item in store.items([3, 1])] == [3, 1]
    assert [item.id for item in store.items(kinds=["fact"])] == [2]
    assert [item.id for item in store.items([3, 2], kinds="note")] == [3]
    assert np.array_equal(store.vectors([3, 1, 3]), Letters().encode(["c", "a", "c"]))
    with pytest.raises(dataclasses.FrozenInstanceError):
        store.get(1).text = "changed"  # type: ignore[misc]
    with pytest.raises(UnknownItem):
        store.items([1, 9])


def test_the_example_of_the_store_is_true() -> None:
    import doctest

    from workbench.memory.durable import store as module

    done = doctest.testmod(module)
    assert done.attempted > 5
    assert done.failed == 0


def test_the_measured_numbers_are_measured() -> None:
    from workbench.memory.durable.measure import throughput

    frame = throughput(300, 16, batch=100, searches=3)
    assert frame.quantity.tolist()[:3] == [
        "insert, in batches",
        "exact search, top 10",
        "exact search against a bare product",
    ]
    assert (frame.value > 0).all()
    assert ticking()() == 1.0
