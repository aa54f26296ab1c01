"""Scores: recall within a budget, answer metrics by hand, the judge held to known labels, what an answer costs."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import BadInput, MemoryError_
from workbench.llm.base import Tool, Usage
from workbench.memory.stores.base import Reading, Recalled, count_tokens
from workbench.memory.stores.flat import Flat
from workbench.tasks import answers, budgets, evidence
from workbench.tasks.judge import agreement, judge, says_unknown
from workbench_datasets.bridge_world import bridge_world
from workbench_datasets.dialogue_world import dialogue_world
from workbench_datasets.judged_answers import FORMS, judged_answers

IDS = st.lists(st.integers(0, 30), unique=True, max_size=15)
GOLD = st.sets(st.integers(0, 30), min_size=1, max_size=4)


# -- recall ------------------------------------------------------------------------------------------------------------


@given(IDS, GOLD, st.integers(1, 20))
def test_recall_counts_what_is_there(ids: list[int], gold: set[int], k: int) -> None:
    share = evidence.recall_at(ids, gold, k)
    assert share == sum(one in ids[:k] for one in gold) / len(gold)
    assert evidence.all_recall_at(ids, gold, k) == float(share == 1)
    assert share <= evidence.recall_at(ids, gold, k + 1) <= evidence.recall_at(ids, gold)
    assert (evidence.first_rank(ids, gold) <= k) == (share > 0)


def test_recall_without_gold_is_no_number() -> None:
    assert math.isnan(evidence.recall_at([1], [], 1))
    assert math.isnan(evidence.all_recall_at([1], []))
    assert evidence.first_rank([1], []) == math.inf
    with pytest.raises(BadInput, match="k must be"):
        evidence.recall_at([1], {1}, 0)


@dataclass(frozen=True)
class Ask:
    text: str
    evidence: tuple[Any, ...]
    kind: str = ""
    time: float | None = None


@pytest.fixture
def memory() -> Flat:
    return Flat(encoder="tfidf")


def test_score_says_what_came_back(memory: Flat) -> None:
    said = {"a": "Miri lives in Asbury.", "b": "Doran plays the flute.", "c": "It rained all day."}
    ids = {name: memory.write(text, key=name, time=0.0) for name, text in said.items()}
    asked = [Ask("Where does Miri live?", ("a",), "one"), Ask("Miri and the flute of Doran", ("a", "b"), "two"),
             Ask("Who sings?", (), "none")]  # fmt: skip
    frame = evidence.score(memory, asked, k=2, budget_notes=2, at=(1, 2, 5))
    assert list(frame.columns) == [*evidence.COLUMNS, "recall@1", "recall@2"]
    assert frame["recall"].tolist()[:2] == [1.0, 1.0]
    assert frame["all"].tolist()[:2] == [1.0, 1.0]
    assert frame["recall@1"].tolist()[:2] == [1.0, 0.5]
    assert frame["first"].tolist() == [1.0, 1.0, math.inf]
    assert math.isnan(frame["recall"][2])
    assert set(frame["ids"][1]) == {ids["a"], ids["b"]}
    assert frame["tokens"][1] == count_tokens("Miri lives in Asbury.") + count_tokens("Doran plays the flute.")
    again = evidence.score(memory, asked, k=2, budget_notes=2, id_of=ids, method="again")
    assert again["recall"].tolist()[:2] == [1.0, 1.0]
    assert set(again["method"]) == {"again"}


def test_a_forgotten_piece_is_lost_and_not_found(memory: Flat) -> None:
    first = memory.write("Miri lives in Asbury.", key="a")
    memory.write("Miri was in Asbury.", key="b")
    memory.store.delete(first)
    (row,) = evidence.score(memory, [Ask("Where does Miri live?", ("a",))]).to_dict("records")
    assert (row["lost"], row["found"], row["recall"], row["all"]) == (1, 0, 0.0, 0.0)


class Greedy(Flat):
    """Takes more than it is allowed, or says everything twice."""

    twice = False

    def read(self, query: str, **limits: Any) -> Reading:
        reading = super().read(query, k=10)
        return replace(reading, items=reading.items * 2) if self.twice else reading


def test_a_memory_that_takes_more_than_its_budget_is_refused() -> None:
    memory = Greedy(encoder="tfidf")
    for number in range(4):
        memory.write(f"Miri wrote letter {number}.")
    asked = [Ask("Miri letter", (1,))]
    with pytest.raises(MemoryError_, match=r"4 notes .* the budget is 2 notes"):
        evidence.score(memory, asked, budget_notes=2, id_of={1: 1})
    with pytest.raises(MemoryError_, match="the budget is 5 tokens"):
        evidence.score(memory, asked, budget_tokens=5, id_of={1: 1})
    memory.twice = True
    with pytest.raises(MemoryError_, match="twice"):
        evidence.score(memory, asked, id_of={1: 1})


def test_score_refuses_evidence_it_cannot_place(memory: Flat) -> None:
    memory.write("Miri lives in Asbury.", key="a")
    with pytest.raises(BadInput, match="is no key"):
        evidence.score(memory, [Ask("Where?", (3,))])
    with pytest.raises(BadInput, match="was it written"):
        evidence.score(memory, [Ask("Where?", (3,))], id_of={})
    with pytest.raises(BadInput, match="at least 1"):
        evidence.score(memory, [], budget_notes=0)


def test_bridge_world_in_a_flat_memory(memory: Flat) -> None:
    """One hop is found directly; two hops hardly ever, since the second note shares no name with the question."""
    world = bridge_world(11, people=20, distractors=60, one_hop=20)
    ids = evidence.fill(memory, world.notes)
    frame = evidence.score(memory, world.questions, k=10, budget_notes=10, id_of=ids)
    assert frame.loc[frame["kind"] == "one-hop", "all"].mean() > 0.7
    assert frame.loc[frame["kind"] == "two-hop", "all"].mean() < 0.3
    assert (frame["notes"] <= 10).all()
    assert not frame["lost"].any()


def test_dialogue_turns_go_in_by_key_and_time(memory: Flat) -> None:
    world = dialogue_world(1, sessions=2, turns=16)
    ids = evidence.fill(memory, world.turns)
    assert set(ids) == {turn.key for turn in world.turns}
    item = memory.store.get("D2:3")
    assert (item.time, item.text) == (world.turn("D2:3").time, world.turn("D2:3").line)
    frame = evidence.score(memory, world.questions, k=32)
    assert frame.loc[frame["gold"] > 0, "recall"].mean() > 0.5
    with pytest.raises(BadInput, match="a key or an id of its own"):
        evidence.fill(memory, [object()])
    with pytest.raises(BadInput, match="of its own"):
        evidence.fill(Flat(encoder="tfidf"), [world.turns[0], world.turns[0]])


def test_rankings_are_scored_alike() -> None:
    asked = [Ask("x", (1, 2)), Ask("y", (3,))]
    frame = evidence.score_rankings([[1, 5, 2], [4, 3, 1]], asked, method="m", at=(1, 2, 3))
    assert frame["recall@2"].tolist() == [0.5, 1.0]
    assert frame["all"].tolist() == [1.0, 1.0]
    cut = evidence.score_rankings([[1, 5, 2], [4, 3, 1]], asked, method="m", budget_notes=2)
    assert cut["all"].tolist() == [0.0, 1.0]
    with pytest.raises(BadInput, match="2 rankings for 1"):
        evidence.score_rankings([[1], [2]], asked[:1], method="m")
    with pytest.raises(BadInput, match="twice"):
        evidence.score_rankings([[1, 1], [2]], asked, method="m")


def test_methods_are_compared_question_by_question() -> None:
    import pandas as pd

    asked = [Ask(str(n), (n,)) for n in range(40)]
    good = evidence.score_rankings([[n] for n in range(40)], asked, method="good")
    bad = evidence.score_rankings([[n if n % 2 else -1] for n in range(40)], asked, method="bad")
    both = pd.concat([good, bad])
    found = evidence.compare(both, "good", "bad")
    assert found.effect == 0.5
    assert 0.3 < found.low < 0.5 < found.high < 0.7
    seeds = pd.concat([both.assign(seed=0), both.assign(seed=1)])
    assert evidence.compare(seeds, "good", "bad", pair_by=("seed", "question")).n == 80
    with pytest.raises(BadInput, match="several rows"):
        evidence.compare(seeds, "good", "bad")
    with pytest.raises(BadInput, match="'best' has no rows; methods: bad, good"):
        evidence.compare(both, "best", "bad")
    with pytest.raises(BadInput, match="not asked the same"):
        evidence.compare(pd.concat([good, bad[:30]]), "good", "bad")
    with pytest.raises(BadInput, match="lacks the columns speed"):
        evidence.compare(both, "good", "bad", metric="speed")


# -- answers -----------------------------------------------------------------------------------------------------------


def test_f1_variants_differ_where_they_should() -> None:
    gold, answer = "The red red fox", "a fox, a fox: red!"
    # squad: fox fox red | red red fox -> 2 shared of 3 and 3
    assert answers.f1(answer, gold, "squad") == pytest.approx(2 / 3)
    # count: a fox a fox: red | the red red fox -> fox, red shared; 5 and 4 words
    assert answers.f1(answer, gold, "count") == pytest.approx(4 / 9)
    # set: {a, fox, fox:, red} | {the, red, fox} -> 2 shared of 4 and 3
    assert answers.f1(answer, gold, "set") == pytest.approx(4 / 7)
    assert answers.f1("foxes", "fox", stem=lambda word: word.removesuffix("es")) == 1.0


def test_exact_match_and_normal_form() -> None:
    assert answers.normalise("  An apple, THE-pear a day! ") == "apple thepear day"
    assert answers.exact_match("the Asbury.", "asbury") == 1.0
    assert answers.exact_match("in Asbury", ["Asbury", "Dunby"]) == 0.0
    assert answers.exact_match("Dunby", ["Asbury", "Dunby"]) == 1.0


def test_bleu_by_hand() -> None:
    assert answers.bleu1("the cat sat", "the cat sat") == 1.0
    assert answers.bleu1("the the the the", "the cat") == pytest.approx(1 / 4)
    assert answers.bleu1("cat", "the cat sat") == pytest.approx(math.exp(1 - 3))
    assert answers.bleu1("the cat", ["the cat sat down", "a cat"]) == pytest.approx(1.0), "nearest reference has 2"
    assert answers.bleu1("dog", "cat") == 0.0
    assert answers.bleu1("", "cat") == 0.0


WORDS = st.lists(st.sampled_from(["red", "fox", "the", "ran", "Asbury", "7"]), max_size=6).map(" ".join)


@settings(deadline=None)
@given(WORDS, WORDS, st.sampled_from(answers.VARIANTS))
def test_metrics_keep_their_bounds(answer: str, gold: str, variant: str) -> None:
    score = answers.f1(answer, gold, variant)
    assert 0 <= score <= 1
    assert score == answers.f1(gold, answer, variant)
    assert answers.f1(gold, gold, variant) == 1.0
    assert 0 <= answers.bleu1(answer, gold) <= 1
    if answers.exact_match(answer, gold):
        assert answers.f1(answer, gold) == 1.0


def test_answer_frame() -> None:
    world = dialogue_world(3, questions=30)
    right = answers.score_answers([q.answer for q in world.questions], world.questions, method="gold")
    assert list(right.columns) == list(answers.COLUMNS)
    assert right[["em", "f1_squad", "f1_set", "bleu1", "judged"]].min().min() == 1.0
    wrong = answers.score_answers(["Nobody knows."] * 30, world.questions, method="none")
    assert (wrong["judged"] == (wrong["kind"] == "never-said")).all()
    with pytest.raises(BadInput, match="1 answers for 30"):
        answers.score_answers(["x"], world.questions, method="m")
    with pytest.raises(BadInput, match="no gold answer"):
        answers.score_answers(["x"], [Ask("Who?", ())], method="m")


@pytest.mark.parametrize("bad", [("x", "x", "rouge"), ("x", [], "squad"), (7, "x", "set")])
def test_metrics_refuse(bad: tuple) -> None:
    with pytest.raises(BadInput):
        answers.f1(*bad)


# -- the judge ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [101, 102, 103])
def test_the_judge_agrees_with_known_labels(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Seeds that were not looked at while the rules were written."""
    frame = agreement(seed, 900)
    whole = frame.iloc[-1]
    with capsys.disabled():
        sys.stdout.write(f"\njudge, seed {seed}: {whole['agree']:.3f} [{whole['low']:.3f}, {whole['high']:.3f}]")
    assert set(frame["form"]) == {*FORMS, "all"}
    assert 0.4 < whole["right"] < 0.6, "a judge that always says yes must not look good"
    assert whole["agree"] >= 0.9


