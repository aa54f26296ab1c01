"""Whatever is done to a store, in whatever order: it says what a plain-Python model says, now and at every step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from store_kit import Letters, ticking

from workbench.errors import BadInput
from workbench.memory.durable import NewItem, Store
from workbench.memory.durable.items import FIELDS

TEXTS = st.text(alphabet="abcdefg é", min_size=1, max_size=6).filter(str.strip)
KEYS = st.none() | st.sampled_from(["k1", "k2", "k3"])
META = st.dictionaries(
    st.sampled_from("xy"), st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
)
CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "key": KEYS,
        "kind": st.sampled_from(["note", "fact"]),
        "text": TEXTS,
        "time": st.floats(0, 1e9),
        "strength": st.floats(-5, 5),
        "tags": st.lists(st.sampled_from("rst"), unique=True),
        "meta": META,
        "index_text": st.none() | TEXTS,
    },
)
PICK = st.integers(0, 30)
Facts = dict[int, dict[str, Any]]


class Model:
    """The same store as dicts: what is there now, what was there after every event, and where each unit began.

    Each item has the fields of an item as given, ``alive``, and ``encoded``: the text that its vector encodes.
    """

    def __init__(self) -> None:
        self.now: Facts = {}
        self.history: list[Facts] = [{}]  # before the first event, after the first, ...
        self.units: list[tuple[int, int]] = []  # events of each unit that can be undone: from, to
        self.ids = 0

    def event(self) -> None:
        self.history.append({id: dict(facts) for id, facts in self.now.items()})

    def unit(self, start: int) -> None:
        if len(self.history) > start:
            self.units.append((start, len(self.history)))

    def alive(self) -> list[int]:
        return [id for id, facts in self.now.items() if facts["alive"]]

    def gone(self) -> list[int]:
        return [id for id, facts in self.now.items() if not facts["alive"]]

    def taken(self, key: str | None) -> bool:
        return key is not None and any(self.now[id]["key"] == key for id in self.alive())

    def add(self, facts: dict[str, Any]) -> None:
        self.ids += 1
        encoded = facts["text"] if facts["index_text"] is None else facts["index_text"]
        self.now[self.ids] = {**facts, "alive": True, "encoded": encoded}
        self.event()

    def update(self, id: int, changes: dict[str, Any], lazy: bool) -> None:
        for name in FIELDS:
            facts = self.now[id]
            if name not in changes or facts[name] == changes[name]:
                continue
            before = facts["text"] if facts["index_text"] is None else facts["index_text"]
            facts[name] = changes[name]
            after = facts["text"] if facts["index_text"] is None else facts["index_text"]
            if before != after and not lazy:
                facts["encoded"] = after
            if before != after:
                facts["stale"] = lazy
            self.event()

    def link(self, id: int, to: int, add: bool) -> None:
        links = self.now[id]["links"]
        if (to in links) != add:
            self.now[id]["links"] = [*links, to] if add else [link for link in links if link != to]
            self.event()

    def delete(self, id: int) -> None:
        self.now[id]["alive"] = False
        self.now[id]["cut"] = {}
        for source in self.alive():
            links = self.now[source]["links"]
            if id in links:
                self.now[id]["cut"][source] = links.index(id)
                self.now[source]["links"] = [link for link in links if link != id]
        self.event()

    def restore(self, id: int) -> None:
        facts = self.now[id]
        facts["alive"] = True
        facts["links"] = [link for link in facts["links"] if self.now.get(link, {}).get("alive") and link != id]
        for source, place in facts["cut"].items():
            if source in self.alive() and id not in self.now[source]["links"]:
                links = self.now[source]["links"]
                self.now[source]["links"] = [*links[:place], id, *links[place:]]
        self.event()

    def clear(self) -> None:
        for id in self.alive():
            self.now[id] |= {"alive": False, "cut": {}}
        self.event()

    def refresh(self) -> None:
        for id in sorted(self.alive()):
            facts = self.now[id]
            if facts["stale"]:
                facts |= {
                    "stale": False,
                    "encoded": facts["text"] if facts["index_text"] is None else facts["index_text"],
                }
                self.event()

    def undo(self) -> None:
        start, end = self.units.pop()
        for step in range(end - 1, start - 1, -1):
            self.history.append(self.history[step - 1])
        self.now = {id: dict(facts) for id, facts in self.history[-1].items()}


def seen(held: Any) -> Facts:
    """A store or snapshot in the model's words."""
    found: Facts = {}
    for alive, items in ((True, held.items()), (False, held.forgotten())):
        for item in items:
            facts = {name: getattr(item, name) for name in (*FIELDS, "stale")}
            found[item.id] = {**facts, "tags": list(item.tags), "links": list(item.links), "alive": alive}
    return found


def said(model: Facts) -> Facts:
    """The model in the words of ``seen``."""
    found: Facts = {}
    for id, facts in model.items():
        shown = {name: facts[name] for name in (*FIELDS, "stale", "alive")}
        shown["index_text"] = facts["text"] if facts["index_text"] is None else facts["index_text"]
        found[id] = shown
    return found


