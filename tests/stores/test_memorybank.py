"""MemoryBank over a store: writing, days, users, recall, files, tables."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from memorybank_kit import DAY, NOON, bank, filled, pieces, talk

from workbench.memory import MEMORIES
from workbench.memory.durable import Store
from workbench.memory.stores.base import count_tokens
from workbench.memory.stores.memorybank import (
    PIECES,
    MemoryBank,
)


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