# Written by hand, apart from the generator and before the judge saw them: (answer, gold, correct).
BY_HAND = (
    ("Asbury", "Asbury", True), ("She lives in the town of Asbury with two cats.", "Asbury", True),
    ("I'm fairly certain it's Asbury!", "asbury", True), ("ASBURY", "Asbury", True),
    ("Dunby is where he lives; Asbury was only a visit.", "Dunby", True),
    ("Asbury was what he said first, however he meant Dunby.", "Dunby", True),
    ("He has never been to Asbury.", "Asbury", False), ("He isn't in Asbury any more.", "Asbury", False),
    ("Definitely not Asbury.", "Asbury", False), ("Asbury? No, it must be Dunby.", "Asbury", False),
    ("Could be Asbury or Dunby, hard to say.", "Asbury", False), ("Asburyville", "Asbury", False),
    ("Everything but Asbury.", "Asbury", False), ("It is unclear where she lives.", "Asbury", False),
    ("The text doesn't say where she lives.", "Asbury", False), ("12", "twelve", True), ("a dozen", "12", False),
    ("About 1,200 people came.", "1200", True), ("1,250", "1200", False), ("three cats", "3 cats", True),
    ("On the 4th of May, 2024.", "4 May 2024", True), ("5/4/2024", "4 May 2024", True),
    ("May 4", "4 May 2024", True), ("4 May 2023", "4 May 2024", False), ("In May 2024.", "May 2024", True),
    ("Yes", "yes", True), ("Yes, but only once.", "yes", True), ("He did not.", "yes", False),
    ("No, never.", "no", True), ("Of course she does!", "yes", True), ("I don't think so.", "no", True),
    ("pears, plums, and apples", "apples, pears and plums", True), ("apples and pears", "apples, pears, plums", False),
    ("Not mentioned in the conversation.", "not mentioned", True), ("I have no idea.", "not mentioned", True),
    ("He said nothing about his work.", "not mentioned", True), ("It does not come up.", "not mentioned", True),
    ("She works as a cook.", "not mentioned", False), ("None.", "not mentioned", False),
    ("Zoe", "Zo\u00eb", True), ("The Beatles\u2019 second album", "The Beatles", True),
    ("Dr Brown", "Miriam Brown", True), ("Tom Brown", "Miriam Brown", False), ("a crimson coat", "a red coat", False),
)  # fmt: skip


