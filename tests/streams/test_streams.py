"""What every recall generator promises: equal settings equal pools, splits that never meet, honest targets."""

import numpy as np
import pytest

from workbench_datasets import fact_stream, mqar, needles, set_disjointness, streams
from workbench_datasets.streams import IGNORE, drawn

MAKERS = {
    "fact_stream": lambda n, **k: fact_stream.fact_stream(n, length=96, **k),
    "topics": lambda n, **k: fact_stream.fact_stream(n, length=128, topics=8, distractor_ratio=0.5, queries=2, **k),
    "overwrite": lambda n, **k: fact_stream.fact_stream(n, length=96, overwrite=True, **k),
    "segments": lambda n, **k: fact_stream.fact_stream(n, length=160, placement="segment", **k),
    "mqar": lambda n, **k: mqar.mqar(n, length=64, **k),
    "mqar twice": lambda n, **k: mqar.mqar(n, length=64, repeats=2, show_answers=True, **k),
    "set_disjointness": lambda n, **k: set_disjointness.set_disjointness(n, 8, 32, **k),
    "needles": lambda n, **k: needles.needles(n, length=128, **k),
    "needles in facts": lambda n, **k: needles.needles(n, length=128, haystack="facts", **k),
}


@pytest.fixture(params=sorted(MAKERS))
def make(request):
    return MAKERS[request.param]


def test_equal_settings_make_equal_pools_and_other_seeds_others(make):
    first, again, other = make(50, seed=3), make(50, seed=3), make(50, seed=4)
    for name in ("ids", "targets", "distance", "category"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(first.ids, other.ids)


def test_train_and_test_share_no_sequence_even_under_one_seed(make):
    train = {row.tobytes() for seed in (0, 1) for row in make(300, seed=seed, split="train").ids}
    test = {row.tobytes() for seed in (0, 1) for row in make(300, seed=seed, split="test").ids}
    assert len(train) == len(test) == 600
    assert not train & test


def test_tables_agree_on_where_something_is_asked(make):
    pool = make(80, seed=1)
    asked = pool.targets != IGNORE
    assert asked.any(1).all()
    assert np.array_equal(asked, pool.distance >= 0)
    assert np.array_equal(asked, pool.category >= 0)
    assert pool.category.max() < len(pool.categories)
    assert pool.ids.min() >= 0
    assert pool.ids.max() < pool.vocabulary
    assert pool.targets[asked].min() > 0
    assert pool.targets.max() < pool.vocabulary
    assert 0 < pool.chance <= 1


def test_what_is_asked_was_told_at_its_distance(make):
    """The target stands in the input before the question, near the place that ``distance`` points to."""
    pool = make(60, seed=2)
    for row, at in np.argwhere(pool.targets != IGNORE):
        told = np.flatnonzero(pool.ids[row, :at] == pool.targets[row, at])
        assert len(told)
        behind = at - pool.distance[row, at] - told
        assert np.abs(behind).min() <= 2


def test_a_question_is_not_answered_by_its_own_position_or_the_next_tokens_it_sees(make):
    pool = make(60, seed=5)
    asked = pool.targets != IGNORE
    assert not (pool.ids[asked] == pool.targets[asked]).any()


def test_rows_can_be_cut_out():
    pool = MAKERS["mqar"](10)
    assert np.array_equal(pool[2:5].ids, pool.ids[2:5])
    assert len(pool[np.array([1, 7])]) == 2
    with pytest.raises(TypeError, match="2:3 is one row"):
        pool[2]


def test_blocks_make_whole_pools(monkeypatch):
    monkeypatch.setattr(streams, "_BLOCK", 1024)
    pool = MAKERS["fact_stream"](30)
    assert len(pool) == 30
    assert len({row.tobytes() for row in pool.ids}) == 30


def test_draws_are_uniform_and_never_repeat():
    rng = np.random.default_rng(0)
    draws = drawn(rng, 20_000, 3, 5)
    assert all(len(set(row)) == 3 for row in draws[:500])
    for column in range(3):
        shares = np.bincount(draws[:, column], minlength=5) / len(draws)
        assert np.abs(shares - 0.2).max() < 0.015


def test_joined_pools_keep_their_rows_and_name_their_categories():
    parts = [set_disjointness.set_disjointness(20, a, b, vocabulary=128) for a, b in ((4, 16), (16, 4), (4, 8))]
    for side in ("left", "right"):
        pool = streams.join(parts, length=30, side=side, seed=1)
        assert pool.ids.shape == (60, 30)
        assert pool.categories == ("4,16", "16,4", "4,8")
        assert sorted(pool.lengths.tolist()) == [15] * 20 + [23] * 40
        for row in range(60):
            at = int((pool.targets[row] != IGNORE).argmax())
            inside = slice(0, pool.lengths[row]) if side == "right" else slice(30 - pool.lengths[row], 30)
            assert (np.delete(pool.ids[row], np.r_[inside]) == 0).all()
            a, b = map(int, pool.categories[pool.category[row, at]].split(","))
            assert pool.lengths[row] == a + b + 3
            assert pool.ids[row, at] == set_disjointness.ANSWER
    assert pool.chance == pytest.approx(1 / 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: streams.join([]), "parts is empty"),
        (lambda: streams.join([MAKERS["mqar"](2), MAKERS["set_disjointness"](2)]), "one vocabulary"),
        (lambda: streams.join([MAKERS["mqar"](2)], length=10), "nothing is cut"),
        (lambda: streams.join([MAKERS["mqar"](2)], side="middle"), "left or right"),
        (lambda: MAKERS["mqar"](0), "n=0"),
        (lambda: MAKERS["mqar"](2, split="validation"), "split='validation'"),
        (lambda: MAKERS["mqar"](2, seed=-1), "seed=-1"),
        (lambda: MAKERS["mqar"](2, seed=1.5), "seed=1.5"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