class Histories(RuleBasedStateMachine):
    path: Any = None

    @initialize()
    def begin(self) -> None:
        self.store = Store(encoder=Letters(), clock=ticking())
        self.model = Model()

    def pick(self, ids: list[int], place: int) -> int | None:
        return ids[place % len(ids)] if ids else None

    # Each operation is carried out on both sides; the rules below run one in a unit of its own or several in one.

    def do_add(self, text: str, key: str | None, index_text: str | None, links: list[int]) -> None:
        targets = list(dict.fromkeys(id for place in links if (id := self.pick(self.model.alive(), place))))
        new = NewItem(text, key=key, time=5.0, index_text=index_text, links=targets)
        if self.model.taken(key):
            with pytest.raises(BadInput, match="taken"):
                self.store.add_many([NewItem("x"), new])
            return
        facts = {name: getattr(new, name) for name in FIELDS} | {"tags": [], "meta": {}, "stale": False}
        made = self.store.add_many([new])[0]
        self.model.add(facts)
        assert made.id == self.model.ids

    def do_update(self, place: int, changes: dict[str, Any], lazy: bool) -> None:
        id = self.pick(self.model.alive(), place)
        if id is None:
            return
        key = changes.get("key")
        if key != self.model.now[id]["key"] and self.model.taken(key):
            with pytest.raises(BadInput, match="taken"):
                self.store.update(id, lazy=lazy, **changes)
            return
        self.store.update(id, lazy=lazy, **changes)
        self.model.update(id, changes, lazy)

    def do_link(self, place: int, to: int, add: bool) -> None:
        alive = self.model.alive()
        source, target = self.pick(alive, place), self.pick(alive, to)
        if source is None or target is None:
            return
        if source == target and add:
            with pytest.raises(BadInput, match="itself"):
                self.store.link(source, target)
            return
        (self.store.link if add else self.store.unlink)(source, target)
        self.model.link(source, target, add)

    def do_delete(self, place: int) -> None:
        if (id := self.pick(self.model.alive(), place)) is not None:
            self.store.delete(id)
            self.model.delete(id)

    def do_restore(self, place: int) -> None:
        id = self.pick(self.model.gone(), place)
        if id is None:
            return
        if self.model.taken(self.model.now[id]["key"]):
            with pytest.raises(BadInput, match="taken"):
                self.store.restore(id)
            return
        self.store.restore(id)
        self.model.restore(id)

    def do_clear(self) -> None:
        alive = bool(self.model.alive())
        self.store.clear()
        if alive:
            self.model.clear()

    def do_refresh(self) -> None:
        self.store.refresh()
        self.model.refresh()

    OPERATIONS = st.one_of(
        st.tuples(st.just("refresh")),
        st.tuples(st.just("add"), TEXTS, KEYS, st.none() | TEXTS, st.lists(PICK, max_size=3)),
        st.tuples(st.just("update"), PICK, CHANGES, st.booleans()),
        st.tuples(st.just("link"), PICK, PICK, st.booleans()),
        st.tuples(st.just("delete"), PICK),
        st.tuples(st.just("restore"), PICK),
    )

    def carry_out(self, operation: tuple[Any, ...]) -> None:
        getattr(self, f"do_{operation[0]}")(*operation[1:])

    @rule(operation=OPERATIONS)
    def one(self, operation: tuple[Any, ...]) -> None:
        start = len(self.model.history)
        self.carry_out(operation)
        self.model.unit(start)

    @rule(operations=st.lists(OPERATIONS, min_size=1, max_size=5), fails=st.booleans())
    def several(self, operations: list[tuple[Any, ...]], fails: bool) -> None:
        start, ids = len(self.model.history), self.model.ids
        try:
            with self.store.transaction():
                for operation in operations:
                    self.carry_out(operation)
                    self.agree()
                    assert seen(self.store.at()) == said(self.model.now)
                if fails:
                    raise InterruptedError
        except InterruptedError:
            del self.model.history[start:]
            self.model.now = {id: dict(facts) for id, facts in self.model.history[-1].items()}
            self.model.ids = ids  # numbers that nobody saw are given again
        self.model.unit(start)

    @rule()
    def clear(self) -> None:
        start = len(self.model.history)
        self.do_clear()
        self.model.unit(start)

    @rule()
    def undo(self) -> None:
        events = self.store.undo()
        if self.model.units:
            start, end = self.model.units[-1]
            self.model.undo()
            assert len(events) == end - start
        else:
            assert events == []

    @rule()
    def read(self) -> None:
        if self.model.alive():
            self.store.record("read", self.model.alive()[:1], "asked")
            self.model.event()

    @invariant()
    def agree(self) -> None:
        assert seen(self.store) == said(self.model.now)
        assert len(self.store) == len(self.model.alive())

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        assert self.store.check() == []
        log = self.store.events()
        assert len(log) == len(self.model.history) - 1
        for step, facts in enumerate(self.model.history, -1):
            moment = self.store.at(step)
            assert seen(moment) == said(facts)
            alive = [id for id, fact in sorted(facts.items()) if fact["alive"]]
            encoded = Letters().encode([facts[id]["encoded"] for id in alive])
            assert not alive or np.array_equal(moment.vectors(), encoded)
            assert log.held(step) == set(alive)
        twin = self.store.replay()
        assert seen(twin) == seen(self.store)
        assert np.array_equal(twin.vectors(), self.store.vectors())
        if self.model.alive():
            assert self.store.search("abc") == twin.search("abc") == self.store.at().search("abc")


Histories.TestCase.settings = settings(
    max_examples=120, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestHistories = Histories.TestCase