def test_the_judge_on_answers_written_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = [(answer, gold, right) for answer, gold, right in BY_HAND if judge(answer, gold).correct != right]
    share = 1 - len(wrong) / len(BY_HAND)
    with capsys.disabled():
        sys.stdout.write(f"\njudge, {len(BY_HAND)} answers by hand: agreement {share:.3f}; disagrees on {wrong}")
    assert share >= 0.8


@pytest.mark.parametrize(
    ("answer", "gold", "why"),
    [
        ("It is not Asbury.", "Asbury", "denies it"), ("Asbury or Dunby", "Asbury", "leaves it open"),
        ("She left Asbury and went to Dunby.", "Asbury", "turns from it"), ("Dunby", "Asbury", "does not contain"),
        ("apples", "apples, pears", "lacks pears"), ("...", "Asbury", "empty"),
        ("Not mentioned, but I guess Dunby.", "not mentioned", "then guesses"),
    ],
)  # fmt: skip
def test_the_judge_says_why(answer: str, gold: str, why: str) -> None:
    judged = judge(answer, gold)
    assert not judged.correct
    assert why in judged.why


def test_any_form_of_the_gold_will_do() -> None:
    assert judge("Nibo did it.", ("Mirano", "Nibo")).correct
    assert judge("It was on 2024-05-04.", ("4 May 2024", "May 4, 2024")).correct
    assert says_unknown("There's no information on that.")
    assert not says_unknown("")


