"""The card's "Done means", one by one, on tiny random models (the study's claims are tested on the embedded one)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import VOCABULARY, tokens

from workbench.errors import BadInput, MemoryError_
from workbench.memory.cache._rows import ITEM, Row
from workbench.memory.cache.random import RandomCache
from workbench.memory.cache.sirllm import SirLLM
from workbench.memory.cache.streaming import StreamingCache


def row_of(raw, rounds=None, now=0) -> Row:
    """A row that holds these raw scores, written in these rounds."""
    items = np.zeros(len(raw), ITEM)
    items["raw"], items["position"] = raw, np.arange(len(raw))
    items["round"] = now if rounds is None else rounds
    return Row(0, items, seen=len(raw), rounds=now)


# ---------------------------------------------------------------------- 1: limits of the mechanism
def test_without_forgetting_or_eviction_it_is_plain_cached_decoding(llama):
    from transformers import DynamicCache

    ids, plain = tokens(2, 40), DynamicCache(config=llama.config)
    memory = SirLLM(budget=64, eta=1.0).bind(llama)
    parts = [ids[:, :11], ids[:, 11:25], *ids[:, 25:].split(1, dim=1)]
    with torch.no_grad():
        theirs = torch.cat([llama(part, past_key_values=plain).logits for part in parts], dim=1)
    ours = torch.cat([memory.write(part) for part in parts], dim=1)
    assert (ours - theirs).abs().max() < 1e-4


def streaming_reference(lengths: list[int], budget: int, sinks: int) -> list[list[int]]:
    """StreamingLLM on a list of positions: before each round drop the oldest after the sinks until the round fits."""
    held, seen, after = [], 0, []
    for length in lengths:
        while len(held) + length > budget:
            held.pop(sinks)
        held += range(seen, seen + length)
        seen += length
        after.append(list(held))
    return after


@pytest.mark.parametrize("seed", range(5))
def test_without_entropy_slots_it_keeps_what_streaming_llm_keeps(llama, seed):
    rng = np.random.default_rng(seed)
    budget, sinks = int(rng.integers(8, 20)), int(rng.integers(0, 5))
    lengths = rng.integers(1, budget - sinks + 1, 12).tolist()
    entropy_free = SirLLM(budget=budget, n_sink=sinks, n_rec=budget - sinks, eta=0.7).bind(llama)
    streaming = StreamingCache(budget=budget, n_sink=sinks).bind(llama)
    for step, (length, expected) in enumerate(zip(lengths, streaming_reference(lengths, budget, sinks), strict=True)):
        ids = tokens(1, length, seed=step)
        ours, theirs = entropy_free.write(ids), streaming.write(ids)
        assert entropy_free.contents()["position"].tolist() == expected
        assert streaming.contents()["position"].tolist() == expected
        assert torch.equal(ours, theirs)


# ---------------------------------------------------------------------- 2: invariants and the keep list
def brute_force(raw, rounds, now, eta, budget, sinks, recent, new) -> list[int]:
    """The card's rule, in the plainest words: sinks, best n_ent - m, newest n_rec, then fill up with the newest."""
    n, scores = len(raw), [raw[i] * eta ** (now - rounds[i]) for i in range(len(raw))]
    best = sorted(range(n), key=lambda i: (scores[i], i), reverse=True)[: budget - sinks - recent - new]
    keep = set(range(sinks)) | set(best) | set(range(n - recent, n))
    for i in reversed(range(n)):
        if len(keep) == budget - new:
            break
        keep.add(i)
    return sorted(keep)


@pytest.mark.parametrize("seed", range(200))
def test_keep_lists_equal_brute_force_with_ties(seed):
    rng = np.random.default_rng(seed)
    budget = int(rng.integers(8, 40))
    sinks, recent = int(rng.integers(0, 4)), int(rng.integers(0, 3))
    new = int(rng.integers(1, budget - sinks - recent))
    n = int(rng.integers(budget - new + 1, budget + 1))
    raw = rng.integers(0, 5, n).astype(float)  # few values: many ties
    rounds, eta = np.sort(rng.integers(1, 6, n)), float(rng.choice([1.0, 0.5, 0.7]))
    memory = SirLLM(budget=budget, n_sink=sinks, n_rec=recent, eta=eta)
    choice = memory.select(row_of(raw, rounds, 6), new)
    assert choice.indices.tolist() == brute_force(raw, rounds, 6, eta, budget, sinks, recent, new)
    assert len(choice.indices) == budget - new
    assert (choice.reasons[:sinks] == "sink").all()


