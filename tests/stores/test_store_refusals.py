"""Bad input at every door of a store: the error says what was wrong, and the store is as it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from store_kit import Letters, state

from workbench.errors import BadInput, UnknownName
from workbench.memory.durable import MAX_TEXT, NewItem, Store, UnknownItem, seconds

DEEP: list[Any] = []
for _ in range(100_000):
    DEEP = [DEEP]

REFUSED: list[tuple[str, Callable[[Store], Any], str]] = [
    ("empty text", lambda s: s.add(""), "text is empty"),
    ("blank text", lambda s: s.add(" \n"), "text is empty"),
    ("10 MB text", lambda s: s.add("x" * 10_000_000), "10,000,000 characters.*at most 1,000,000"),
    ("bytes", lambda s: s.add("é".encode("latin-1")), "decode bytes first"),
    ("surrogate", lambda s: s.add("half \ud83d"), "lone surrogate at character 5"),
    ("surrogate in meta", lambda s: s.add("a", meta={"x": "\udc00"}), "lone surrogate"),
    ("surrogate in a tag", lambda s: s.add("a", tags=["\udc00"]), "lone surrogate"),
    ("no text", lambda s: s.add(None), "must be text, got NoneType"),
    ("NaN time", lambda s: s.add("a", time=float("nan")), "finite"),
    ("infinite time", lambda s: s.add("a", time=float("inf")), "finite"),
    ("negative time", lambda s: s.add("a", time=-1), "between 1970 and 9999"),
    ("time in far future", lambda s: s.add("a", time=1e15), "between 1970 and 9999"),
    ("unreadable time", lambda s: s.add("a", time="yesterday"), "ISO date"),
    ("time of a wrong type", lambda s: s.add("a", time=[1]), "got list"),
    ("true as time", lambda s: s.add("a", time=True), "got True"),
    ("NaN strength", lambda s: s.add("a", strength=float("nan")), "finite"),
    ("strength as text", lambda s: s.add("a", strength="3"), "finite number, got '3'"),
    ("empty key", lambda s: s.add("a", key=" "), "key is empty"),
    ("long key", lambda s: s.add("a", key="k" * 1001), "1,001 characters"),
    ("taken key", lambda s: s.add("a", key="first"), "taken by item 1"),
    ("key given twice", lambda s: s.add_many([NewItem("a", key="k"), NewItem("b", key="k")]), "given twice"),
    ("last of many is bad", lambda s: s.add_many([NewItem("a"), NewItem("b", links=[77])]), "no item 77"),
    ("empty kind", lambda s: s.add("a", kind=""), "kind is empty"),
    ("tags as one word", lambda s: s.add("a", tags="abc"), "list of words"),
    ("tags of numbers", lambda s: s.add("a", tags=[1]), "tag must be text"),
    ("links as text", lambda s: s.add("a", links="1"), "list of item ids"),
    ("link to a float", lambda s: s.add("a", links=[1.5]), "whole number"),
    ("link to a forgotten item", lambda s: s.add("a", links=[3]), "item 3 was forgotten"),
    ("huge link", lambda s: s.add("a", links=[2**70]), "whole number as the store gave it"),
    ("meta is no dict", lambda s: s.add("a", meta=[1]), "dict with text keys"),
    ("meta with number keys", lambda s: s.add("a", meta={1: 2}), "dict with text keys"),
    ("meta holds NaN", lambda s: s.add("a", meta={"x": float("nan")}), "must be JSON"),
    ("meta holds an array", lambda s: s.add("a", meta={"x": np.zeros(3)}), "must be JSON"),
    ("bottomless meta", lambda s: s.add("a", meta={"x": DEEP}), "must be JSON"),
    ("bad why", lambda s: s.add("a", why=3), "why must be text"),
    ("unknown id", lambda s: s.update(99, text="b"), "no item 99; ids run from 1 to 3"),
    ("unknown key", lambda s: s.get("nobody"), "no item has the key 'nobody'"),
    ("float id", lambda s: s.get(1.0), "whole number"),
    ("true as id", lambda s: s.get(True), "whole number"),
    ("huge id", lambda s: s.get(2**64), "whole number"),
    ("id 0", lambda s: s.delete(0), "no item 0"),
    ("surrogate as key", lambda s: s.get("\udc00"), "lone surrogate"),
    ("forgotten id", lambda s: s.update(3, text="b"), "restore\\(3\\) brings it back"),
    ("unknown field", lambda s: s.update(1, txt="b"), "no field 'txt'.*text"),
    ("changing the vector", lambda s: s.update(1, vector=5), "no field 'vector'"),
    ("half good update", lambda s: s.update(1, text="new", links=[1]), "cannot link to itself"),
    ("update to a taken key", lambda s: s.update(2, key="first"), "taken by item 1"),
    ("update to empty text", lambda s: s.update(2, text=""), "text is empty"),
    ("self-link", lambda s: s.link(1, 1), "cannot link to itself"),
    ("link to nothing", lambda s: s.link(1, 50), "no item 50"),
    ("link from nothing", lambda s: s.link(50, 1), "no item 50"),
    ("forgetting twice", lambda s: s.delete(3), "was forgotten"),
    ("restoring the living", lambda s: s.restore(1), "not forgotten"),
    ("restoring nothing", lambda s: s.restore(8), "no item 8 to restore"),
    ("recording a write", lambda s: s.record("write", [1], ""), "kinds read, rerank, decay"),
    ("recording an unknown item", lambda s: s.record("read", [1, 50], ""), "no item 50"),
    ("recording what JSON cannot say", lambda s: s.record("read", [1], "", x={1, 2}), "must be JSON"),
    ("empty query", lambda s: s.search("  "), "query is empty"),
    ("no query", lambda s: s.search(None), "text or one vector"),
    ("query of another width", lambda s: s.search(np.ones(27)), "shape \\(27,\\).*width 26"),
    ("NaN in the query", lambda s: s.search(np.full(26, np.nan)), "finite numbers"),
    ("matrix as query", lambda s: s.search(np.ones((2, 26))), "one vector"),
    ("k of 0", lambda s: s.search("a", 0), "k must be"),
    ("k as a fraction", lambda s: s.search("a", 1.5), "k must be"),
    ("kinds of numbers", lambda s: s.search("a", kinds=[3]), "kind must be text"),
    ("searching among the unknown", lambda s: s.search("a", ids=[50]), "no item 50"),
    ("one id for a list", lambda s: s.items(1), "list of item ids"),
    ("a key for a list", lambda s: s.vectors("first"), "list of item ids"),
    ("searching in one id", lambda s: s.search("a", ids=1), "list of item ids"),
    ("a number for kinds", lambda s: s.search("a", kinds=3), "kinds must be"),
    ("texts for items", lambda s: s.add_many(["aaa"]), "NewItem\\(text, ...\\), got str"),
    ("nothing for items", lambda s: s.add_many(None), "NewItem\\(text, ...\\), got NoneType"),
    ("a number for a path", lambda s: Store(3), "path is text"),
    ("excluding nonsense", lambda s: s.search("a", exclude=["x"]), "whole number"),
    ("step after the end", lambda s: s.at(step=99), "from -1 to 3"),
    ("step as a fraction", lambda s: s.at(step=0.5), "whole number"),
    ("step and time", lambda s: s.at(step=0, time=1), "not by both"),
    ("moment at NaN", lambda s: s.at(time=float("nan")), "finite"),
    ("moment before an item", lambda s: s.at(step=0).get(2), "no item 2 after step 0"),
    ("page before the start", lambda s: s.contents(start=-1), "start must be"),
    ("page of less than nothing", lambda s: s.contents(count=-1), "count must be"),
    ("not an encoder", lambda s: s.reencode(42), "int has not"),
    ("re-encoding in a transaction", lambda s: _within(s, lambda: s.reencode(Letters(3))), "unit of its own"),
]  # fmt: skip


def _within(store: Store, work: Callable[[], Any]) -> None:
    with store.transaction():
        work()


@pytest.mark.parametrize(("work", "message"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_cannot_be_is_refused_and_nothing_changes(
    store: Store, work: Callable[[Store], Any], message: str
) -> None:
    store.add_many([NewItem("aaa", key="first"), NewItem("bbb", links=[]), NewItem("ccc")])
    store.delete(3)
    before, log, found = state(store), list(store.events()), store.search("ab")
    with pytest.raises(BadInput, match=message):
        work(store)
    assert state(store) == before
    assert list(store.events()) == log
    assert store.search("ab") == found
    assert store.check() == []


def test_unknown_items_are_also_key_errors(store: Store) -> None:
    with pytest.raises(KeyError) as caught:
        store.get(1)
    assert isinstance(caught.value, UnknownItem)
    assert str(caught.value) == "there is no item 1; the store is empty"


def test_the_longest_text_fits(store: Store) -> None:
    text = "ä" * MAX_TEXT
    store.add(text)
    store.update(1, text="b" + text[1:])
    assert store.get(1).text[:2] == "bä"
    assert store.at(0).get(1).text == text


@pytest.mark.parametrize("reading", [float("nan"), -5.0, float("inf"), "noon"])
def test_an_impossible_clock_is_named(reading: Any) -> None:
    with Store(encoder=Letters(), clock=lambda: reading) as store:
        with pytest.raises(BadInput, match="clock gave an impossible time"):
            store.add("a", time=5)
        assert len(store) == 0


class Wrong(Letters):
    """An encoder that does not keep its word."""

    def __init__(self, made: Callable[[Sequence[str]], Any]):
        super().__init__(4, "wrong")
        self._wrong = made

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return self._wrong(texts)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda texts: np.zeros((len(texts), 5)), "shape \\(1, 5\\).*\\(1, 4\\)"),
        (lambda texts: np.zeros((len(texts) + 1, 4)), "shape \\(2, 4\\)"),
        (lambda texts: np.full((len(texts), 4), np.nan), "not finite"),
    ],
)
def test_an_encoder_that_breaks_its_word_is_refused(made: Callable[..., Any], message: str) -> None:
    with Store(encoder=Wrong(made)) as store:
        with pytest.raises(BadInput, match=message):
            store.add("a")
        assert len(store) == len(store.events()) == 0


def test_an_encoder_that_fails_leaves_the_store_alone() -> None:
    def fail(texts: Sequence[str]) -> np.ndarray:
        raise RuntimeError("out of memory")

    with Store(encoder=Wrong(fail)) as store:
        with pytest.raises(RuntimeError, match="out of memory"):
            store.add("a")
        assert len(store.events()) == 0


def test_unknown_indices_and_encoders_are_named() -> None:
    with pytest.raises(UnknownName, match="exact"):
        Store(index="exakt")
    with pytest.raises(Exception, match="no encoder 'minlm'"):
        Store(encoder="minlm")
    with pytest.raises(BadInput, match="encode"):
        Store(encoder=object())  # type: ignore[arg-type]


def test_a_closed_store_says_so(store: Store) -> None:
    store.add("a")
    assert repr(store).startswith("Store(1 items in ")
    store.close()
    store.close()
    assert "closed" in repr(store)
    for work in (lambda: store.add("b"), lambda: len(store), lambda: store.search("a"), store.events, store.undo):
        with pytest.raises(BadInput, match="closed"):
            work()


def test_seconds_explains_itself() -> None:
    with pytest.raises(BadInput, match="NoneType"):
        seconds(None)  # type: ignore[arg-type]
