"""The memory over its store: what is written, found, edited and undone; every fallback said aloud."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.errors import BadInput
from workbench.memory.base import MEMORIES
from workbench.memory.durable import Store
from workbench.memory.stores._hipporag_phrases import LetterTriples
from workbench.memory.stores.base import StoreMemory, count_tokens
from workbench.memory.stores.hipporag import HippoRAG

QUESTION = "In which district was Alhandra born?"
TOY = {
    "Alhandra\nAlhandra was a Portuguese footballer who was born in Vila Franca de Xira.": [
        ["Alhandra", "born in", "Vila Franca de Xira"], ["Alhandra", "was", "Portuguese footballer"],
        ["Alhandra", "was", "footballer"],
    ],
    "Vila Franca de Xira\nVila Franca de Xira is a municipality beside Lisbon.": [
        ["Vila Franca de Xira", "is", "municipality"], ["Vila Franca de Xira", "beside", "Lisbon"],
    ],
    "Harbour fire\nThe fire broke out in the district in which the mayor was born.": [
        ["fire", "broke out in", "harbour district"], ["mayor", "born in", "harbour district"],
    ],
    "Porto\nPorto is a district in which footballers and singers were born.": [
        ["Porto", "is", "district"], ["footballers", "born in", "Porto"],
    ],
}  # fmt: skip


def metas(corpus: dict[str, list]) -> list[dict]:
    return [{"triples": triples, "entities": [triples[0][0], triples[0][2]]} for triples in corpus.values()]


def made(corpus: dict[str, list] = TOY, **options) -> HippoRAG:
    memory = HippoRAG(encoder="tfidf", phrases=LetterTriples(), **options)
    memory.write_many(list(corpus), metas(corpus))
    return memory


@pytest.fixture
def toy() -> HippoRAG:
    return made()


def test_it_is_registered_and_works_without_arguments():
    assert MEMORIES.get("hipporag") is HippoRAG
    memory = HippoRAG()
    assert isinstance(memory, StoreMemory)
    assert memory.settings()["damping"] == 0.5
    assert memory.openie.label == "rules (no language model)"


# ---------------------------------------------------------------------- finding


def test_the_second_hop_is_found_in_one_step(toy):
    """Done means 2."""
    trace = toy.trace(QUESTION)
    flat = np.argsort(-toy.flat_scores(QUESTION, "bm25"), kind="stable") + 1
    assert trace.ids[:2] == [1, 2]
    assert list(flat).index(2) + 1 > 2
    cue = trace.index.position["alhandra"]
    assert [link.node for link in trace.links] == [cue]
    assert trace.mass[cue] > 0.5
    assert trace.mass.sum() == pytest.approx(1.0, abs=1e-9)
    assert trace.by == "rules (no language model)"


def test_a_read_gives_passages_with_how_and_logs_the_question(toy):
    reading = toy.read(QUESTION, k=2)
    assert reading.ids == [1, 2]
    assert {item.how for item in reading.items} == {"graph"}
    assert reading.note == ""
    event = list(toy.events())[-1]
    assert (event.kind, event.items) == ("read", (1, 2))
    assert event.detail["query"] == QUESTION
    assert event.detail["entities"] == ["Alhandra"]
    assert list(reading.frame().columns) == ["rank", "id", "how", "via", "score", "text"]


def test_passages_that_the_walk_did_not_reach_are_not_given_back(toy):
    assert toy.read(QUESTION, k=4).ids == [1, 2, 4]  # "footballers" is like "footballer"; nothing leads to 3
    assert toy.trace(QUESTION).ids == [1, 2, 4, 3]


def test_budgets(toy):
    assert toy.read(QUESTION, budget_notes=1).ids == [1]
    first = count_tokens(toy.store.get(1).text)
    small = toy.read(QUESTION, budget_tokens=first)
    assert (small.ids, small.tokens) == ([1], first)
    assert "2 passages did not fit" in small.note


def test_the_trace_says_what_every_phrase_brought(toy):
    trace = toy.trace(QUESTION)
    shares = trace.shares(trace.index.row[2])
    assert shares["share"].sum() == pytest.approx(1)
    assert shares["phrase"].iloc[0] == "vila franca de xira"
    phrases = trace.phrases()
    assert phrases["mass"].is_monotonic_decreasing
    assert phrases.iloc[0]["role"] == "query node"
    assert dict(zip(phrases["phrase"], phrases["in"]))["vila franca de xira"] == [1, 2]
    triples = trace.index.triples()
    assert len(triples) == len(trace.index.facts)
    assert triples.loc[triples["object"] == "lisbon", "passages"].tolist() == [[2]]
    assert "vila franca de xira" in trace.passages(2)["phrases"].iloc[1]
    nodes, edges = trace.frames(top=5, count=4)
    assert sorted(nodes["step"].unique()) == [0, 1, 2, 3, 4]
    assert nodes.groupby("step")["size"].sum().max() <= 1 + 1e-9
    assert set(edges["source"]) | set(edges["target"]) <= set(nodes["id"])


def test_every_switch_changes_the_retrieval(toy):
    plain = toy.trace(QUESTION).scores
    assert toy.trace(QUESTION, walk="query nodes").ids[0] == 1
    assert toy.trace(QUESTION, walk="query nodes").scores[1] == 0
    assert not np.allclose(toy.trace(QUESTION, walk="neighbours").scores, plain)
    assert not np.allclose(toy.trace(QUESTION, damping=0.9).scores, plain)
    two = "Is Alhandra in Vila Franca de Xira?"
    assert not np.allclose(toy.trace(two).start, toy.trace(two, specificity=False).start)
    solvers = [toy.trace(QUESTION, solver=name).scores for name in ("igraph", "power")]
    np.testing.assert_allclose(*solvers, atol=1e-8)
    assert toy.damping == 0.5  # switches are for one question


def test_synonymy_bridges_two_spellings():
    corpus = {
        "Life\nIna Kolb was born in Mirel Harbour.": [["Ina Kolb", "born in", "Mirel Harbour"]],
        "Port\nMirel Harbours lie on the Sele.": [["Mirel Harbours", "lie on", "Sele"]],
        "Fair\nThe fair is in Porto.": [["fair", "is in", "Porto"]],
    }
    memory = made(corpus)
    assert memory.statistics()["synonymy edges"] == 1
    with_, without = (memory.trace("Where was Ina Kolb born?", synonymy=on).scores for on in (True, False))
    assert with_[1] > 0 == without[1]


def test_the_ensemble_averages_only_when_a_link_is_unsure(toy):
    sure = toy.trace(QUESTION, ensemble=True)
    assert (sure.how, sure.note) == ("graph", "")
    unsure = toy.trace("Where was Alhandro born?", ensemble=True)
    assert unsure.links[0].cosine < 0.9
    assert unsure.how == "graph + flat"
    assert "averaged" in unsure.note
    graph = toy.trace("Where was Alhandro born?").scores
    dense = toy.flat_scores("Where was Alhandro born?")
    spread = (dense - dense.min()) / (dense.max() - dense.min())
    np.testing.assert_allclose(unsure.scores, (graph + spread) / 2, atol=1e-12)


def test_version_2_ranks_passage_nodes(toy):
    assert len(toy.trace(QUESTION, version="2", facts=1).links) == 2  # both phrases of one fact
    toy.fact_filter = lambda query, facts: [fact for fact in facts if fact.subject == "alhandra"]
    trace = toy.trace(QUESTION, version="2", facts=50)
    assert trace.ids[:2] == [1, 2]
    assert {link.phrase for link in trace.links} >= {"alhandra", "vila franca de xira"}
    assert trace.scores.sum() + trace.mass.sum() == pytest.approx(1.0, abs=1e-9)
    nothing = made(fact_filter=lambda query, facts: []).trace(QUESTION, version="2")
    assert nothing.how == "dense"
    assert "kept no fact" in nothing.note


# ---------------------------------------------------------------------- fallbacks: done means 6


def test_a_question_without_entities_falls_back_aloud(toy):
    for query in ("what is so close to it, beside which town?", "who was born there?"):
        reading = toy.read(query)
        assert "no entity" in reading.note
        assert "dense" in reading.note
        assert {item.how for item in reading.items} == {"dense"}
        scores = [item.score for item in reading.items]
        assert len(set(scores)) == len(scores)  # no uniform ranking
        assert list(toy.events())[-1].detail["note"] == reading.note
    assert "bm25" in toy.trace("who was born there?", flat="bm25").note


def test_a_question_like_nothing_finds_nothing(toy):
    reading = toy.read("qqqq wwww?")
    assert reading.items == ()
    assert "no passage is like it" in reading.note


def test_an_unknown_entity_is_linked_with_its_confidence(toy):
    (link,) = toy.trace("Where was Alhandrya born?").links
    assert toy.index().nodes[link.node] == "alhandra"
    assert 0.5 < link.cosine < 1


def test_an_empty_memory_says_so():
    memory = HippoRAG(encoder="tfidf", phrases=LetterTriples())
    reading = memory.read("Where is Ada?")
    assert (reading.items, reading.note) == ((), "the memory is empty")
    assert memory.statistics()["passages"] == 0
    assert memory.context("Where is Ada?") == ""


def test_a_corpus_without_a_triple_is_refused_and_nothing_is_kept():
    memory = HippoRAG(encoder="tfidf", phrases=LetterTriples())
    with pytest.raises(BadInput, match="not one triple"):
        memory.write_many(["one text", "another text"], [{"triples": []}, {"triples": [["a", "b"]]}])
    assert len(memory) == 0
    memory.write("a text without any fact", meta={"triples": []})  # a single remark may state none
    assert "no triples" in memory.read("text").note


def test_malformed_triples_are_dropped_and_counted(toy):
    toy.write("Faro\nFaro is a town.", meta={"triples": [["Faro", "is", "town"], ["Faro", "town"], ["a"] * 4, "x"]})
    assert toy.statistics()["malformed triples"] == 3
    assert toy.store.get(5).meta["triples"] == [["faro", "is", "town"]]


def test_a_passage_is_kept_once(toy):
    text = next(iter(TOY))
    assert toy.write(text) == 1
    assert len(toy) == 4
    assert "already held" in list(toy.events())[-1].why
    with pytest.raises(BadInput, match="already held as item 1"):
        toy.write(text, key="other")
    assert toy.write_many([text, "Faro\nNew.", "Faro\nNew."]) == [1, 5, 5]


@pytest.mark.parametrize("query", ["", "  ", None, 3])
def test_empty_questions_are_refused(toy, query):
    with pytest.raises(BadInput):
        toy.read(query)


@pytest.mark.parametrize(
    "options",
    [{"damping": 1}, {"damping": -0.1}, {"tau": 0}, {"tau": 1.1}, {"walk": "fly"}, {"flat": "sparse"}, {"k": 0},
     {"version": "3"}, {"solver": "x"}, {"neighbour_share": -1}, {"facts": 0}, {"accents": "keep"}, {"synonyms": 0},
     {"openie": 3}, {"damping": True}, {"k": None}, {"facts": None},
     {"synonyms": "many"}, {"path": "x", "store": Store(encoder="tfidf")}],
)  # fmt: skip
def test_settings_outside_their_range_are_refused(options):
    with pytest.raises(BadInput):
        HippoRAG(**{"encoder": "tfidf", **options})


def test_bad_writes_leave_the_memory_as_it_was(toy):
    before = toy.contents()
    for text, meta in (("", None), (" ", None), (3, None), (["x"], None), ("x", {"triples": "a b c"}),
                       ("x", {"entities": 3}), ("x", "triples"), ("x", ["triples"])):  # fmt: skip
        with pytest.raises(BadInput):
            toy.write(text, meta=meta)
    for entities in ("Alhandra", 3, [3], [["Alhandra"]]):
        with pytest.raises(BadInput, match="list of names"):
            toy.trace(QUESTION, entities=entities)
    with pytest.raises(BadInput, match="must be text"):
        toy.flat_scores(3)
    with pytest.raises(BadInput, match="no switch 'speed'"):
        toy.trace(QUESTION, speed=3)
    with pytest.raises(BadInput, match="metas must have one entry"):
        toy.write_many(["a", "b"], [{}])
    assert toy.contents().equals(before)


# ---------------------------------------------------------------------- the store is the truth


def test_incremental_writing_is_the_same_index(toy):
    slow = HippoRAG(encoder="tfidf", phrases=LetterTriples())
    for text, meta in zip(TOY, metas(TOY)):
        slow.write(text, meta=meta)
        slow.read("Porto?")
    a, b = slow.index(), toy.index()
    assert (a.nodes, a.facts) == (b.nodes, b.facts)
    assert all((getattr(a, name) != getattr(b, name)).nnz == 0 for name in ("D", "H", "W"))
    np.testing.assert_array_equal(slow.trace(QUESTION).scores, toy.trace(QUESTION).scores)


def test_forgetting_restoring_and_undoing_reach_the_graph(toy):
    before = toy.index()
    ids = toy.trace(QUESTION).ids
    toy.store.delete(2, "forgotten")
    assert "lisbon" not in toy.index().nodes
    assert toy.trace(QUESTION).ids != ids
    toy.store.restore(2)
    assert toy.index().nodes == before.nodes
    assert (toy.index().W != before.W).nnz == 0
    assert toy.trace(QUESTION).ids == ids
    toy.write("Faro\nFaro is a town.")
    toy.store.undo()
    assert (toy.index().nodes, toy.index().passages) == (before.nodes, before.passages)
    toy.reset()
    assert toy.index().nodes == ()
    toy.store.undo()
    assert toy.trace(QUESTION).ids == ids


def test_an_edited_passage_gets_its_triples_anew(toy):
    toy.store.update(2, text="Vila Franca de Xira\nVila Franca de Xira lies in Santarem.")
    assert "santarem" in toy.index().nodes
    assert "municipality" not in toy.index().nodes
    item = toy.store.get(2)
    assert ["vila franca de xira", "lies in", "santarem"] in item.meta["triples"]
    assert item.meta["openie"] == "rules (no language model)"


def test_an_extraction_that_was_spoilt_by_hand_is_made_anew(toy):
    meta = toy.store.get(2).meta
    toy.store.update(2, meta={**meta, "triples": "lisbon", "malformed": "many"})
    assert "lisbon" in toy.index().nodes
    assert isinstance(toy.store.get(2).meta["triples"], list)


def test_several_threads_may_ask_and_write(toy):
    from concurrent.futures import ThreadPoolExecutor

    def work(number: int) -> list[int]:
        toy.write(f"Town {number}\nTown.", meta={"triples": [[f"Town {number}", "beside", "Lisbon"]]})
        return toy.read(QUESTION, k=2).ids

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(12))) == [[1, 2]] * 12
    assert len(toy.index().passages) == len(toy) == 16


def test_a_transaction_that_fails_leaves_no_trace_in_the_graph(toy):
    nodes = toy.index().nodes

    def fail() -> None:
        with toy.store.transaction():
            toy.write("Faro\nFaro is a town.", meta={"triples": [["Faro", "is", "town"]]})
            assert "faro" in toy.index().nodes
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert toy.index().nodes == nodes
    toy.write("Beja\nBeja is a town.", meta={"triples": [["Beja", "is", "town"]]})
    assert toy.index().nodes == (*nodes, "beja", "town")


def test_the_file_alone_is_the_memory(tmp_path):
    path = tmp_path / "hippo.db"
    first = HippoRAG(path, encoder="tfidf", phrases=LetterTriples())
    first.write_many(list(TOY), metas(TOY))
    second = HippoRAG(path, encoder="tfidf", phrases=LetterTriples())
    np.testing.assert_array_equal(second.trace(QUESTION).scores, first.trace(QUESTION).scores)
    second.write("Faro\nFaro is near Lisbon.", meta={"triples": [["Faro", "near", "Lisbon"]]})
    assert first.index().passages == (1, 2, 3, 4, 5)  # what another wrote is seen
    first.close()
    second.close()


def test_items_of_other_kinds_are_left_alone(toy):
    toy.store.add("A note of somebody else about Lisbon.", kind="note")
    assert toy.index().passages == (1, 2, 3, 4)
    assert toy.trace(QUESTION).ids[0] == 1