@pytest.mark.parametrize("bad", [(None, "x"), ("x", ""), ("x", []), ("x", [3])])
def test_the_judge_refuses(bad: tuple) -> None:
    with pytest.raises(BadInput, match="at least one gold"):
        judge(*bad)


@given(st.text(max_size=80), st.sampled_from(["Asbury", "not mentioned", "yes", "3 May 2024", "apples, pears"]))
def test_the_judge_survives_any_answer(answer: str, gold: str) -> None:
    assert judge(answer, gold).why


def test_labelled_answers_are_reproducible() -> None:
    assert judged_answers(5, 60) == judged_answers(5, 60) != judged_answers(6, 60)
    assert {one.form for one in judged_answers(5, 60)} == set(FORMS)
    with pytest.raises(ValueError, match="n=0"):
        judged_answers(5, 0)


# -- budgets -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(["one", "two words", "and three words"]), max_size=8), st.integers(1, 6),
       st.integers(1, 12))  # fmt: skip
def test_a_cut_is_the_longest_beginning_that_fits(texts: list[str], notes: int, tokens: int) -> None:
    budget = budgets.Budget(notes, tokens)
    kept = budget.cut(texts)
    assert kept == texts[: len(kept)]
    assert budget.allows(notes=len(kept), tokens=sum(map(count_tokens, kept)))
    if len(kept) < len(texts):
        more = texts[: len(kept) + 1]
        assert not budget.allows(notes=len(more), tokens=sum(map(count_tokens, more)))


