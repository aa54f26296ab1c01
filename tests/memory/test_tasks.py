"""Questioning a memory: the released scoring rule against a slow copy of it, batches against one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import tokens

from workbench.errors import BadInput, MemoryError_
from workbench.memory.cache.full import FullCache
from workbench.memory.cache.random import RandomCache
from workbench.memory.cache.sirllm import SirLLM
from workbench.memory.cache.streaming import StreamingCache
from workbench.models import load
from workbench.tasks.choice import ask
from workbench.tasks.dialogue import Speaker
from workbench.tasks.grocery import grocery_recall
from workbench.tasks.replies import reply_choice
from workbench.tasks.rps import rock_paper_scissors
from workbench_datasets.dialogues import PLAYERS, dialogues

MAKERS = {
    "sirllm": lambda: SirLLM(budget=48, eta=0.9),
    "streaming": lambda: StreamingCache(budget=48),
    "random": lambda: RandomCache(budget=48),
    "full": FullCache,
}


@pytest.fixture(scope="module")
def embedded():
    torch.set_num_threads(1)
    return load("embedded")


def greedy(memory, question, length) -> list[int]:
    """The greedy continuation of ``question``, one token at a time; the memory is put back."""
    moment, out = memory.snapshot(), []
    with memory.round(len(question) + length):
        logits = memory.write(torch.tensor([question]))
        for _ in range(length):
            out.append(int(logits[0, -1].argmax()))
            logits = memory.write(torch.tensor([out[-1:]]))
    memory.restore(moment)
    return out


def slow_pick(memory, question, options) -> tuple[int, bool]:
    """The card's rule word for word: each option is read with the question from the same memory."""
    room, moment, logp, exact = len(question) + max(map(len, options)), memory.snapshot(), [], []
    decoded = greedy(memory, question, max(map(len, options)))
    for option in options:
        with memory.round(room):
            logits = memory.write(torch.tensor([[*question, *option]]))[0]
        memory.restore(moment)
        logp.append(float(torch.log_softmax(logits[len(question) - 1], -1)[option[0]]))
        exact.append(decoded[: len(option)] == list(option))
    return (exact.index(True), True) if any(exact) else (int(np.argmax(logp)), False)


@pytest.mark.parametrize("budget", [26, 100])
def test_picks_follow_the_released_rule(llama, budget):
    memory, reference = (SirLLM(budget=budget, n_sink=2, eta=0.9).bind(llama) for _ in range(2))
    rng, exact = np.random.default_rng(0), 0
    for step in range(12):
        question = tokens(1, int(rng.integers(3, 12)), seed=step)[0].tolist()
        options = [tokens(1, int(rng.integers(1, 5)), seed=100 * step + i)[0].tolist() for i in range(4)]
        if step % 3:  # a true greedy decoding, and one that leaves it at its last token
            decoded = greedy(reference, question, 3)
            options[step % 4] = decoded
            options[(step + 1) % 4] = [*decoded[:2], (decoded[2] + 1) % 97]
        expected = slow_pick(reference, question, options)
        (picked,) = ask(memory, [question], [options])
        assert (picked.option, picked.exact) == expected
        exact += picked.exact
        with reference.round(len(question) + max(map(len, options))):
            reference.write(torch.tensor([question]))
            reference.write(torch.tensor([options[picked.option]]))
        assert memory.contents()["position"].tolist() == reference.contents()["position"].tolist()
        np.testing.assert_allclose(memory.contents()["score"], reference.contents()["score"], rtol=1e-4)
    assert 0 < exact < 12


def test_surprise_of_the_question_is_the_models_own(llama):
    memory, question = FullCache().bind(llama), tokens(1, 9)[0].tolist()
    (picked,) = ask(memory, [question], [[[5], [6]]])
    with torch.no_grad():
        log_p = torch.log_softmax(llama(torch.tensor([question])).logits[0], -1)
    direct = [-float(log_p[i, question[i + 1]]) for i in range(8)]
    assert np.isnan(picked.surprise[0])
    np.testing.assert_allclose(picked.surprise[1:], direct, rtol=1e-4)
    assert picked.logp == pytest.approx((float(log_p[-1, 5]), float(log_p[-1, 6])), rel=1e-4)


def test_bad_questions_change_nothing(llama):
    memory = SirLLM(budget=20).bind(llama)
    memory.write(tokens(1, 10))
    before = memory.contents()
    for questions, options in ([[[1, 2]], []], [[[]], [[]]], [[[1, 2]], [[]]], [[[1, 2]], [[[3], []]]]):
        with pytest.raises(BadInput):
            ask(memory, questions, options)
    with pytest.raises(MemoryError_, match="a round of 17 tokens does not fit"):
        ask(memory, [list(range(3, 17))], [[[1], [1, 2, 3]]])  # the longest option counts, not the picked one
    assert memory.contents().equals(before)


