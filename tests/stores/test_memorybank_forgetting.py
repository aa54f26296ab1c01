"""MemoryBank over a store: what is forgotten, when, and how it comes back."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memorybank_kit import DAY, NOON, Said, bank, filled, pieces

from workbench.errors import BadInput
from workbench.llm import Scripted
from workbench.memory.durable import Store
from workbench.memory.stores.memorybank import (
    MemoryBank,
    forgetting_day,
)


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
