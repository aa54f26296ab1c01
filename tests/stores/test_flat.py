"""Plain retrieval: what is kept is what came, what is given back is what is nearest, and budgets hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import BadInput
from workbench.memory.base import MEMORIES
from workbench.memory.durable import Store
from workbench.memory.stores.base import StoreMemory, count_tokens, fitting
from workbench.memory.stores.flat import Flat

WORDS = ("key", "lamp", "boat", "mat", "desk", "pier", "Ada", "Ben", "rain", "bread")
TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join)


@pytest.fixture
def flat() -> Flat:
    made = Flat(encoder="tfidf")
    for text in ("The key of Ada lies under the mat.", "The lamp of Ben stands on the desk.", "Bread is in the box."):
        made.write(text)
    return made


def test_it_is_registered_and_a_memory_of_items():
    assert MEMORIES.get("flat") is Flat
    assert isinstance(Flat(encoder="tfidf"), StoreMemory)


def test_the_nearest_piece_comes_first_with_its_cosine(flat):
    reading = flat.read("Where is the key of Ada?")
    assert reading.ids[0] == 1
    assert reading.items[0].text == "The key of Ada lies under the mat."
    vector = flat.store.encoder.encode(["Where is the key of Ada?"])[0]
    cosines = flat.store.vectors() @ vector
    assert np.allclose([item.score for item in reading.items], np.sort(cosines)[::-1], atol=1e-6)
    assert {item.how for item in reading.items} == {"direct"}


def test_a_read_is_an_event_and_changes_nothing(flat):
    before = flat.contents()
    flat.read("Ada", k=2)
    event = list(flat.events())[-1]
    assert (event.kind, len(event.items), event.detail["query"]) == ("read", 2, "Ada")
    assert flat.contents().equals(before)


@settings(max_examples=25, deadline=None)
@given(
    texts=st.lists(TEXTS, min_size=1, max_size=8),
    notes=st.integers(1, 9),
    tokens=st.integers(1, 30),
    k=st.integers(1, 9),
)
def test_budgets_hold(texts, notes, tokens, k):
    made = Flat(encoder="tfidf", k=k)
    made.write_many(texts)
    reading = made.read("the key of Ada", budget_notes=notes, budget_tokens=tokens)
    assert len(reading.items) <= min(notes, k, len(texts))
    assert reading.tokens == sum(count_tokens(item.text) for item in reading.items) <= tokens
    assert len(set(reading.ids)) == len(reading.ids)
    scores = [item.score for item in reading.items]
    assert scores == sorted(scores, reverse=True)


def test_what_does_not_fit_is_said(flat):
    reading = flat.read("Ada and Ben", budget_tokens=6)
    assert reading.ids == [3]
    assert reading.note == "2 pieces do not fit into 6 tokens"


def test_a_reset_is_undone(flat):
    held = flat.contents()
    flat.reset()
    assert len(flat) == 0
    assert flat.read("Ada").items == ()
    flat.store.undo()
    assert flat.contents().equals(held)


def test_a_file_is_read_again(tmp_path):
    with Store(tmp_path / "m.db", encoder="tfidf") as store:
        Flat(store=store).write("The key lies under the mat.", key="first", meta={"who": "Ada"})
    again = Flat(tmp_path / "m.db")
    assert again.read("key").ids == [1]
    assert again.store.get("first").meta == {"who": "Ada"}
    again.close()


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda m: m.read("  "), "the query is empty"),
        (lambda m: m.read(3), "must be text"),
        (lambda m: m.read("Ada", k=0), "k must be"),
        (lambda m: m.read("Ada", budget_notes=0), "budget_notes must be"),
        (lambda m: m.read("Ada", budget_tokens=-1), "budget_tokens must be"),
        (lambda m: m.write(""), "text is empty"),
        (lambda m: m.write("x", time=float("nan")), "time"),
        (lambda m: m.write_many(["fine", " "]), "text is empty"),
        (lambda m: Flat(k=0), "k must be"),
        (lambda m: Flat(k=True), "k must be"),
        (lambda m: Flat("x.db", store=m.store), "give either store"),
    ],
)
def test_bad_input_is_told_and_changes_nothing(flat, act, message):
    before = flat.contents()
    with pytest.raises(BadInput, match=message):
        act(flat)
    assert flat.contents().equals(before)
    assert len(flat.events()) == 3


def test_what_fits_a_budget_is_chosen_first_come_first_served():
    assert fitting([3, 5, 2, 1], None) == ([0, 1, 2, 3], 11)
    assert fitting([3, 5, 2, 1], 6) == ([0, 2, 3], 6), "the second does not fit, shorter ones behind it do"
    assert fitting([7, 8], 6) == fitting([], 6) == ([], 0)