def test_after_every_round_budget_sinks_order_and_scores_hold(llama):
    """Scores stay with their tokens: each held one equals the surprise recomputed by reading the stream again."""
    rng, memory = np.random.default_rng(0), SirLLM(budget=30, n_sink=4, eta=0.9, first="true").bind(llama)
    surprise: list[float] = [math.nan]
    ids, logits = torch.zeros(1, 0, dtype=torch.long), None
    for step in range(25):
        part = tokens(1, int(rng.integers(2, 12)), seed=step)
        before = logits
        logits = memory.write(part)
        predictions = logits[0, :-1] if before is None else torch.cat([before[0, -1:], logits[0, :-1]])
        targets = part[0, 1:] if before is None else part[0]
        surprise += (-torch.log_softmax(predictions.double(), -1).gather(1, targets[:, None])[:, 0]).tolist()
        ids = torch.cat([ids, part], dim=1)
        table = memory.contents()
        assert len(table) <= 30
        assert table["position"].tolist()[:4] == [0, 1, 2, 3]
        assert (np.diff(table["position"]) > 0).all()
        assert table["token_id"].tolist() == ids[0, table["position"].tolist()].tolist()
        recomputed = np.array(surprise)[table["position"]]
        np.testing.assert_allclose(table["surprise"][1:], recomputed[1:], rtol=1e-5)
        np.testing.assert_allclose(table["score"], table["surprise"] * 0.9 ** table["age"], rtol=1e-12)


# ---------------------------------------------------------------------- 3: surprise, and what the released code stores
@pytest.mark.parametrize("first", ["max", "true"])
@pytest.mark.parametrize("score", ["paper", "released"])
def test_scores_equal_a_direct_log_softmax(llama, score, first):
    memory, ids = SirLLM(budget=64, score=score, first=first).bind(llama), tokens(1, 21, seed=8)
    logits = torch.cat([memory.write(ids[:, :12]), memory.write(ids[:, 12:])], dim=1)[0].double()
    log_p = torch.log_softmax(logits, -1)
    if score == "paper":  # the probability of the token itself, under the logits before it
        direct = [-float(log_p[i - 1, ids[0, i]]) for i in range(1, 21)]
    else:  # the probability of the token before, under the same logits
        direct = [-float(log_p[i - 1, ids[0, i - 1]]) for i in range(1, 21)]
    ours = memory.contents()["surprise"].to_numpy()
    np.testing.assert_allclose(ours[1:12], direct[:11], rtol=1e-5)
    np.testing.assert_allclose(ours[13:], direct[12:], rtol=1e-5)
    assert ours[0] == max(ours[1:12])  # nothing predicts the first token of a stream
    assert ours[12] == pytest.approx(max(ours[13:]) if first == "max" else direct[11], rel=1e-5)


def test_the_highest_score_of_a_round_is_shared_by_its_first_token_as_the_round_grows(llama):
    memory = SirLLM(budget=64).bind(llama)
    memory.write(tokens(1, 6))
    with memory.round(8):
        memory.write(tokens(1, 3, seed=1))
        memory.write(tokens(1, 5, seed=2))
    scores = memory.contents()["surprise"].to_numpy()
    assert scores[6] == max(scores[7:14])
    llama.generate(  # decoding goes on with the round, token by token, under the last logits
        tokens(1, 4), attention_mask=torch.ones(1, 18), past_key_values=memory, max_new_tokens=4, do_sample=False
    )
    assert memory.rows[0].rounds == 3


def test_a_lone_first_token_counts_as_wholly_unknown(llama):
    memory = SirLLM(budget=8).bind(llama)
    memory.write(tokens(1, 1))
    assert memory.contents()["surprise"].tolist() == [pytest.approx(math.log(VOCABULARY))]


# ---------------------------------------------------------------------- 4: decay
def test_decay_is_raw_times_eta_to_the_age_over_mixed_rounds(llama):
    memory, raw, born = SirLLM(budget=40, eta=0.7).bind(llama), {}, {}
    rng = np.random.default_rng(1)
    for step in range(15):
        if step % 4 == 3:
            with memory.round(6):  # a round of several passes decays once
                memory.write(tokens(1, 2, seed=step))
                memory.write(tokens(1, 4, seed=step + 100))
        else:
            memory.write(tokens(1, int(rng.integers(2, 15)), seed=step))
        memory.write(tokens(1, 1, seed=step))  # single tokens go on with their round
        table = memory.contents().set_index("position")
        for position in table.index.difference(list(raw)):
            raw[position], born[position] = table.loc[position, "surprise"], step
        for position, held in table.iterrows():
            assert held["score"] == pytest.approx(raw[position] * 0.7 ** (step - born[position]), rel=1e-12)
    decays = [event for event in memory.events() if event.kind == "decay"]
    assert len(decays) == 14