@pytest.mark.parametrize("policy", list(MAKERS))
def test_a_batch_of_dialogues_answers_like_one_by_one(embedded, policy):
    orders = dialogues("grocery", 5, seed=3, distractors=3)
    together = grocery_recall(embedded, MAKERS[policy](), orders, ask_after=(1,))
    alone = grocery_recall(embedded, MAKERS[policy](), orders, ask_after=(1,), batch=1)
    keys = ["group", "kind", "asked_after"]
    together, alone = (f.sort_values(keys, kind="stable").reset_index(drop=True) for f in (together, alone))
    np.testing.assert_allclose(together.pop("item_surprise"), alone.pop("item_surprise"), rtol=1e-4)
    assert together.equals(alone)


def test_trials_leave_no_trace(embedded):
    orders = dialogues("grocery", 4, seed=8, distractors=4)
    memory, plain = SirLLM(budget=64), SirLLM(budget=64)
    with_trials = grocery_recall(embedded, memory, orders, ask_after=(0, 2))
    without = grocery_recall(embedded, plain, orders)
    assert (with_trials["kind"] == "probe").sum() == 8
    assert with_trials[with_trials["kind"] != "probe"].reset_index(drop=True).equals(without)
    assert memory.contents().equals(plain.contents())
    assert [len(row.log) for row in memory.rows] == [len(row.log) for row in plain.rows]


def test_survival_is_what_the_memory_really_holds(embedded):
    orders = dialogues("grocery", 6, seed=1, distractors=6)
    whole = grocery_recall(embedded, FullCache(), orders)
    window = grocery_recall(embedded, StreamingCache(budget=48), orders)
    assert whole[whole["kind"] == "recall"]["survived"].all()
    assert not window[window["kind"] == "recall"]["survived"].any()  # farther away than the window is long
    assert (window[window["kind"] == "recall"]["distance"] > 48).all()
    speaker = Speaker(embedded.tokenizer)
    question = speaker.question(orders[0].rounds[0], first=True)
    item = orders[0].meta["item"]
    assert embedded.tokenizer.decode([question[at] for at in speaker.place(question, item)]).strip() == item
    with pytest.raises(BadInput, match="cannot be tracked"):
        speaker.place(question, "zeppelins")


def test_rock_paper_scissors_counts_what_the_cache_holds(embedded):
    players = [dialogues("rock-paper-scissors", 1, seed=2, player=name, rounds=12)[0] for name in PLAYERS]
    whole = rock_paper_scissors(embedded, FullCache(), players)
    assert len(whole) == 36
    assert (whole["moves_held"] == whole["round"] + 1).all()  # every move of the user is there
    small = rock_paper_scissors(embedded, StreamingCache(budget=48), players)
    assert small["cached"].max() <= 48
    assert (small["moves_held"] < whole["moves_held"]).any()
    assert set(whole["outcome"]) <= {"win", "tie", "lose"}
    assert whole.groupby("player").size().to_dict() == dict.fromkeys(PLAYERS, 12)


def test_reply_choice_scores_every_round(embedded):
    chats = dialogues("chat", 5, seed=4)
    scores = reply_choice(embedded, StreamingCache(budget=128), chats, batch=2)
    assert len(scores) == sum(len(chat.rounds) for chat in chats)
    assert (scores["chance"] == 0.25).all()
    assert scores.groupby("dialogue").size().tolist() == [len(chat.rounds) for chat in chats]


def test_tasks_refuse_dialogues_of_another_kind_and_batches_of_nothing(embedded):
    orders, chats = dialogues("grocery", 2, seed=1, distractors=2), dialogues("chat", 2, seed=1)
    memory = StreamingCache(budget=64)
    for run, given in ((grocery_recall, chats), (reply_choice, orders), (rock_paper_scissors, orders)):
        with pytest.raises(BadInput, match="this task asks about kind"):
            run(embedded, memory, given)
    for batch in (0, -1, "a"):
        for run, given in ((grocery_recall, orders), (reply_choice, chats)):
            with pytest.raises(BadInput, match=f"batch must be a whole number .*, got {batch!r}"):
                run(embedded, memory, given, batch=batch)
    for after in (3, [-1], [3], ["a"]):
        with pytest.raises(BadInput, match="from 0 to the 2 there are"):
            grocery_recall(embedded, memory, orders, ask_after=after)
