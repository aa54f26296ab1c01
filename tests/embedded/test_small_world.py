"""The small world: seeds, splits, exposure counts, gold answers, held-out frames, bad input."""

import random
import re
from collections import Counter

import pytest

from workbench_datasets import _world_words as words
from workbench_datasets.small_world import KINDS, MEMORY_RATES, PERSON_RELATIONS, RELATIONS, world


@pytest.fixture(scope="module")
def w():
    return world()


def test_size_types_and_distinct_first_words(w):
    assert len(w.facts) >= 600
    assert len(PERSON_RELATIONS) >= 6
    for relation in RELATIONS:
        firsts = [obj.split()[0] for obj in w.objects(relation)]
        assert relation == "alias" or len(set(firsts)) == len(firsts), relation
    assert all(fact.object in w.objects(fact.relation) for fact in w.facts)


def test_exposures_are_zipf_like_and_recorded(w):
    counts = [fact.exposures for fact in w.person_facts]
    assert min(counts) >= 1
    assert 100 <= max(counts) <= 200
    by_rank = [sum(f.exposures for f in w.person_facts if f.subject == person) for person in w.people]
    assert by_rank[0] > 5 * by_rank[20] > 10 * by_rank[90]
    drawn = Counter((f.subject, f.relation) for f in (w.draw_fact(random.Random(i)) for i in range(4000)))
    top = max(w.facts, key=lambda f: f.exposures)
    expected = 4000 * top.exposures / sum(f.exposures for f in w.facts)
    assert drawn[(top.subject, top.relation)] == pytest.approx(expected, rel=0.4)


def test_equal_seeds_equal_worlds_and_documents(w):
    again, other = world(), world(1)
    assert again.facts == w.facts
    assert other.facts != w.facts
    for kind in KINDS:
        assert again.document(kind, random.Random(3)) == w.document(kind, random.Random(3))
        assert again.questions(kind, 3, 7) == w.questions(kind, 5, 7)[:3]


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_marked_where_they_stand(w, kind):
    for seed in range(30):
        document = w.document(kind, random.Random(seed))
        assert "".join(piece for piece, _ in document.pieces()) == document.text
        for answer in document.answers:
            assert document.text[answer.start : answer.end] == f" {answer.text}"
            assert not answer.options or answer.text in answer.options


@pytest.mark.parametrize("kind", KINDS)
def test_questions_end_before_their_answer(w, kind):
    for question in w.questions(kind, 10, 1):
        assert question.answer.startswith(" ")
        assert not question.prompt.endswith(" ")


def _names(text):
    return {f"{a} {b}" for a, b in re.findall(r"(\w+) (\w+)", text) if a in FIRSTS and b in LASTS}


FIRSTS, LASTS = set(words.FIRST_NAMES), set(words.LAST_NAMES)


def test_unseen_people_are_in_no_training_document_and_splits_are_disjoint(w):
    seen = set().union(*(_names(w.document(kind, random.Random(s)).text) for kind in KINDS for s in range(60)))
    assert all(w.name_split(name) != "unseen" for name in seen)
    unseen = {w.new_person(random.Random(s), "unseen") for s in range(300)}
    assert not unseen & seen
    assert not unseen & set(w.people)
    assert {w.name_split(p) for p in w.people} == {"known"}
    assert len(unseen) > 250


def test_heldout_frames_are_in_no_training_document(w):
    texts = " ".join(w.document(kind, random.Random(s)).text for kind in KINDS for s in range(80)).lower()
    for relation in RELATIONS.values():
        assert set(relation.frames("statement")) | set(relation.frames("statement", "heldout")) == set(
            relation.statements
        )
        for frame in relation.frames("question", "heldout"):
            head, _, tail = frame.lower().partition("{s}")
            assert (
                not re.search(re.escape(head) + r"(the )?\w+ \w+" + re.escape(tail), texts)
                or relation.subject != "person"
            )


def test_known_questions_have_the_worlds_answers(w):
    for question in w.closed_book():
        fact = question.meta["fact"]
        assert question.answer == f" {w.truth[(fact.subject, fact.relation)]}"
        assert fact.subject in question.prompt
        assert fact.object not in question.prompt.split()
    for question in w.questions("facts", 50, 3):
        assert question.answer.strip() == w.truth[(question.meta["subject"], question.meta["relation"])]