def test_ranks_survive_thousands_of_rounds():
    """0.7 ** 3000 is zero in a double; the order by score must not become the order of ties."""
    raw, rounds = np.array([9.0, 2.0, 5.0, 1.0]), np.array([1, 1, 1, 3000])
    memory = SirLLM(budget=5, n_sink=0, eta=0.7)
    assert memory.decayed(row_of(raw, rounds, 3001))[0] == 0.0
    assert memory.order(row_of(raw, rounds, 3001)).tolist() == [3, 0, 2, 1]


# ---------------------------------------------------------------------- options of ours, errors
def test_masked_tokens_never_count_as_informative(llama):
    ids = tokens(1, 60)
    masked = tuple(set(ids[0, 5:25].tolist()))
    memory = SirLLM(budget=24, n_sink=2, mask_tokens=masked).bind(llama)
    memory.feed(ids, chunk=6)
    table = memory.contents()
    assert not table.query("reason == 'entropy'")["token_id"].isin(masked).any()
    assert (table[table["token_id"].isin(masked)]["score"] == 0).all()


def test_the_log_carries_threshold_and_mean_surprise(llama):
    memory = SirLLM(budget=24, n_sink=2).bind(llama)
    memory.feed(tokens(1, 60), chunk=6)
    log = memory.events().frame()
    evictions = log[log["kind"] == "evict"]
    kept = memory.contents().query("reason == 'entropy'")["score"].min()
    assert evictions["threshold"].iloc[-1] == pytest.approx(kept)
    assert log[log["kind"] == "write"]["mean_surprise"].between(0, 20).all()


def test_generation_evicts_token_by_token_within_one_round(llama):
    memory, prompt = SirLLM(budget=16, n_sink=2, eta=0.5).bind(llama), tokens(1, 10)
    out = llama.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        past_key_values=memory,
        max_new_tokens=30,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    table = memory.contents()
    assert len(table) == 16
    assert (table["age"] == 0).all()
    assert table["token_id"].tolist() == out[0, table["position"].tolist()].tolist()


@pytest.mark.parametrize(
    ("settings", "mention"),
    [
        ({"eta": 0.0}, "eta must be a finite number .*, got 0.0"),
        ({"eta": 1.01}, "eta must be a finite number .*, got 1.01"),
        ({"eta": math.nan}, "eta must be a finite number .*, got nan"),
        ({"budget": 4}, "n_sink"),
        ({"budget": 10, "n_rec": 7}, "n_rec=7"),
        ({"n_sink": -1}, "n_sink"),
        ({"n_sink": 2.5}, "n_sink must be a whole number .*, got 2.5"),
        ({"n_rec": "x"}, "n_rec must be a whole number .*, got 'x'"),
        ({"budget": None}, "budget=None"),
        ({"eta": "a"}, "eta must be a finite number .*, got 'a'"),
        ({"eta": True}, "eta must be a finite number .*, got True"),
        ({"mask_tokens": "abc"}, "mask_tokens='abc'"),
        ({"mask_tokens": 5}, "mask_tokens=5"),
        ({"mask_tokens": [-1]}, "mask_tokens"),
        ({"first": "min"}, "first='min'"),
        ({"score": "entropy"}, "score='entropy'"),
    ],
)
def test_bad_settings_are_named(settings, mention):
    with pytest.raises(BadInput, match=mention):
        SirLLM(**settings)


def test_a_round_longer_than_the_entropy_slots_is_refused(llama):
    memory = SirLLM(budget=20, n_sink=4, n_rec=6).bind(llama)
    memory.write(tokens(1, 10))
    before = memory.contents()
    with pytest.raises(MemoryError_, match="a round of 11 tokens does not fit"):
        memory.write(tokens(1, 11))
    assert memory.contents().equals(before)


def test_it_needs_a_language_model_head(llama):
    with pytest.raises(MemoryError_, match="no language-model head"):
        SirLLM().bind(llama.model)
    RandomCache().bind(llama.model)  # which needs no logits


def test_missing_logits_leave_the_memory_as_it_was(llama):
    memory = SirLLM(budget=20).bind(llama)
    memory.write(tokens(1, 8))
    before = memory.contents()
    memory.before_forward(2)
    for layer in memory.layers:
        layer.update(torch.zeros(1, 2, 2, 8), torch.zeros(1, 2, 2, 8))
    with pytest.raises(MemoryError_, match="logits of all new tokens"):
        memory.after_forward(tokens(1, 2), torch.zeros(1, 1, VOCABULARY))
    assert memory.contents().drop(columns="age").equals(before.drop(columns="age"))  # the round it opened has begun
    assert memory.layers[0].width == 8
    memory.write(tokens(1, 2))
    assert memory.rows[0].rounds == 2
