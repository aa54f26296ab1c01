"""MQAR, set disjointness and needles are what their papers' descriptions say."""

import numpy as np
import pytest

from workbench_datasets import fact_stream as fs
from workbench_datasets.mqar import mqar
from workbench_datasets.needles import HAYSTACKS, needles, needles_by_length
from workbench_datasets.set_disjointness import answer_positions, set_disjointness, sizes_pool
from workbench_datasets.streams import IGNORE


@pytest.mark.parametrize(("pairs", "repeats", "length"), [(8, 1, 160), (48, 1, 192), (5, 2, 41), (4, 3, 40)])
@pytest.mark.parametrize("show", [False, True])
def test_mqar_tells_pairs_then_asks_each_key_once(pairs, repeats, length, show):
    pool = mqar(60, pairs=pairs, repeats=repeats, length=length, show_answers=show, seed=1)
    told = 2 * pairs
    for row, targets in zip(pool.ids, pool.targets):
        keys, values = row[:told:2], row[1:told:2]
        assert ((keys >= 1) & (keys < 256)).all()
        assert ((values >= 256) & (values < 512)).all()
        assert len(set(keys)) == len(set(values)) == pairs
        assert np.array_equal(row[: told * repeats], np.tile(row[:told], repeats))
        asked = np.flatnonzero(targets != IGNORE)
        table = dict(zip(keys, values))
        assert sorted(row[asked]) == sorted(keys)
        assert ((asked - told * repeats) % 2 == 0).all()
        assert all(targets[at] == table[row[at]] for at in asked)
        rest = row[told * repeats :]
        assert rest.min() >= 1
        assert np.isin(rest, keys).sum() == pairs
        shown = np.flatnonzero(np.isin(row, values) & (np.arange(length) >= told * repeats))
        assert shown.tolist() == ((asked + 1).tolist() if show else [])
        if show:
            assert np.array_equal(row[asked + 1], targets[asked])


def test_mqar_questions_follow_the_power_law():
    pool = mqar(20_000, pairs=1, length=42, power=0.01, seed=2)
    slots = ((pool.targets != IGNORE).argmax(1) - 2) // 2
    expected = np.arange(1, 21) ** -0.99
    expected *= len(slots) / expected.sum()
    counts = np.bincount(slots, minlength=20)
    assert ((counts - expected) ** 2 / expected).sum() < 44  # chi squared, 19 degrees: 99.9 %
    even = ((mqar(20_000, pairs=1, length=42, power=1.0, seed=2).targets != IGNORE).argmax(1) - 2) // 2
    assert np.bincount(even).min() > 850


def test_mqar_without_replacement_matches_sequential_draws():
    """Two questions over three slots: the second is drawn by the weights that are left."""
    pool = mqar(30_000, pairs=2, length=10, power=0.01, seed=3)
    first = ((pool.targets != IGNORE) & (pool.ids == pool.ids[:, :1])).argmax(1)
    second = ((pool.targets != IGNORE) & (pool.ids == pool.ids[:, 2:3])).argmax(1)
    weight = np.arange(1, 4) ** -0.99
    weight /= weight.sum()
    for i in range(3):
        for j in range(3):
            expected = 0 if i == j else weight[i] * weight[j] / (1 - weight[i])
            got = np.mean((first == 4 + 2 * i) & (second == 4 + 2 * j))
            assert got == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(("first", "second"), [(4, 16), (16, 4), (1, 32), (32, 1), (64, 64)])
@pytest.mark.parametrize("passes", [1, 2])
def test_sets_share_exactly_one_element(first, second, passes):
    pool = set_disjointness(80, first, second, vocabulary=256, passes=passes, seed=1)
    once = first + second + 2
    assert pool.ids.shape == (80, passes * once + 1)
    for row, targets in zip(pool.ids, pool.targets):
        assert row[0] == 1
        assert row[1 + first] == 2
        assert row[-1] == 3
        a, b = set(row[1 : 1 + first]), set(row[2 + first : once])
        assert len(a) == first
        assert len(b) == second
        assert min(a | b) >= 4
        assert a & b == {targets[-1]}
        assert (targets[:-1] == IGNORE).all()
        assert np.array_equal(row[:-1], np.tile(row[:once], passes))
    places = pool.length - 1 - pool.distance[:, -1]
    assert np.array_equal(pool.ids[np.arange(80), places], pool.targets[:, -1])
    assert (places > (passes - 1) * once).all(), "the shared element's place in A, of the last pass"
    assert (places <= (passes - 1) * once + first).all()
    assert (pool.distance[:, :-1] == -1).all()


