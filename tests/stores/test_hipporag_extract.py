"""Who extracts entities, triples and thoughts: rules, language models, published files; and who reads the answer."""

from __future__ import annotations

import pytest

from workbench.errors import BadInput
from workbench.llm import Ledger, LlmError
from workbench.llm.scripted import Scripted
from workbench.memory.stores._hipporag_ircot import ThoughtReader, ircot, next_sentence
from workbench.memory.stores._hipporag_openie import Gazetteer, OpenIE
from workbench.memory.stores._hipporag_phrases import LetterTriples
from workbench.memory.stores.hipporag import HippoRAG

QUESTION = "In which district was Alhandra born?"
TOY = {
    "Alhandra\nAlhandra was a Portuguese footballer who was born in Vila Franca de Xira.": [
        ["Alhandra", "born in", "Vila Franca de Xira"], ["Alhandra", "was", "Portuguese footballer"],
    ],
    "Vila Franca de Xira\nVila Franca de Xira is a municipality beside Lisbon.": [
        ["Vila Franca de Xira", "is", "municipality"], ["Vila Franca de Xira", "beside", "Lisbon"],
    ],
    "Harbour fire\nThe fire broke out beside the mayor.": [["fire", "broke out beside", "mayor"]],
}  # fmt: skip


def metas() -> list[dict]:
    return [{"triples": triples, "entities": [triples[0][0], triples[0][2]]} for triples in TOY.values()]


@pytest.fixture
def toy() -> HippoRAG:
    memory = HippoRAG(encoder="tfidf", phrases=LetterTriples())
    memory.write_many(list(TOY), metas())
    return memory


def test_rules_extract_and_are_named():
    memory = HippoRAG(encoder="tfidf", phrases=LetterTriples())
    memory.write("Ina Kolb\nIna Kolb works for Mirel Mills.")
    item = memory.store.get(1)
    assert ["ina kolb", "works for", "mirel mills"] in item.meta["triples"]
    assert item.meta["openie"] == "rules (no language model)"
    assert ["ina kolb", "mentions", "ina kolb"] not in item.meta["triples"]
    assert memory.openie.ledger.fallbacks == 2  # entities and triples
    assert memory.openie.ledger.usage.calls == 0


def test_names_that_the_rules_leave_out_are_joined_to_the_title():
    memory = HippoRAG(encoder="tfidf", phrases=LetterTriples())
    memory.write("Career of Kolb\nSometimes, as in Dunmoor, it was not easy.")
    assert memory.store.get(1).meta["triples"] == [["career of kolb", "mentions", "dunmoor"]]


def test_a_language_model_extracts_and_what_it_spoils_is_counted():
    said = [
        '{"named_entities": ["Ina Kolb", "Sele"]}',
        'Sure! {"triples": [["Ina Kolb", "sails", "Sele"], ["Ina Kolb", "sails"]]}',
        '{"named_entities": ["Ina Kolb"]}',
    ]
    llm = Scripted(said)
    memory = HippoRAG(encoder="tfidf", phrases=LetterTriples(), openie=llm)
    memory.write("Ina Kolb sails the Sele.")
    item = memory.store.get(1)
    assert item.meta["triples"] == [["ina kolb", "sails", "sele"]]
    assert item.meta["malformed"] == 1
    assert item.meta["openie"] == llm.label
    assert memory.trace("What does Ina sail?").by == llm.label
    assert "Named entities: Ina Kolb, Sele" in llm.requests[1].messages[-1].content


def test_a_language_model_that_fails_is_replaced_by_rules_and_counted():
    memory = HippoRAG(encoder="tfidf", phrases=LetterTriples(), openie=Scripted([LlmError("down")] * 9))
    memory.write("Ina Kolb\nIna Kolb works for Mirel Mills.")
    assert memory.store.get(1).meta["openie"].startswith("rules, because: down")
    assert memory.openie.ledger.fallbacks == 2
    assert memory.trace("Where does Ina Kolb work?").by == "rules (no language model)"


