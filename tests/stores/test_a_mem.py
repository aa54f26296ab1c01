"""A-MEM against its specification: a scripted model, brute force, budgets, embeddings that follow, bad input."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from amem_kit import DAY, TURNS, Decider, encoder, filled, memory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workbench.errors import BadInput
from workbench.memory import MEMORIES
from workbench.memory.stores._amem_notes import Note
from workbench.memory.stores.a_mem import VARIANTS, AMem
from workbench.memory.stores.base import count_tokens


def test_it_is_registered_and_works_without_a_model_or_arguments():
    made = MEMORIES.get("a-mem")()
    first = made.write("Ada adopted a kitten called Pim.", time=0.0)
    second = made.write("Pim the kitten sleeps all day.", time=DAY)
    assert made.read("Which kitten sleeps?").ids[0] == second
    assert {first, second} == set(made.contents()["id"])
    assert "no language model" in made.label


def test_eight_notes_by_a_scripted_model_give_exactly_these_links_contexts_and_tags():
    model = Decider()
    made = filled(llm=model, k_write=3)
    assert [len(ids) for ids in model.shown] == [1, 2, 3, 3, 3, 3, 3]
    contexts = {n: f"About {n}." for n in range(8)}
    tags = {n: ("talk", f"tag{n}") for n in range(8)}
    links: dict[int, tuple[int, ...]] = dict.fromkeys(range(8), ())
    ids = [item.id for item in made.store.items()]
    for new, shown in enumerate(model.shown, 1):
        if new % 3 == 0:
            continue
        places = [ids.index(id) for id in shown]
        links[new], tags[new] = (shown[0],), (f"new{new}",)
        for place in places[:2]:
            contexts[place], tags[place] = f"Seen with {new}.", ("met", f"by{new}")
    for n, item in enumerate(made.store.items()):
        assert (item.text, item.key, item.time) == (TURNS[n], f"t{n}", n * DAY)
        assert (item.meta["context"], item.tags, item.links) == (contexts[n], tags[n], links[n])
        assert item.meta["keywords"] == [f"word{n}", "shared", f"thing{n}"]
    changed = [3 * min(len(shown), 2) * (new % 3 != 0) for new, shown in enumerate(model.shown, 1)]
    kinds = ["write", *(kind for n in changed for kind in ["write", *["update"] * n])]
    assert [event.kind for event in made.events()] == kinds
    assert made.ledger.fallbacks == 0
    assert made.problems == {"missing context": 3, "missing tags": 3}  # four decisions about three, one about two


def test_replaying_the_log_rebuilds_the_same_state():
    made = filled()
    twin = made.store.replay()
    assert twin.items() == made.store.items()
    np.testing.assert_array_equal(twin.vectors(), made.store.vectors())


def test_undo_takes_back_the_last_write_with_texts_and_embeddings():
    made = filled(TURNS[:5])
    before, vectors = made.store.items(), made.store.vectors()
    made.write(TURNS[5], time=5 * DAY)
    evolved = [old.id for old, new in zip(before, made.store.items()) if old.index_text != new.index_text]
    assert evolved, "the sixth note must rewrite a neighbour, else there is nothing to undo"
    made.store.undo()
    assert made.store.items() == before
    np.testing.assert_array_equal(made.store.vectors(), vectors)
    assert len(made.notes.sync().held) == 5


def test_one_evolution_alone_can_be_taken_back_and_again():
    made = filled()
    counts = made.contents().set_index("id")["evolved"]
    id = int(counts.idxmax())
    for left in range(int(counts[id]), 0, -1):
        last = made.history(id)
        made.undo_evolution(id)
        item = made.store.get(id)
        note = Note.of(item)
        assert item.index_text == note.index_text()
        np.testing.assert_allclose(made.store.vectors([id])[0], made.encode([note.index_text()])[0], atol=1e-6)
        assert len(made.history(id)) > len(last), left
    written = next(event.step for event in made.events() if event.kind == "write" and id in event.items)
    assert Note.of(made.store.get(id)) == Note.of(made.store.at(written).get(id))
    with pytest.raises(BadInput, match="no evolution left"):
        made.undo_evolution(id)


def test_retrieval_is_the_brute_force_cosine_and_the_ablation_of_both_is_flat():
    flat = filled(link=False, evolve=False)
    named = filled(**VARIANTS["FLAT"])
    texts = [Note.of(item).index_text() for item in flat.store.items()]
    ids = [item.id for item in flat.store.items()]
    for query in ("Where does Ada work?", "violin museum", "kitten", "nothing of this"):
        vector = encoder().encode([query])[0]
        cosines = encoder().encode(texts).astype(np.float64) @ vector.astype(np.float64)
        order = np.lexsort((ids, -cosines))
        found = flat.read(query, k=5)
        assert found.ids == [ids[n] for n in order[:5]]
        np.testing.assert_allclose([one.score for one in found.items], cosines[order[:5]], atol=1e-6)
        assert named.read(query, k=5) == found
        assert {one.how for one in found.items} == {"direct"}


def test_links_come_on_top_without_a_budget_and_take_places_within_one():
    made = filled(k_read=2, link_cap=3)
    plain = made.read("Who is the mentor of Ada?")
    assert [one.how for one in plain.items[:2]] == ["direct", "direct"]
    assert 2 < len(plain.items) <= 5
    assert {one.how for one in plain.items[2:]} == {"link"}
    within = made.read("Who is the mentor of Ada?", budget_notes=4)
    assert [one.how for one in within.items] == ["direct", "direct", "link", "link"]
    for one in plain.items[2:]:
        assert one.id in made.notes.links(one.via, directed=False)


def test_directed_links_are_followed_from_the_new_note_only():
    made = filled(k_read=1, link_cap=9)
    first = made.store.items()[0].id
    assert made.notes.links(first, directed=True) == []
    assert made.notes.links(first, directed=False)
    question = "kitten called Pim adopted"
    assert len(made.read(question).items) > 1
    made.directed = True
    assert [one.how for one in made.read(question).items if one.via == first] == []


def test_every_embedding_is_of_the_present_text_unless_it_is_flagged():
    for options in ({}, {"evolve": False}, {"construct": False}, {"reembed_every": 3}, {"reembed_every": 99},
                    {"indexing": "published", "reembed_every": 4}):  # fmt: skip
        made = memory(**options)
        flagged = 0
        for n, turn in enumerate(TURNS):
            made.write(turn, time=n * DAY)
            items, vectors = made.store.items(), made.store.vectors()
            now = made.encode([item.index_text for item in items])
            for item, vector, wanted in zip(items, vectors, now):
                assert item.stale or np.allclose(vector, wanted, atol=1e-6)
            flagged += sum(item.stale for item in items)
            assert sum(item.stale for item in items) < made.reembed_every
        assert (flagged > 0) == (made.reembed_every > 1)


def test_the_published_index_holds_metadata_first_and_everything_after_the_rebuild():
    made = memory(indexing="published", reembed_every=2)
    made.write(TURNS[0], time=0.0)
    note = Note.of(made.store.items()[0])
    assert made.store.items()[0].index_text == note.index_text("metadata") != note.index_text()
    for n, turn in enumerate(TURNS[1:], 1):
        made.write(turn, time=n * DAY)
    rebuilt = [event for event in made.events() if event.detail.get("field") == "vector"]
    assert rebuilt
    first = made.store.items()[0]
    assert first.index_text == Note.of(first).index_text()


WORDS = st.lists(
    st.sampled_from(["ada", "bo", "pim", "kitten", "violin", "museum", "harbour", "rain"]), min_size=1, max_size=6
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), WORDS),
        st.tuples(st.just("delete"), st.integers(0, 30)),
        st.tuples(st.just("restore"), st.integers(0, 30)),
        st.tuples(st.just("undo"), st.none()),
        st.tuples(st.just("read"), st.tuples(WORDS, st.integers(1, 6), st.integers(1, 60))),
    ),
    min_size=4,
    max_size=22,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS, st.sampled_from([*VARIANTS, "directed", "walk", "novel"]))
def test_budgets_hold_nothing_comes_twice_and_deleted_notes_never(steps, variant):
    own = {"directed": {"directed": True}, "walk": {"link_order": "walk"}, "novel": {"link_order": "novel"}}
    made = memory(**{**VARIANTS, **own}[variant])
    gone: set[int] = set()
    for what, given_ in steps:
        if what == "add":
            made.write(" ".join(given_), time=0.0)
        elif what == "delete" and len(made):
            item = made.store.items()[given_ % len(made)]
            made.store.delete(item.id)
        elif what == "restore" and made.store.forgotten():
            made.store.restore(made.store.forgotten()[given_ % len(made.store.forgotten())].id)
        elif what == "undo":
            made.store.undo()
        elif what == "read":
            words, notes, tokens = given_
            _check_reading(made, " ".join(words), notes, tokens)
        alive = {item.id for item in made.store.items()}
        gone = {item.id for item in made.store.forgotten()}
        assert made.notes.sync().held.keys() == alive
        for item in made.store.items():
            assert not set(item.links) & gone
            assert made.notes.held[item.id] == Note.of(item)
            assert set(made.notes.links(item.id, directed=False)) <= alive


def _check_reading(made: AMem, query: str, notes: int, tokens: int) -> None:
    alive = {item.id for item in made.store.items()}
    for limits in ({"budget_notes": notes}, {"budget_tokens": tokens}, {"budget_notes": notes, "budget_tokens": tokens},
                   {"k": notes}, {}):  # fmt: skip
        found = made.read(query, **limits)
        assert len(found.items) <= limits.get("budget_notes", 99)
        assert found.tokens == sum(count_tokens(one.text) for one in found.items) <= limits.get("budget_tokens", 10**6)
        assert len(set(found.ids)) == len(found.ids)
        assert set(found.ids) <= alive
        if "budget_notes" in limits and "budget_tokens" not in limits and made.reader != "window":
            assert len(found.items) == min(notes, len(alive)), "places that links leave go to direct hits"


def test_recent_window_and_history_read_by_place():
    made = filled(**VARIANTS["RECENT-N"])
    ids = [item.id for item in made.store.items()]
    assert made.read("anything", budget_notes=3).ids == ids[::-1][:3]
    made = filled(**VARIANTS["FULL-HISTORY"])
    assert made.read("anything").ids == ids
    assert made.read("anything", budget_notes=2).ids == ids[-2:]
    assert made.read("anything").text().splitlines()[0] == f"[1970-01-01] {TURNS[0]}"
    made = filled(**VARIANTS["WINDOW"])
    hit = made.read("harbour office", k=1)
    assert hit.ids == [ids[1], ids[0], ids[2]]
    assert [one.how for one in hit.items] == ["direct", "window", "window"]


def test_a_store_on_disk_is_opened_again_with_links_and_evolution(tmp_path):
    path = tmp_path / "notes.db"
    made = filled(path=path)
    asked = made.read("Who is the mentor of Ada?", budget_notes=5)
    made.close()
    again = AMem(path, encoder=encoder())
    assert again.read("Who is the mentor of Ada?", budget_notes=5) == asked
    again.write("Ada gave Pim a violin.", time=9 * DAY)
    assert len(again) == len(TURNS) + 1
    again.close()


def test_a_second_window_on_the_same_file_sees_what_the_first_writes(tmp_path):
    one, two = (AMem(tmp_path / "notes.db", encoder=encoder()) for _ in range(2))
    first = one.write(TURNS[0], time=0.0)
    assert two.read("kitten").ids == [first]
    two.store.delete(first)
    assert one.read("kitten").ids == []
    one.close()
    two.close()


def test_the_inspector_counts_reads_and_evolutions_and_tells_the_history():
    made = filled()
    reading = made.read("mentor of Ada", budget_notes=3)
    table = made.contents().set_index("id")
    assert set(table.index[table["retrieved"] == 1]) == set(reading.ids)
    assert table["evolved"].sum() > 0
    id = int(table["evolved"].idxmax())
    history = made.history(id)
    for unknown in (0, 999, 1.5, "no key"):
        with pytest.raises(BadInput):
            made.history(unknown)
    assert set(history["field"]) <= {"context", "tags", "keywords"}
    assert (history["old"] != history["new"]).all()
    assert history.iloc[-1]["new"] in (table.loc[id, "context"], table.loc[id, "tags"])
    assert made.contents(start=2, count=3)["id"].tolist() == table.index[2:5].tolist()
    for source, row in table.iterrows():
        assert all(source in table.loc[to, "links_in"] for to in row["links_out"])


def test_explain_names_the_parent_and_the_words_in_common():
    made = filled(k_read=1)
    told = made.explain("Who is the mentor?")
    assert list(told.columns) == ["rank", "id", "how", "via", "score", "text", "shared"]
    via = told[told["how"] == "link"]
    assert len(via)
    assert set(via["via"]) == {told.iloc[0]["id"]}
    assert via["shared"].str.len().gt(0).all()
    nodes, edges = made.graph()
    assert len(nodes) == len(TURNS)
    assert set(edges["source"]) | set(edges["target"]) <= set(nodes["id"])
    assert (edges["step"] == edges[["source", "target"]].max(axis=1).map(nodes.set_index("id")["step"])).all()
    assert isinstance(edges, pd.DataFrame)


def test_an_edited_note_is_found_by_its_new_text_or_flagged_until_it_is_indexed():
    made = filled(TURNS[:4])
    id = made.store.items()[0].id
    made.edit(id, text="Ada sold a submarine.", keywords=["submarine"])
    assert made.read("submarine").ids[0] == id
    assert not made.contents()["stale"].any()
    made.store.update(id, text="Ada bought a zeppelin.")
    assert made.contents().set_index("id")["stale"].to_dict()[id]
    assert made.reindex() == 1
    assert made.read("Ada bought a zeppelin").ids[0] == id
    assert not made.contents()["stale"].any()
    with pytest.raises(BadInput, match="to edit"):
        made.edit(id, mood="good")
    with pytest.raises(BadInput, match="text"):
        made.edit(id, text="")
    assert made.store.get(id).text == "Ada bought a zeppelin."