def test_the_shared_element_is_anywhere_in_both_sets_and_any_element():
    pool = set_disjointness(8_000, 4, 8, vocabulary=36, seed=2)
    answer = pool.targets[:, -1:]
    in_a = (pool.ids[:, 1:5] == answer).argmax(1)
    in_b = (pool.ids[:, 6:14] == answer).argmax(1)
    assert np.abs(np.bincount(in_a, minlength=4) / 8_000 - 1 / 4).max() < 0.02
    assert np.abs(np.bincount(in_b, minlength=8) / 8_000 - 1 / 8).max() < 0.02
    assert np.abs(np.bincount(answer[:, 0] - 4, minlength=32) / 8_000 - 1 / 32).max() < 0.01
    assert pool.chance == 1 / 4


def test_a_pool_of_sizes_says_where_each_answer_is():
    pool = sizes_pool([(4, 16), (16, 4), (4, 64)], 30, vocabulary=512, side="left")
    assert (answer_positions(pool) == pool.length - 1).all()
    right = sizes_pool([(4, 16), (16, 4), (4, 64)], 30, vocabulary=512)
    assert np.array_equal(answer_positions(right), right.lengths - 1)


@pytest.mark.parametrize("haystack", HAYSTACKS)
@pytest.mark.parametrize("depth", [(0.0, 0.0), (0.0, 1.0), (0.25, 0.5), (1.0, 1.0)])
def test_needles_stand_at_their_depth(haystack, depth):
    pool = needles(300, length=256, haystack=haystack, depth=depth, seed=1)
    asked = pool.targets != IGNORE
    assert (asked.sum(1) == 1).all()
    assert asked[:, 254].all()
    starts = 252 - pool.distance[:, 254]
    slack = 32 if haystack == "facts" else 0  # a stretch, and what is left over behind the last one
    low, high = 1 + depth[0] * (252 - 4), 1 + depth[1] * (252 - 4)
    assert starts.min() >= int(low) - slack
    assert starts.max() <= high + slack
    if depth == (0.0, 1.0):
        assert starts.min() < 20
        assert starts.max() > 230
    rows = np.arange(300)
    assert (pool.ids[rows, starts] == fs.FACT).all()
    assert np.array_equal(pool.ids[rows, starts + 1], pool.ids[:, 253])
    assert np.array_equal(pool.ids[rows, starts + 2], pool.targets[:, 254])
    facts = (pool.ids == fs.FACT).sum(1)
    assert (facts == (252 // 16 if haystack == "facts" else 1)).all()
    assert pool.categories == (haystack,)


def test_a_repeated_haystack_repeats_and_longer_ones_hold_what_keys_there_are():
    pool = needles(20, length=128, haystack="repeat", depth=(1.0, 1.0))
    assert np.array_equal(pool.ids[:, 1:100], pool.ids[:, 9:108])
    made = needles_by_length(5, (64, 4096), haystack="facts")
    assert (made[4096].ids == fs.FACT).sum(1).tolist() == [127] * 5  # one in 32 tokens: 128 keys
    assert made[64].length == 64


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mqar(2, vocabulary=511), "even number"),
        (lambda: mqar(2, pairs=256), "pairs=256"),
        (lambda: mqar(2, pairs=0), "pairs=0"),
        (lambda: mqar(2, pairs=8, length=31), "need 32 tokens"),
        (lambda: mqar(2, pairs=8, length=47, repeats=2), "need 48 tokens"),
        (lambda: mqar(2, repeats=0), "repeats=0"),
        (lambda: mqar(2, power=0), "power=0"),
        (lambda: mqar(2, power=float("inf")), "power=inf"),
        (lambda: set_disjointness(2, 0, 4), "first=0"),
        (lambda: set_disjointness(2, 4, 0), "second=0"),
        (lambda: set_disjointness(2, 8, 9, vocabulary=20), "has 16"),
        (lambda: set_disjointness(2, 8, 8, passes=0), "passes=0"),
        (lambda: sizes_pool([], 5), "expected one or more pairs"),
        (lambda: sizes_pool([4], 5), "expected one or more pairs"),
        (lambda: needles(2, depth=0.5), "depth=0.5: expected two shares"),
        (lambda: needles(2, depth=(0.5,)), "expected two shares"),
        (lambda: needles_by_length(2, 64), "lengths=64"),
        (lambda: fs.fact_stream(2, placement="segment", segments=3), "segments=3"),
        (lambda: fs.fact_stream(2, segments=(1,)), "with placement='segment'"),
        (lambda: needles(2, depth=(0.5, 0.2)), "smaller share first"),
        (lambda: needles(2, depth=(0.5, 1.2)), "depth=1.2"),
        (lambda: needles(2, haystack="hay"), "haystack='hay'"),
        (lambda: needles(2, length=8), "length=8"),
        (lambda: needles_by_length(2, ()), r"lengths=\(\)"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