def test_a_budget_speaks() -> None:
    assert str(budgets.Budget()) == "unlimited"
    assert str(budgets.Budget(10, 1500)) == "10 notes and 1,500 tokens"
    assert budgets.Budget(3).limits() == {"budget_notes": 3, "budget_tokens": None}
    for bad in (0, -1, 2.5, True, "9"):
        with pytest.raises(BadInput, match="budget's notes"):
            budgets.Budget(bad)  # type: ignore[arg-type]


def test_tools_and_summaries_are_paid_for() -> None:
    tool = Tool("search", "Finds notes.", {"type": "object", "properties": {"query": {"type": "string"}}})
    as_sent = '{"description": "Finds notes.", "name": "search", "parameters": {"properties": {"query": '
    as_sent += '{"type": "string"}}, "type": "object"}}'
    assert budgets.schema_tokens([tool]) == count_tokens(as_sent)
    reading = Reading("Where is Miri?", (Recalled(1, "Miri is here.", 1.0), Recalled(2, "So she is.", 0.5)), 99)
    plain = budgets.spent(reading, instructions="Answer briefly.")
    assert (plain.notes, plain.pasted, plain.instructions, plain.tokens) == (2, 8, 7, 15)
    dear = budgets.spent(reading, tools=[tool], requests=3, summaries=Usage(100, 20, 2), question="Miri")
    assert dear.tools == 3 * budgets.schema_tokens([tool])
    assert (dear.summaries, dear.calls, dear.instructions) == (120, 2, 1)
    assert (plain + dear).tokens == plain.tokens + dear.tokens
    assert not dear.within(budgets.Budget(tokens=100))
    assert dear.row()["tokens"] == dear.tokens
    with pytest.raises(BadInput, match="requests"):
        budgets.spent(reading, requests=0)