def test_published_triples_are_used_unchanged(toy):
    given = dict(zip(TOY, metas()))
    memory = HippoRAG(encoder="tfidf", phrases=LetterTriples(), openie=given)
    memory.write_many(list(TOY))
    assert memory.index().facts == toy.index().facts
    with pytest.raises(BadInput, match="no triples are given"):
        memory.write("Faro\nFaro is a town.")


def test_the_gazetteer_takes_the_longest_names_first():
    names = Gazetteer(["Vila Franca de Xira", "Franca", "Lisbon", "born", "1999", "Südhof"])
    assert names.find("Was Ina Kolb born in Vila Franca de Xira, not Lisbon?") == [
        "Vila Franca de Xira", "Lisbon", "Ina Kolb",
    ]  # fmt: skip
    assert names.find("who was born?") == ["born"]  # only when nothing else is a name
    assert names.find("Südhof's work of 1999?") == ["Südhof", "1999"]
    assert names.find("who is it?") == []
    names.remove(["Lisbon"])
    assert len(names) == 5
    assert names.find("in lisbon") == []


def test_one_ledger_counts_everything():
    ledger = Ledger()
    memory = HippoRAG(encoder="tfidf", phrases=LetterTriples(), openie=OpenIE(ledger=ledger))
    memory.write_many(list(TOY), metas())
    memory.trace(QUESTION)
    assert ledger.answers == 1


# ---------------------------------------------------------------------- several steps, and reading


def test_iterative_retrieval_follows_its_thoughts(toy):
    def retrieve(query: str) -> list[tuple[int, float]]:
        trace = toy.trace(query)
        return list(zip(trace.ids, trace.scores[trace.order].tolist()))

    chain = ircot(QUESTION, retrieve, lambda item: toy.store.get(item).text, k=2, steps=3)
    assert chain.queries[0] == QUESTION
    assert "Vila Franca de Xira" in chain.queries[1]
    assert set(chain.ids[:2]) == {1, 2}
    assert sorted(chain.ids) == [1, 2, 3]
    assert chain.calls == len(chain.queries) - 1 == 2
    assert chain.by == "rules (no language model)"


def test_iterative_retrieval_stops_at_the_answer():
    llm = Scripted(['{"thought": "Ada lives there."}', '{"thought": "So the answer is: the pier."}'])
    ledger, asked = Ledger(), []

    def retrieve(query: str) -> list[tuple[int, float]]:
        asked.append(query)
        return [(len(asked), 1.0), (9, 0.5)]

    chain = ircot("Where?", retrieve, str, llm=llm, ledger=ledger, steps=4)
    assert asked == ["Where?", "Ada lives there."]
    assert chain.ids == (1, 2, 9)
    assert (chain.calls, ledger.usage.calls, chain.by) == (2, 2, llm.label)
    with pytest.raises(BadInput, match="steps must be a whole number of at least 1"):
        ircot("Where?", retrieve, str, steps=0)
    with pytest.raises(BadInput, match="empty"):
        ircot(" ", retrieve, str)
    for bad in ({"question": None}, {"k": "x"}, {"steps": 1.5}):
        with pytest.raises(BadInput):
            ircot(**{"question": "Where?", "retrieve": retrieve, "text_of": str, **bad})


def test_the_rule_for_thoughts_takes_a_fitting_sentence_once():
    passages = list(TOY)
    first = next_sentence(QUESTION, passages[:2])
    assert first == "Alhandra was a Portuguese footballer who was born in Vila Franca de Xira."
    assert "municipality" in next_sentence(QUESTION, passages[:2], [first])
    assert next_sentence("zzz?", passages) == ""


def test_the_reader_answers_from_what_was_found(toy):
    context = toy.context(QUESTION)
    rule = ThoughtReader()
    assert rule.answer(QUESTION, context).text
    assert rule.ledger.fallbacks == 1
    model = ThoughtReader(Scripted(['{"thought": "It is beside Lisbon.", "answer": "Answer: Lisbon"}']))
    assert model.answer(QUESTION, context).text == "Lisbon"
