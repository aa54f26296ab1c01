"""MemoryBank: prompts within a budget, whole turns, summaries, bad input at every door."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from memorybank_kit import DAY, NOON, bank, filled

from workbench.errors import BadInput
from workbench.llm import Message, Reply, Scripted
from workbench.llm.base import ContextTooLong
from workbench.memory.stores.base import count_tokens
from workbench.memory.stores.memorybank import (
    Block,
    ByModel,
    Extractive,
    MemoryBank,
    compose,
    stated_facts,
)


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
        {"glue": -1}, {"recent": -1}, {"user": "  "}, {"llm": 3}, {"threshold": "low"}, {"seed": "x"}, {"seed": None},
        {"role": None},
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
        lambda: memory.write("x", meta="user"), lambda: memory.write("x", meta=3),
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
