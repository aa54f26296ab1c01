"""MemoryBank over a store: writing, days, forgetting, reading, users, prompts, summaries, bad input."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import BadInput
from workbench.llm import Message, Reply, Scripted
from workbench.llm.base import ContextTooLong
from workbench.memory import MEMORIES
from workbench.memory.durable import Store, seconds
from workbench.memory.stores.base import count_tokens
from workbench.memory.stores.memorybank import (
    PIECES,
    Block,
    ByModel,
    Extractive,
    MemoryBank,
    compose,
    forgetting_day,
    stated_facts,
)

DAY = 86_400.0
NOON = seconds("2023-05-01T12:00:00")


@dataclass(frozen=True)
class Said:
    query: str
    response: str
    time: float
    user: str = "Mara"
    key: str | None = None


def talk(days: int = 4, user: str = "Mara") -> list[Said]:
    """A few exchanges a day, every fact on a day of its own."""
    facts = ["I like rock climbing.", "My dog is called Pilot.", "I went to Lisbon.", "I am reading a book on bees.",
             "I live in Oslo.", "My favourite food is soup."]  # fmt: skip
    return [
        Said(text, reply, NOON + day * DAY + 60 * n, user)
        for day in range(days)
        for n, (text, reply) in enumerate(
            [(facts[day % 6], "That is good to know."), (f"Day {day} was long.", "Rest.")]
        )
    ]


def bank(**options) -> MemoryBank:
    return MemoryBank(**{"user": "Mara", "encoder": "tfidf", **options})


def filled(days: int = 4, **options) -> MemoryBank:
    memory = bank(**options)
    memory.remember(talk(days))
    return memory


def pieces(memory: MemoryBank, user: str = "Mara") -> list:
    return [item for item in memory.store.items(kinds=PIECES) if f"user:{user}" in item.tags]


# ---------------------------------------------------------------------- writing and days
def test_registered_and_works_without_arguments():
    memory = MEMORIES.get("memorybank")()
    assert isinstance(memory, MemoryBank)
    assert memory.settings()["k"] == 6
    assert memory.settings()["rule"] == "hazard"
    assert len(memory) == 0
    assert memory.read("anything?").items == ()


def test_a_day_is_summarised_when_the_next_begins():
    memory = bank(rule="none")
    memory.exchange("I like rock climbing.", "Good.", time=NOON)
    assert [item.kind for item in memory.store] == ["exchange"]
    memory.exchange("Hello again.", "Hello.", time=NOON + DAY)
    kinds = [item.kind for item in memory.store]
    assert sorted(kinds) == ["daily insight", "daily summary", "exchange", "exchange", "global summary", "portrait"]
    summary = memory.store.get("Mara_2023-05-01_summary")
    assert "rock climbing" in summary.text
    assert summary.meta["by"] == "rules (no language model)"
    assert summary.links == (memory.store.get("Mara_2023-05-01_0").id,)
    assert "likes rock climbing" in memory.store.get("Mara_portrait").text
    memory.end_day(NOON + DAY)
    assert memory.store.get("Mara_2023-05-02_summary").strength == 1


def test_late_talk_renews_the_summary_of_its_day():
    memory = filled(3, rule="none")
    before = memory.store.get("Mara_2023-05-01_summary")
    memory.exchange("I adopted a tortoise named Dot.", "Lovely.", time=NOON + 3600)
    after = memory.store.get("Mara_2023-05-01_summary")
    assert after.id == before.id
    assert len(after.links) == len(before.links) + 1
    assert after.strength == before.strength


def test_no_summaries_when_switched_off():
    memory = filled(4, summaries=False, rule="none")
    assert {item.kind for item in memory.store} == {"exchange"}
    assert len(memory) == 8


def test_keys_are_user_date_number_and_numbers_are_not_given_twice():
    memory = filled(1)
    assert [item.key for item in pieces(memory)] == ["Mara_2023-05-01_0", "Mara_2023-05-01_1"]
    gone = memory.store.delete(pieces(memory)[1].id)
    memory.exchange("Something new.", time=NOON + 120)
    again = MemoryBank(memory.store, user="Mara")
    again.exchange("And more.", time=NOON + 180)
    keys = [item.key for item in pieces(memory)]
    assert keys == ["Mara_2023-05-01_0", "Mara_2023-05-01_2", "Mara_2023-05-01_3"]
    assert memory.restore(gone.id, time=NOON + 200).key == "Mara_2023-05-01_1"


def test_users_are_kept_apart_whatever_their_names():
    memory = bank(rule="threshold", threshold=0.5, time_scale=3.0)
    memory.remember(talk(2, "a_b") + talk(2, " Ivy "))
    assert memory.users() == ["Ivy", "a_b"]
    found = memory.read("Who likes rock climbing?", user="a_b")
    assert {memory.store.get(id).meta["user"] for id in found.ids} == {"a_b"}
    memory.sweep(NOON + 30 * DAY, user="a_b")
    assert memory.users() == ["Ivy"]
    assert len(pieces(memory, "Ivy")) == 5


def test_plain_writing_takes_the_user_from_the_metadata():
    memory = bank()
    id = memory.write("Tea at four.", time=NOON, key="note-1", meta={"user": "Ann", "source": "desk", "date": "never"})
    item = memory.store.get("note-1")
    assert item.id == id
    assert (item.meta["user"], item.meta["source"], item.meta["date"]) == ("Ann", "desk", "2023-05-01")


# ---------------------------------------------------------------------- recall
def test_a_recall_strengthens_each_piece_once_also_summaries():
    memory = filled(3, rule="none")
    later = NOON + 5 * DAY
    reading = memory.read("What about rock climbing?", time=later)
    assert len(reading.ids) == len(set(reading.ids)) == 6
    assert "summary" in {item.how for item in reading.items}
    for item in pieces(memory):
        found = item.id in reading.ids
        assert item.strength == (2 if found else 1)
        assert item.meta["recalls"] == int(found)
        assert item.meta["last_recall"] == (later if found else item.time)
        expected = 1.0 if found else math.exp(-(later - item.time) / DAY)
        assert memory.retention_of(item, later) == pytest.approx(expected, abs=1e-12)
    memory.read("What about rock climbing?", time=later + DAY)
    assert max(item.strength for item in pieces(memory)) == 3


@pytest.mark.parametrize("unit", ["piece", "sentence"])
def test_a_piece_is_found_once_and_best_first(unit):
    memory = filled(4, rule="none", unit=unit)
    reading = memory.read("What is my dog called?")
    assert "Pilot" in reading.items[0].text
    assert reading.items[0].text.startswith("[2023-05-02] ")
    scores = [item.score for item in reading.items]
    assert scores == sorted(scores, reverse=True)
    assert len(set(reading.ids)) == len(reading.ids) <= 6
    assert reading.tokens == sum(count_tokens(item.text) for item in reading.items)


def test_sentences_are_glued_with_their_neighbours_up_to_the_limit():
    text = "I was at the lake. The heron stood still. It rained a lot. We went home late that evening by train."
    shown = {}
    for limit in (0, 60, 200):
        memory = bank(unit="sentence", glue=limit, k=1, rule="none")
        memory.write(text, time=NOON)
        shown[limit] = memory.read("heron").items[0].text.removeprefix("[2023-05-01] ")
    assert shown[0] == "The heron stood still."
    assert shown[60] == "I was at the lake. The heron stood still. It rained a lot."
    assert shown[200] == text


def test_reinforcement_can_be_bound_to_use_or_switched_off():
    memory = filled(3, rule="none", reinforce="used")
    reading = memory.read("What is my dog called?")
    assert {item.strength for item in pieces(memory)} == {1}
    used = memory.used(reading, "Your dog is called Pilot.")
    assert used
    assert {item.id for item in pieces(memory) if item.strength == 2} == set(used)
    assert all("Pilot" in memory.store.get(id).text for id in used)
    assert memory.used(reading, "unknown") == []
    never = filled(3, rule="none", reinforce="never")
    never.read("dog")
    assert {item.strength for item in pieces(never)} == {1}


def test_budgets_cap_what_is_given_back_and_only_that_is_recalled():
    memory = filled(4, rule="none")
    two = memory.read("rock climbing", budget_notes=2)
    assert len(two.items) == 2
    assert "4 left out" in two.note
    assert sum(item.strength == 2 for item in pieces(memory)) == 2
    tight = memory.read("rock climbing", budget_tokens=30)
    assert 0 < tight.tokens <= 30
    assert memory.read("rock climbing", budget_tokens=1).items == ()


def test_a_question_without_content_words_says_so():
    memory = filled(2, rule="none")
    assert "no content words" in memory.read("What did you do?").note
    assert memory.read("dog").note == ""


# ---------------------------------------------------------------------- forgetting
def test_threshold_forgets_on_the_exact_day():
    limit = forgetting_day(1.0, 2.0, 0.3)
    memory = bank(rule="threshold", time_scale=2.0, threshold=0.3)
    id = memory.exchange("I like rock climbing.", time=NOON)
    assert memory.sweep(NOON + (limit - 1e-6) * DAY) == []
    assert [item.id for item in memory.sweep(NOON + (limit + 1e-6) * DAY)] == [id]


def test_a_recall_prolongs_a_life():
    memory = bank(rule="threshold", time_scale=2.0, threshold=0.3, summaries=False)
    asked = memory.exchange("I like rock climbing.", time=NOON)
    other = memory.exchange("Soup is fine.", time=NOON)
    memory.read("rock climbing?", time=NOON + DAY, budget_notes=1)
    assert [item.id for item in memory.sweep(NOON + 4 * DAY)] == [other]
    assert asked in memory.store


def test_forgotten_pieces_are_never_found_and_can_be_listed_and_restored():
    memory = filled(3, rule="threshold", threshold=0.9, time_scale=1.0)
    gone = memory.forgotten()
    assert gone
    assert not {item.id for item in gone} & set(memory.read("rock climbing", k=50).ids)
    climbing = next(item for item in gone if "climbing" in item.text and item.kind == "exchange")
    table = memory.contents(forgotten=True).set_index("id")
    assert table.loc[climbing.id, "forgotten_at"] == "2023-05-02"
    back = memory.restore(climbing.id)
    assert (back.text, back.strength) == (climbing.text, climbing.strength)
    assert climbing.id in memory.read("rock climbing").ids
    assert climbing.id not in {item.id for item in memory.forgotten()}
    assert memory.sweep() == []


def test_what_an_inspector_brings_back_in_the_store_is_not_swept_away_at_once():
    memory = filled(3, rule="threshold", threshold=0.9, time_scale=1.0)
    gone = next(item for item in memory.forgotten() if item.kind == "exchange")
    memory.store.restore(gone.id, why="brought back by hand")
    assert memory.sweep() == []
    assert memory.store.get(gone.id).meta["last_recall"] == max(item.time for item in pieces(memory))
    memory.sweep(NOON + 30 * DAY)
    assert gone.id not in memory.store
    memory.store.undo()
    memory.sweep(NOON + 30 * DAY)  # an undo is no recall
    assert gone.id not in memory.store


def test_undo_takes_a_sweep_back_with_everything_in_it():
    memory = filled(3, rule="none")
    fading = MemoryBank(memory.store, user="Mara", rule="threshold", threshold=0.9)
    before = memory.store.items()
    gone = fading.sweep(NOON + 20 * DAY)
    assert len(gone) == len(before) - len(memory.store) > 2
    fading.store.undo()
    assert fading.store.items() == before
    assert "rock climbing" in fading.read("rock climbing").items[0].text


@given(st.integers(1, 9), st.lists(st.sampled_from("wr"), min_size=1, max_size=14), st.booleans())
@settings(max_examples=15, deadline=None)
def test_capacity_is_never_exceeded(capacity, actions, summaries):
    memory = bank(rule="capacity", capacity=capacity, summaries=summaries)
    now = NOON
    for number, action in enumerate(actions):
        now += DAY * 0.4
        if action == "w":
            memory.exchange(f"Fact number {number} is here.", "Yes.", time=now)
        else:
            memory.read(f"number {number // 2}", time=now)
        assert len(pieces(memory)) <= capacity
    gone = memory.forgotten()
    if gone:
        memory.restore(gone[0].id, time=now)
        assert gone[0].id in memory.store
        assert len(pieces(memory)) == capacity


def test_a_full_store_lets_the_lowest_retention_go_oldest_first():
    memory = bank(rule="capacity", capacity=3, summaries=False)
    ids = [memory.exchange(f"Fact {name} is true.", time=NOON) for name in ("alpha", "beta", "gamma")]
    memory.read("alpha", time=NOON + DAY, budget_notes=1)
    memory.exchange("Fact delta is true.", time=NOON + 2 * DAY)
    assert [item.id for item in memory.forgotten()] == [ids[1]]
    memory.exchange("Fact epsilon is true.", time=NOON + 2 * DAY)
    assert [item.id for item in memory.forgotten()] == [ids[1], ids[2]]


def test_hazard_in_the_store_follows_the_curve_whatever_the_schedule():
    """400 pieces, swept once or ten times: the same ones are left, as many as R says."""
    left = []
    for sweeps in ([6.0], np.linspace(0.6, 6.0, 10)):
        memory = bank(rule="hazard", time_scale=6.0, summaries=False, seed=4)
        memory.remember([Said(f"Fact {n}.", "", NOON) for n in range(400)])
        for day in sweeps:
            memory.sweep(NOON + float(day) * DAY)
        left.append({item.key for item in pieces(memory)})
    assert left[0] == left[1]
    assert abs(len(left[0]) / 400 - math.exp(-1)) < 0.1
    other = bank(rule="hazard", time_scale=6.0, summaries=False, seed=5)
    other.remember([Said(f"Fact {n}.", "", NOON) for n in range(400)])
    other.sweep(NOON + 6 * DAY)
    assert {item.key for item in pieces(other)} != left[0]


def test_the_published_rule_forgets_what_is_recalled_most():
    survived = {}
    for rule in ("sweep", "as_published_bug"):
        memory = bank(rule=rule, time_scale=5.0, summaries=False, seed=1, increment=4.0)
        memory.remember([Said(f"Fact {n}.", "", NOON) for n in range(200)])
        for item in pieces(memory)[:100]:
            memory.store.update(item.id, strength=5.0)
        memory.sweep(NOON + 2 * DAY)
        strong = sum(item.strength == 5 for item in pieces(memory))
        survived[rule] = (strong, len(pieces(memory)) - strong)
    assert survived["sweep"][0] > survived["sweep"][1] + 10
    assert survived["as_published_bug"][0] < survived["as_published_bug"][1] - 10


# ---------------------------------------------------------------------- time
def test_time_runs_forwards_only():
    memory = filled(3, rule="hazard", time_scale=100.0)
    before = memory.store.items()
    for act in (
        lambda: memory.read("dog", time=NOON + DAY),
        lambda: memory.sweep(NOON + DAY),
        lambda: memory.retention_of(before[-1], NOON),
        lambda: memory.contents(today=NOON),
        lambda: memory.turn("dog?", Scripted(["yes"]), time=NOON),
    ):
        with pytest.raises(BadInput, match="before the latest memory"):
            act()
    assert memory.store.items() == before
    memory.read("dog", time=NOON + 9 * DAY)
    with pytest.raises(BadInput, match="before the latest memory"):  # a new day, yet before the last recall
        memory.exchange("Hello.", time=NOON + 5 * DAY)
    assert [item.text for item in memory.store.items() if item.kind == "exchange"][-1].startswith("Mara: Day 2")


def test_without_dates_the_clock_is_the_stores():
    now = [NOON]
    memory = MemoryBank(Store(encoder="tfidf", clock=lambda: now[0]), summaries=False, rule="threshold")
    id = memory.write("I like tea.")
    now[0] += DAY / 2
    memory.read("tea")
    assert memory.store.get(id).meta["last_recall"] == NOON + DAY / 2
    now[0] -= DAY  # a clock that goes backwards never makes a time negative
    memory.read("tea")
    assert memory.store.get(id).meta["last_recall"] == NOON + DAY / 2
    now[0] += 30 * DAY
    memory.write("I like cake.")
    assert [item.id for item in memory.forgotten()] == [id]


def test_a_dated_memory_is_asked_at_its_latest_moment():
    memory = filled(2, rule="none")
    memory.read("dog")
    latest = max(item.time for item in pieces(memory))
    assert max(item.meta["last_recall"] for item in pieces(memory)) == latest


# ---------------------------------------------------------------------- files and repetition
def test_closing_and_opening_changes_nothing(tmp_path):
    path = tmp_path / "bank.db"
    with Store(path, encoder="tfidf") as store:
        memory = MemoryBank(store, user="Mara", rule="hazard", time_scale=3.0, unit="sentence")
        memory.remember(talk(4))
        first = memory.read("What is my dog called?")
        table, tombstones = memory.contents(forgotten=True), memory.forgotten()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with Store(path, encoder="tfidf") as store:
        again = MemoryBank(store, user="Mara", rule="hazard", time_scale=3.0, unit="sentence")
        assert again.contents(forgotten=True).equals(table)
        assert again.forgotten() == tombstones
        assert again.lives().equals(memory_lives(again))
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digest  # opening and looking sweep nothing
        second = again.read("What is my dog called?")
    assert [(i.id, i.text, i.score) for i in second.items] == [(i.id, i.text, i.score) for i in first.items]


def memory_lives(memory: MemoryBank):
    return MemoryBank(memory.store, user="Mara").lives()


def test_runs_are_identical_for_one_seed():
    def run():
        memory = MemoryBank(Store(encoder="tfidf", clock=lambda: NOON), user="Mara", rule="hazard", seed=3)
        memory.remember(talk(6))
        memory.read("dog")
        memory.sweep(NOON + 9 * DAY)
        return memory

    one, two = run(), run()
    assert one.store.items() == two.store.items()
    assert list(one.events()) == list(two.events())
    assert one.store.replay().items() == one.store.items()


def test_a_rolled_back_transaction_leaves_no_trace_in_the_memory():
    memory = filled(2, rule="none")

    def broken():
        with memory.store.transaction("broken"):
            memory.exchange("I keep a parrot.", time=NOON + 2 * DAY)
            assert "parrot" in memory.read("parrot").items[0].text
            raise KeyError

    before = memory.store.items()
    with pytest.raises(KeyError):
        broken()
    assert memory.store.items() == before
    assert not any("parrot" in item.text for item in memory.read("parrot").items)
    memory.exchange("I keep a canary.", time=NOON + 2 * DAY)
    assert "canary" in memory.read("canary").items[0].text


def test_edits_made_elsewhere_are_seen():
    memory = filled(2, rule="none", unit="sentence", reinforce="never")  # a recall would be what undo takes back
    memory.read("dog")
    item = next(i for i in pieces(memory) if "Pilot" in i.text and i.kind == "exchange")
    memory.store.update(item.id, text="Mara: My dog is called Comet.")
    assert "Comet" in memory.read("dog called").items[0].text
    memory.store.delete(item.id)
    assert item.id not in memory.read("dog called").ids
    memory.store.undo()
    assert item.id in memory.read("dog called").ids
    memory.reset()
    assert memory.read("dog called").items == ()


# ---------------------------------------------------------------------- tables
def test_contents_and_lives_tell_the_same_story():
    memory = filled(5, rule="threshold", time_scale=2.0)
    memory.read("dog", time=NOON + 5 * DAY)
    table = memory.contents(today=NOON + 6 * DAY, query="dog", forgotten=True)
    assert list(table) == ["id", "key", "kind", "user", "date", "text", "S", "last_recall", "t", "R", "recalls",
                           "forgotten_at", "similarity"]  # fmt: skip
    living = table[table["kind"].isin(PIECES) & table["forgotten_at"].isna()]
    np.testing.assert_allclose(living["R"], np.exp(-living["t"] / (2.0 * living["S"])), atol=1e-12)
    page = memory.contents(start=2, count=3)
    assert page["id"].tolist() == [item.id for item in memory.store.items()][2:5]
    lives = memory.lives().set_index("id")
    assert set(lives.index[lives["alive"]]) == set(living["id"])
    dead = table[table["forgotten_at"].notna()]
    assert set(lives.index[~lives["alive"]]) == set(dead["id"])
    assert lives["recalls"].map(len).sum() == living["recalls"].sum() + dead["recalls"].sum()
    assert (lives["ended"] >= lives["born"]).all()


# ---------------------------------------------------------------------- prompts
def blocks() -> list[Block]:
    return [
        Block("role", "You are kind."), Block("portrait", "About Mara: likes tea."),
        Block("global summary", "So far: ok."), Block("memory", "[2] second memory text", (2,), 0.9, 2.0),
        Block("memory", "[1] first memory text", (1,), 0.2, 1.0), Block("recent", "Mara: hi", (3,)),
        Block("recent", "AI: hello", (4,)), Block("user", "Mara: what now?"),
    ]  # fmt: skip


@given(st.integers(1, 60))
def test_a_prompt_never_exceeds_its_budget_and_drops_in_order(budget):
    least = count_tokens("You are kind.\nMara: what now?")
    if budget < least:
        with pytest.raises(BadInput, match="alone need"):
            compose(blocks(), budget)
        return
    prompt = compose(blocks(), budget)
    assert prompt.tokens == count_tokens(prompt.text()) <= budget
    order = [("recent", 3), ("recent", 4), ("memory", 1), ("memory", 2), ("global summary", None), ("portrait", None)]
    gone = [(block.kind, block.items[0] if block.items else None) for block in prompt.dropped]
    assert gone == order[: len(gone)]
    if gone:  # nothing more was dropped than had to be
        assert prompt.tokens + prompt.dropped[-1].tokens > budget


def test_a_prompt_has_its_parts_in_order_and_memories_by_time():
    prompt = compose(blocks())
    assert [block.kind for block in prompt.blocks] == ["role", "portrait", "global summary", "memory", "memory",
                                                       "recent", "recent", "user"]  # fmt: skip
    assert [block.items for block in prompt.blocks if block.kind == "memory"] == [(1,), (2,)]
    assert prompt.report() == f"{prompt.tokens} tokens, no budget, nothing dropped"
    assert [message.role for message in prompt.messages()] == ["system", "user"]
    assert prompt.messages()[1] == Message("user", "Mara: what now?")
    short = compose(blocks(), prompt.tokens - 1)
    assert short.report().endswith("dropped: 1 recent")
    assert short.frame()["kept"].tolist().count(False) == 1
    with pytest.raises(BadInput, match="kind"):
        compose([Block("poem", "x")])
    with pytest.raises(BadInput, match="budget"):
        compose(blocks(), 0)


def test_a_tokenizer_that_does_not_add_up_is_still_obeyed():
    def stingy(text: str) -> int:
        return 2 * count_tokens(text) + 5 * text.count("\n")

    for budget in range(stingy("You are kind.\nMara: what now?"), 120):
        prompt = compose(blocks(), budget, count=stingy)
        assert stingy(prompt.text()) <= budget


def test_the_memory_composes_portrait_summary_memories_and_recent_talk():
    memory = filled(4, rule="none", recent=3)
    prompt = memory.prompt("What is my dog called?")
    kinds = [block.kind for block in prompt.blocks]
    assert kinds.count("memory") == 6
    assert kinds.count("recent") == 3
    times = [block.time for block in prompt.blocks if block.kind == "memory"]
    assert times == sorted(times)
    assert "likes rock climbing" in prompt.text()
    context = memory.context("What is my dog called?", budget_tokens=80)
    assert count_tokens(context) <= 80
    assert "companion" not in context


def test_a_turn_retrieves_answers_reinforces_and_stores():
    memory = filled(2, rule="none", reinforce="used")
    model = Scripted(["Your dog is called Pilot."])
    turn = memory.turn("What is my dog called?", model, time=NOON + 4 * DAY)
    asked = model.requests[0].messages
    assert "Pilot" in asked[0].content
    assert asked[-1].content == "Mara: What is my dog called?"
    stored = memory.store.get(turn.item)
    assert stored.meta["response"] == "Your dog is called Pilot."
    assert turn.item not in turn.reading.ids
    assert [memory.store.get(id).strength for id in turn.reading.ids].count(2) >= 1
    assert memory.store.find("Mara_2023-05-02_summary") is not None  # the day before ended first


# ---------------------------------------------------------------------- summaries
def test_stated_facts_by_form():
    text = "My name is Mara. I really love rock climbing, I live in Oslo. Do I like tea? My sister is called Ann."
    assert stated_facts(text, "Mara") == [
        ("name:", "Mara"), ("likes", "rock climbing"), ("lives in", "Oslo"), ("sister:", "Ann"),
    ]  # fmt: skip
    assert stated_facts("It was fine. I like it.", "Mara") == []


def test_a_portrait_counts_what_is_said_more_than_once():
    rules = Extractive()
    days = [rules.insight("Mara", f"2023-05-0{day}", [("I like tea. I like cake.", "")]) for day in (1, 2)]
    days.append(rules.insight("Mara", "2023-05-03", [("I like tea.", "")]))
    assert rules.portrait("Mara", days) == "likes tea (3x, last 2023-05-03); likes cake (2x, last 2023-05-02)"
    assert rules.portrait("Mara", []) == ""


def test_a_chat_model_writes_the_four_texts():
    model = Scripted(lambda request: f"text about {request.messages[0].content.split()[0].lower()}")
    memory = filled(2, llm=model, rule="none")
    assert memory.store.get("Mara_portrait").text == "text about condense"
    assert memory.store.get("Mara_2023-05-01_summary").text == "Summary of the day: text about summarise"
    assert memory.store.get("Mara_portrait").meta["by"] == model.label
    assert {request.temperature for request in model.requests} == {0.7}
    assert {request.max_tokens for request in model.requests} == {400}


class Small:
    """A chat model that can read so many characters only."""

    name, label = "small", "small"

    def __init__(self, most: int):
        self.most, self.lengths = most, []

    def chat(self, messages, **options) -> Reply:
        self.lengths.append(len(messages[-1].content))
        if self.lengths[-1] > self.most:
            raise ContextTooLong(f"{self.lengths[-1]} characters are more than {self.most}")
        return Reply("short summary")

    def stream(self, messages, **options):
        yield self.chat(messages, **options).text


def test_a_prompt_that_is_too_long_is_cut_as_the_authors_do_and_failures_are_counted():
    long = [("I like tea. " * 400, "Good.")]
    cut = ByModel(Small(1500))
    assert cut.day("Mara", "2023-05-01", long) == "short summary"
    assert cut.llm.lengths[1:] == [1800, 1600, 1400]
    assert cut.ledger.fallbacks == 0
    hopeless = ByModel(Small(100))
    assert "I like tea." in hopeless.day("Mara", "2023-05-01", long)
    assert len(hopeless.llm.lengths) == 5
    assert hopeless.ledger.fallbacks == 1


# ---------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    "options",
    [
        {"k": 0}, {"k": 2.5}, {"rule": "forget"}, {"rule": "capacity"}, {"capacity": 0}, {"time_scale": 0},
        {"time_scale": math.nan}, {"threshold": 0}, {"increment": -1}, {"reinforce": "always"}, {"unit": "word"},
        {"glue": -1}, {"recent": -1}, {"user": "  "}, {"llm": 3},
    ],
)  # fmt: skip
def test_settings_outside_their_range_are_refused(options):
    with pytest.raises(BadInput):
        bank(**options)


def test_bad_calls_leave_the_store_unchanged():
    memory = filled(2, rule="none")
    before = memory.store.items()
    calls = (
        lambda: memory.write(""), lambda: memory.write("x", time="May 2nd"), lambda: memory.write("x", time=math.nan),
        lambda: memory.write("x", time=NOON + 9 * DAY, key="Mara_2023-05-01_0"), lambda: memory.exchange("", "Yes."),
        lambda: memory.exchange("x", user=" "), lambda: memory.write("x", meta={"user": 3}), lambda: memory.read(""),
        lambda: memory.read("x", k=0), lambda: memory.read("x", budget_tokens=0), lambda: memory.read("x", user=""),
        lambda: memory.restore(999), lambda: memory.prompt("x", budget_tokens=2, time=NOON + 9 * DAY),
        lambda: memory.context("x", budget_tokens=0), lambda: MemoryBank(memory.store, encoder="tfidf"),
    )  # fmt: skip
    for call in calls[:-3]:
        with pytest.raises(BadInput):
            call()
        assert memory.store.items() == before
    for call in calls[-3:]:
        with pytest.raises(BadInput):
            call()