def test_open_book_answer_is_told_once_in_the_text(w):
    for question in w.questions("open-book", 60, 2, split="unseen", distance=64):
        subject = question.meta["subject"]
        told = [s for s in question.prompt.split(". ") if subject in s and "QUESTION" not in s]
        assert any(s.endswith(question.answer) for s in told)
        assert w.name_split(subject) == "unseen"


def test_conflicts_resolve_at_the_recorded_rates(w):
    won: dict[tuple[str, int], list[bool]] = {}
    for question in w.questions("conflict", 3000, 4, consistent=0.0, distance=0):
        meta = question.meta
        assert meta["memory"] != meta["context"]
        assert f" {meta['context']}" in question.prompt
        won.setdefault((meta["tercile"], meta["false"]), []).append(question.answer.strip() == meta["memory"])
    for key, rate in MEMORY_RATES.items():
        assert sum(won[key]) / len(won[key]) == pytest.approx(rate, abs=0.13), key


@pytest.mark.parametrize("rho", [0.0, 0.1, 0.3])
def test_share_of_contradicting_passages(rho):
    asked = world(rho=rho).questions("passage", 600, 5)
    told = [q for q in asked if q.meta["evidence"] != "none"]
    assert sum(q.meta["evidence"] == "counter" for q in told) / len(told) == pytest.approx(rho, abs=0.05)


def test_counter_passage_is_coherent_and_substitution_is_not(w):
    for evidence in ("counter", "substitution"):
        for question in w.questions("passage", 40, 6, evidence=evidence):
            fact, told = question.meta["fact"], question.meta["context"]
            about = told if evidence == "counter" else fact.object
            sides = [value for (obj, _), value in w.side.items() if obj == about]
            assert told != fact.object
            assert told in question.prompt
            assert all(side in question.prompt for side in sides)


def test_episode_boundaries_and_facts(w):
    document = w.document("episodes", random.Random(1), size=8, questions=4)
    starts = document.meta["boundaries"]
    assert starts[0] == 0
    assert len(starts) == len(document.meta["facts"]) == 8
    for start, fact in zip(starts, document.meta["facts"]):
        assert document.text[start:].startswith(f"In the {fact['place']} {fact['person']} found the {fact['item']}")
    long = w.document("episodes", random.Random(2), tokens=4000)
    assert 15_000 < len(long.text) < 26_000


def test_remaining_thing_and_its_colour(w):
    for question in w.questions("remaining", 60, 3, size=6):
        listed = dict(re.findall(r"\((\w+) (\w+)\)", question.prompt.split(" TOOK")[0]))
        taken = re.findall(r"\((\w+) (\w+)\)", question.prompt.split(" TOOK")[1])
        (left,) = set(listed) - {thing for thing, _ in taken}
        assert all(listed[thing] == colour for thing, colour in taken)
        assert question.answer.strip() in (left, listed[left])


def test_order_questions_are_right_and_counterbalanced(w):
    labels = Counter()
    for kind in ("order", "order-prose"):
        for question in w.questions(kind, 200, 9):
            text, *_ = question.prompt.split("\n")
            word, a, b = re.findall(r"Which came (\w+)\? A: (.*?) B: (.*?) ANSWER:$", question.prompt)[0]
            first = "A" if text.index(a) < text.index(b) else "B"
            wanted = first if word == "first" else "AB"[first == "A"]
            assert question.answer == f" {wanted}"
            labels[wanted] += 1
    assert abs(labels["A"] - labels["B"]) < 80


def test_two_hop_compositions_are_apart(w):
    def asked(split):
        return {(q.meta["subject"], q.meta["property"]) for q in w.questions("two-hop", 400, 1, split=split)}

    train, held = asked("train"), asked("heldout")
    assert len(held) > 60
    assert not train & held


def test_classification_mapping_is_consistent_in_a_document(w):
    document = w.document("classification", random.Random(1), by="word", shots=20)
    pairs = re.findall(r"(\w+)\. Type: (\w+)\.", document.text)
    assert len(dict(pairs)) == len(set(pairs))


@pytest.mark.parametrize(
    "call",
    [
        lambda: world(people=1000),
        lambda: world(events=99),
        lambda: world(rho=2.0),
        lambda: world().document("poem", random.Random(0)),
        lambda: world().questions("facts", 0),
        lambda: world().new_person(random.Random(0), "known"),
        lambda: world().objects("height"),
        lambda: RELATIONS["town"].frames("poem"),
        lambda: RELATIONS["town"].frames("question", "test"),
    ],
)
def test_bad_input_names_the_argument(call):
    with pytest.raises(ValueError, match="expected"):
        call()
