"""A-MEM at its doors: what cannot be written, asked or set, models that fail, decisions that cannot be used."""

from __future__ import annotations

import numpy as np
import pytest
from amem_kit import TURNS, Decider, fields, filled, memory

from workbench.errors import BadInput
from workbench.llm import LlmError, Scripted
from workbench.memory.durable import Store
from workbench.memory.retrieval import HashedTfidf
from workbench.memory.stores._amem_notes import Evolution, Note
from workbench.memory.stores._amem_plan import plan
from workbench.memory.stores.a_mem import AMem


@pytest.mark.parametrize("text", ["", "   ", None, 7, b"bytes", "x" * 10_000_001], ids=range(6))
def test_text_that_cannot_be_kept_is_refused_and_nothing_changes(text):
    made = filled(TURNS[:2])
    before = list(made.events())
    with pytest.raises(BadInput, match="text"):
        made.write(text)
    assert list(made.events()) == before


@pytest.mark.parametrize("options", [{"time": float("nan")}, {"time": -1.0}, {"key": "t0"}, {"meta": {"context": "x"}},
                                     {"meta": 3}])  # fmt: skip
def test_impossible_times_taken_keys_and_odd_meta_are_refused_before_a_model_is_asked(options):
    model = Decider()
    made = filled(TURNS[:1], llm=model)
    asked = len(model.requests)
    with pytest.raises(BadInput):
        made.write("new text", **options)
    assert len(made) == 1
    assert len(model.requests) == asked


@pytest.mark.parametrize(("query", "options"), [("", {}), (None, {}), ("x", {"k": 0}), ("x", {"budget_notes": -1}),
                                                ("x", {"budget_tokens": 0}), ("x", {"k": 1.5})])  # fmt: skip
def test_a_question_that_cannot_be_asked_is_refused(query, options):
    with pytest.raises(BadInput):
        filled(TURNS[:2]).read(query, **options)


@pytest.mark.parametrize("options", [{"k_write": 0}, {"k_read": 0}, {"link_cap": -1}, {"link_share": 1.2},
                                     {"link_order": "best"}, {"tries": 0}, {"link_threshold": float("nan")},
                                     {"link_threshold": "high"}, {"entity_weight": -1}, {"entity_weight": "3"},
                                     {"temperature": float("nan")}, {"seed": "x"}, {"llm": "gpt"}, {"llm": 3},
                                     {"reader": "llm"}, {"indexing": "rank"}, {"reembed_every": 0}, {"show": "all"},
                                     {"store": Store(encoder=HashedTfidf(dim=8)), "path": "x"}])  # fmt: skip
def test_settings_outside_their_range_are_refused(options):
    with pytest.raises(BadInput):
        AMem(**options)


def test_a_model_that_talks_rubbish_is_replaced_by_the_rule_and_counted():
    rubbish = filled(llm=Scripted(lambda request: "I would rather not."), entity_weight=3.0)
    ruled = filled()
    assert rubbish.ledger.fallbacks == 2 * len(TURNS) - 1
    assert rubbish.store.items() == ruled.store.items()


def test_a_model_that_is_down_does_not_stop_the_memory():
    made = filled(TURNS[:3], llm=Scripted([LlmError("refused")] * 9))
    assert len(made) == 3
    assert made.ledger.fallbacks == 5


def test_an_error_of_ours_while_deciding_leaves_the_store_as_it_was(monkeypatch):
    made = filled(TURNS[:4])
    before, vectors, log = made.store.items(), made.store.vectors(), len(made.events())
    monkeypatch.setattr(AMem, "_refresh", lambda self: 1 // 0)  # the last step of the transaction
    with pytest.raises(ZeroDivisionError):
        made.write(TURNS[5])
    assert (made.store.items(), len(made.events())) == (before, log)
    np.testing.assert_array_equal(made.store.vectors(), vectors)


def neighbours() -> list[Note]:
    return [Note(f"old {n}", 0.0, ("k",), f"context {n}", ("t",), id=10 + n) for n in range(3)]


def test_a_plan_drops_and_counts_what_cannot_be_used():
    said = Evolution(
        should_evolve=True,
        actions=["strengthen", "Update Neighbor", "delete everything"],
        suggested_connections=[11, 99, 11, -1],
        new_context_neighborhood=["better", "", "third", "a fourth"],
        new_tags_neighborhood=[["x", "x", " "]],
    )
    made = plan(said, Note("new", 1.0, tags=("mine",)), neighbours())
    assert made.note.links == (11,)
    assert made.note.tags == ("mine",), "no tags were given, so the note keeps its own"
    assert [(old.id, old.context, old.tags) for old in made.changed] == [(10, "better", ("x",)), (12, "third", ("t",))]
    assert all(old.content.startswith("old") for old in made.changed)
    assert made.problems == {"unknown action": 1, "id that was not shown": 2, "missing tags": 2,
                             "entry beyond the neighbours": 1}  # fmt: skip


@pytest.mark.parametrize(("link", "evolve"), [(True, False), (False, True), (False, False)])
def test_each_ablation_ignores_its_part_of_the_decision(link, evolve):
    said = Evolution(should_evolve=True, actions=["strengthen", "update_neighbor"], suggested_connections=[10],
                     tags_to_update=["new"], new_context_neighborhood=["a", "b", "c"])  # fmt: skip
    made = plan(said, Note("new", 1.0), neighbours(), link=link, evolve=evolve)
    assert (made.note.links, made.note.tags) == (((10,), ("new",)) if link else ((), ()))
    assert len(made.changed) == (3 if evolve else 0)
    nothing = plan(said.model_copy(update={"should_evolve": False}), Note("new", 1.0), neighbours())
    assert (nothing.note.links, nothing.changed) == ((), ())


def test_rewriting_the_question_asks_the_model_and_searches_its_words():
    made = memory(llm=Scripted([fields(0), '{"keywords": ["harbour"]}']), rewrite=True)
    made.write("nothing")
    assert made.read("where?").ids
    assert made.ledger.answers == 2
    ruled = filled(rewrite=True)
    assert ruled.read("Where does she go, to the harbour office?").ids[0] == ruled.store.items()[1].id
