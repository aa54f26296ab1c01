"""Scoring of recall: right answers are counted where they are asked, by distance and category, with their intervals."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from workbench.errors import BadInput
from workbench.models.mixer import MixerConfig, MixerLM
from workbench.statistics import t_interval, wilson
from workbench.tasks.recall import ANSWERS, RECALL, across_seeds, answers, buckets, recall, state_bytes
from workbench_datasets.fact_stream import fact_stream
from workbench_datasets.mqar import mqar
from workbench_datasets.set_disjointness import sizes_pool
from workbench_datasets.streams import join


class Reader(nn.Module):
    """Looks up in the tokens so far what followed the asked key, if it was told within ``reach`` tokens."""

    def __init__(self, vocabulary: int, reach: int, back: int = 0):
        super().__init__()
        self.vocabulary, self.reach, self.back = vocabulary, reach, back
        self.anchor = nn.Parameter(torch.zeros(1))
        self.seen: list[torch.Tensor | None] = []

    def forward(self, input_ids, use_cache=None, attention_mask=None):
        self.seen.append(attention_mask)
        logits = torch.zeros(*input_ids.shape, self.vocabulary)
        for row, ids in enumerate(input_ids.tolist()):
            for at in range(self.back, len(ids)):
                key = ids[at - self.back]
                told = [p for p in range(at - self.back) if ids[p] == key and at - p <= self.reach]
                if told:
                    logits[row, at, ids[told[-1] + 1]] = 5.0
        return SimpleNamespace(logits=logits)


def test_a_perfect_reader_recalls_all_and_a_short_sighted_one_what_is_near():
    pool = fact_stream(40, length=96, facts=6, queries=3, seed=1, split="test")
    all_of_it = recall(Reader(512, 10_000, back=1), pool, by=())
    assert list(all_of_it.columns) == list(RECALL)
    assert all_of_it.accuracy[0] == 1
    assert all_of_it.n[0] == 120
    assert all_of_it.chance[0] == pytest.approx(1 / 128)
    near = recall(Reader(512, 32, back=1), pool, by=("distance",), edges=(0, 31, 33))
    # the key stands one after the fact's mark, and is asked two before the answer: distance 31 is reached, 33 is not
    assert near.accuracy.tolist()[0] == 1
    assert near.accuracy.tolist()[-1] == 0
    rows = answers(Reader(512, 32, back=1), pool)
    assert list(rows.columns) == list(ANSWERS)
    assert (rows.right == (rows.distance <= 31)).all()
    assert (rows.said[rows.right] == rows.target[rows.right]).all()
    assert (rows.log_p[rows.right] > -4).all()
    assert (rows.log_p[~rows.right] < -4).all()


def test_categories_and_intervals_are_counted_by_hand():
    pool = join([mqar(30, pairs=p, length=48, vocabulary=64, split="test") for p in (2, 6)])
    model = Reader(64, 14)
    rows = answers(model, pool, batch_tokens=500)
    table = recall(model, pool, by=("category",)).set_index("category")
    for pairs in ("2", "6"):
        mine = rows[rows.category == pairs]
        assert len(mine) == 30 * int(pairs)
        k = int(mine.right.sum())
        assert table.k[pairs] == k
        interval = wilson(k, len(mine))
        assert (table.low[pairs], table.high[pairs]) == (interval.low, interval.high)
    both = recall(model, pool, by=("category", "distance"), edges=(0, 15))
    assert both.n.sum() == len(rows)
    assert (both.accuracy[both.distance == "15+"] == 0).all()


def test_small_batches_say_what_large_ones_do():
    torch.manual_seed(0)
    model = MixerLM(MixerConfig(vocab_size=64, dim=16, mixers=[{"mixer": "linear-attention", "heads": 2}])).train()
    pool = mqar(30, pairs=3, length=24, vocabulary=64)
    large, small = answers(model, pool), answers(model, pool, batch_tokens=50)
    assert large.said.equals(small.said)
    np.testing.assert_allclose(large.log_p, small.log_p, atol=1e-5)
    assert model.training  # as it was


def test_padding_is_masked_and_does_not_change_an_answer():
    torch.manual_seed(0)
    model = MixerLM(MixerConfig(vocab_size=64, dim=16, mixers=[{"mixer": "linear-attention", "heads": 2, "conv": 3}]))
    parts = [sizes_pool([size], 10, vocabulary=64) for size in ((2, 4), (5, 9))]
    alone = [answers(model, part).sort_values("target").log_p.to_numpy() for part in parts]
    for side in ("left", "right"):
        rows = answers(model, join(parts, side=side))
        for part, name in zip(alone, ("2,4", "5,9")):
            mine = rows[rows.category == name].log_p.to_numpy()
            np.testing.assert_allclose(np.sort(mine), np.sort(part), atol=1e-5)
    reader = Reader(64, 9)
    answers(reader, join(parts))
    assert reader.seen[0] is not None
    answers(reader, parts[0])
    assert reader.seen[-1] is None


def test_seeds_are_averaged_with_a_t_interval():
    pool = mqar(30, pairs=4, length=32, vocabulary=64, split="test")
    frames = {seed: recall(Reader(64, reach), pool) for seed, reach in enumerate((6, 10, 14))}
    table = across_seeds(frames)
    each = [frame.accuracy[0] for frame in frames.values()]
    wanted = t_interval(each)
    assert table.loc[0, ["accuracy", "low", "high"]].tolist() == pytest.approx(list(wanted[:3]))
    assert table.seeds[0] == 3
    assert table.category[0] == "4"
    assert table.chance[0] == 0.25
    single = across_seeds({0: frames[0]})
    assert single.accuracy[0] == each[0]
    assert np.isnan(single.low[0])


def test_buckets_are_powers_of_two_by_default():
    made = buckets([0, 7, 8, 100, 300])
    assert list(made) == ["0-7", "0-7", "8-15", "64-127", "256+"]
    assert made.ordered


def test_state_bytes_are_those_of_the_states_that_are_carried():
    model = MixerLM(
        MixerConfig(vocab_size=64, dim=16, mixers=[{"mixer": "linear-attention", "heads": 2}, "titans-mag"])
    )
    cache = model.new_cache()
    model(torch.arange(7)[None], past_key_values=cache)
    held = sum(
        value.numel() * value.element_size()
        for state in cache.states
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )
    assert state_bytes(model) == held
    with pytest.raises(BadInput, match="has no sequence memories"):
        state_bytes(nn.Linear(2, 2))


def other_pool():
    return mqar(2, pairs=3, length=24, vocabulary=64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: recall(Reader(64, 3), p, by=("age",)), "age is not one of"),
        (lambda p: recall(Reader(64, 3), p, by=("distance",), edges=(8, 4)), "rising"),
        (lambda p: recall(Reader(64, 3), p, by=("distance",), edges=()), "rising"),
        (lambda p: buckets([1, 2], (5, 9)), "before the first bucket"),
        (lambda p: recall(Reader(64, 3), p, by="distance"), "expected a list of names"),
        (lambda p: recall(Reader(64, 3), p, by=("distance",), edges=(0, 4.5)), "rising"),
        (lambda p: across_seeds({}), "one seed or more"),
        (lambda p: across_seeds([recall(Reader(64, 3), p)]), "got list"),
        (lambda p: answers(Reader(64, 3), None), "a pool has ids"),
        (lambda p: answers(Reader(64, 3), SimpleNamespace(ids=p.ids * 1.0, targets=p.targets)), "whole numbers"),
        (
            lambda p: answers(
                MixerLM(MixerConfig(vocab_size=64, dim=8)),
                SimpleNamespace(ids=p.ids, targets=np.where(p.targets < 0, -100, 64)),
            ),
            "up to 64 but the model knows 64",
        ),
        (lambda p: state_bytes(MixerLM(MixerConfig(vocab_size=64, dim=8)), -5), "tokens must be"),
        (
            lambda p: across_seeds({0: recall(Reader(64, 3), p), 1: recall(Reader(64, 3), other_pool())}),
            "other groups",
        ),
        (lambda p: answers(Reader(64, 3), SimpleNamespace(ids=p.ids, targets=p.targets * 0 - 100)), "nothing is asked"),
        (lambda p: answers(Reader(64, 3), SimpleNamespace(ids=p.ids, targets=p.targets[:1])), "one table each"),
        (lambda p: answers(MixerLM(MixerConfig(vocab_size=16, dim=8)), p), "knows 16 tokens"),
    ],
)
def test_bad_input_is_refused(call, message):
    pool = mqar(2, pairs=4, length=24, vocabulary=64)
    with pytest.raises(BadInput, match=message):
        call(pool)
