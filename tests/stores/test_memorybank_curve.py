"""The forgetting curve, the rules that apply it, and the life simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from workbench.errors import BadInput
from workbench.memory.stores.memorybank import (
    RULES,
    compounded,
    curves,
    eviction_order,
    forgetting_day,
    forgotten_now,
    keep_probability,
    luck_of,
    retention,
)
from workbench.tasks import life as life_task
from workbench.tasks.life import KEEP_ALL, Life, Policy, at_capacity, draw, live, policies_at, scores

DAYS = st.floats(0, 400, allow_nan=False)
STRENGTHS = st.floats(0.5, 50)
SCALES = st.floats(0.5, 20)
N = 20_000


@given(DAYS, STRENGTHS, SCALES)
def test_retention_is_the_formula(t, s, scale):
    assert float(retention(t, s, scale)) == pytest.approx(math.exp(-t / (scale * s)), abs=1e-12)


@given(DAYS, st.floats(0.01, 100), STRENGTHS, st.floats(0.01, 10), SCALES)
def test_retention_falls_with_time_and_rises_with_strength(t, later, s, more, scale):
    here = float(retention(t, s, scale))
    assert 0 <= float(retention(t + later, s, scale)) <= here <= 1
    assert float(retention(t, s + more, scale)) >= here


def test_published_bug_makes_strength_speed_forgetting_up():
    r = retention(3.0, [1.0, 2.0, 5.0], 5.0, formula="as_published_bug")
    np.testing.assert_allclose(r, np.exp([-0.6, -1.2, -3.0]), atol=1e-12)
    assert r[0] > r[1] > r[2]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((-0.1, 1.0, 1.0), "0 days or more"),
        ((math.nan, 1.0, 1.0), "0 days or more"),
        ((1.0, 0.0, 1.0), "strength S"),
        ((1.0, math.inf, 1.0), "strength S"),
        ((1.0, 1.0, 0.0), "time_scale"),
        ((1.0, 1.0, math.nan), "time_scale"),
        (("soon", 1.0, 1.0), "must be numbers"),
        ((1.0, "much", 1.0), "must be numbers"),
    ],
)
def test_impossible_times_strengths_and_scales_are_refused(arguments, says):
    with pytest.raises(BadInput, match=says):
        retention(*arguments)


def test_unknown_names_are_refused():
    with pytest.raises(BadInput, match="formula"):
        retention(1.0, formula="ebbinghaus")
    with pytest.raises(BadInput, match="hazard"):
        keep_probability("decay", 0, 1)
    with pytest.raises(BadInput, match="rule 'none'"):
        forgetting_day(threshold=0.0)
    with pytest.raises(BadInput, match="until"):
        keep_probability("hazard", 2, 1)


# ---------------------------------------------------------------------- survival under schedules of sweeps
def survivors(rule: str, sweeps: np.ndarray, strength: float, scale: float, rng: np.random.Generator) -> np.ndarray:
    """How many of N items are left after each sweep, drawn anew at each with ``keep_probability``."""
    alive, since, counts = np.ones(N, bool), 0.0, []
    for until in sweeps:
        alive &= rng.random(N) < keep_probability(rule, since, until, strength, scale)
        since = until
        counts.append(int(alive.sum()))
    return np.array(counts)


def lifetimes(rule: str, sweeps: np.ndarray, strength: float, scale: float, seed: int) -> np.ndarray:
    """The same with the memory's own decision and its own luck."""
    ids, alive, counts = np.arange(N), np.ones(N, bool), []
    for number, day in enumerate(sweeps):
        luck = luck_of(seed, ids, 0) if rule == "hazard" else luck_of(seed, ids, 0, number)
        alive &= ~forgotten_now(rule, np.full(N, day), strength, luck, time_scale=scale)
        counts.append(int(alive.sum()))
    return np.array(counts)


def chi_square(counts: np.ndarray, survival: np.ndarray) -> float:
    """p of the deaths in each interval (and the final survivors) against the expected survival."""
    died = -np.diff(np.concatenate([[N], counts, [0]]))
    expected = -np.diff(np.concatenate([[1.0], survival, [0.0]])) * N
    return float(stats.chisquare(died, expected).pvalue)


@pytest.mark.parametrize(("strength", "scale"), [(1.0, 5.0), (3.0, 1.0)])
@pytest.mark.parametrize("draws", [survivors, lifetimes])
def test_hazard_survival_does_not_depend_on_the_schedule(draws, strength, scale):
    """p > 0.01 for twenty random schedules together (Bonferroni), and the twenty p-values look uniform."""
    found = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        sweeps = np.sort(rng.uniform(0.2, 2.5 * scale * strength, rng.integers(3, 12)))
        counts = draws("hazard", sweeps, strength, scale, rng if draws is survivors else seed)
        found.append(chi_square(counts, np.exp(-sweeps / (scale * strength))))
    assert min(found) > 0.01 / len(found)
    assert stats.kstest(found, "uniform").pvalue > 0.01


@pytest.mark.parametrize("draws", [survivors, lifetimes])
def test_daily_sweeps_compound_far_below_the_curve(draws):
    sweeps, strength, scale = np.arange(1.0, 8.0), 2.0, 5.0
    counts = draws("sweep", sweeps, strength, scale, np.random.default_rng(5) if draws is survivors else 5)
    survival = np.exp(-sweeps * (sweeps + 1) / (2 * scale * strength))
    np.testing.assert_allclose(compounded(sweeps, strength, scale), survival, atol=1e-12)
    assert chi_square(counts, survival) > 0.01
    assert counts[-1] / N < 0.5 * math.exp(-7 / (scale * strength))


def test_the_two_ways_of_applying_a_wrong_rule_are_told_apart():
    """The chi-square tests above can fail: sweeping by ``sweep`` does not give the hazard's survival."""
    sweeps = np.arange(1.0, 8.0)
    counts = survivors("sweep", sweeps, 1.0, 5.0, np.random.default_rng(0))
    assert chi_square(counts, np.exp(-sweeps / 5.0)) < 1e-6


@given(STRENGTHS, SCALES, st.floats(0.01, 0.99))
def test_threshold_forgets_on_its_day_and_not_before(s, scale, theta):
    day = forgetting_day(s, scale, theta)
    assert day == pytest.approx(scale * s * math.log(1 / theta))
    options = {"time_scale": scale, "threshold": theta}
    assert not forgotten_now("threshold", day * (1 - 1e-9), s, 0.5, **options)
    assert forgotten_now("threshold", day * (1 + 1e-9) + 1e-9, s, 0.5, **options)
    assert keep_probability("threshold", 0, day * 0.99, s, scale, theta) == 1


def test_capacity_and_none_never_sweep():
    for rule in ("capacity", "none"):
        assert not forgotten_now(rule, [1e3, 0.0], 1.0, 0.999).any()
        assert (keep_probability(rule, 0, 99) == 1).all()
    assert set(RULES) == {"hazard", "sweep", "threshold", "capacity", "as_published_bug", "none"}


def test_eviction_is_lowest_retention_first_then_oldest():
    order = eviction_order([0.5, 0.1, 0.5, 0.1, 1.0], [3, 9, 1, 2, 0])
    assert order.tolist() == [3, 1, 2, 0, 4]
    assert eviction_order([0.2, 0.2], [1, 1]).tolist() == [0, 1]
    with pytest.raises(BadInput, match="one length"):
        eviction_order([0.1], [1, 2])


def test_luck_is_uniform_and_belongs_to_its_keys():
    luck = luck_of(3, np.arange(N), 0)
    assert ((luck >= 0) & (luck < 1)).all()
    assert stats.kstest(luck, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(luck[:-1], luck[1:])[0, 1]) < 0.03
    assert abs(np.corrcoef(luck, luck_of(3, np.arange(N), 1))[0, 1]) < 0.03
    np.testing.assert_array_equal(luck_of(3, np.arange(10, 20), 0), luck[10:20])
    assert not np.array_equal(luck, luck_of(4, np.arange(N), 0))


def test_curves_are_tidy_and_agree_with_the_functions():
    frame = curves((1, 4), 5.0, days=10)
    assert list(frame) == ["curve", "S", "day", "R"]
    assert set(frame["curve"]) == {"paper", "as_published_bug", "daily sweeps"}
    one = frame[(frame["curve"] == "paper") & (frame["S"] == 4)]
    np.testing.assert_allclose(one["R"], retention(one["day"], 4.0, 5.0))


# ---------------------------------------------------------------------- lives
SMALL = Life(days=30, score_from=10)
SEEDS = range(500, 506)


def test_what_a_seed_draws_does_not_depend_on_the_others():
    alone, together = draw(SMALL, [503]), draw(SMALL, SEEDS)
    for name in ("importance", "asked", "luck", "relived"):
        np.testing.assert_array_equal(getattr(alone, name)[0], getattr(together, name)[3])


def test_questions_are_about_the_past_and_follow_importance():
    fate = draw(Life(), range(500, 520))
    days = np.arange(fate.life.days)[None, :, None]
    assert (fate.asked // fate.life.facts <= days).all()
    asked = np.take_along_axis(fate.importance[:, 0], fate.asked.reshape(20, -1), axis=1)
    assert np.median(asked) > 5 * np.median(fate.importance)


def test_keep_all_answers_everything_and_holds_the_expected_number():
    lives = live(draw(Life(), SEEDS), KEEP_ALL)
    assert (lives.hit_rate() == 1).all()
    assert (lives.mean_size() == 405).all()


@pytest.mark.parametrize("policy", at_capacity(17), ids=lambda policy: policy.name)
@pytest.mark.parametrize("drift", [None, 10])
def test_capacity_is_never_exceeded_and_always_used(policy, drift):
    lives = live(draw(Life(days=30, score_from=10, drift=drift), SEEDS), policy)
    assert lives.sizes.max() == 17
    assert (lives.sizes[:, 2:] == 17).all()


@given(st.sampled_from(policies_at(16)), st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_a_hit_is_a_fact_that_lives(policy, seed):
    lives = live(draw(Life(days=12, score_from=2), [seed]), policy)
    items = lives.items(seed)
    died, asked = lives.died[0], lives.fate.asked[0]
    expected = np.arange(12)[:, None] < died[asked]
    np.testing.assert_array_equal(lives.hits[0], expected)
    recalls = items["recalls"].map(len)
    assert recalls.sum() == lives.hits.sum()
    grown = 1 + policy.increment * recalls if policy.reinforce else np.ones(len(items))
    np.testing.assert_allclose(items["strength"], grown)
    assert (items["died"] >= items["born"]).all()


def test_policies_let_go_in_their_order():
    """FIFO holds the newest; no reinforcement makes capacity-EBB the same as FIFO; LRU drops the longest unrecalled."""
    fate = draw(SMALL, SEEDS)
    policies = {policy.name: live(fate, policy) for policy in at_capacity(20)}
    last = policies["FIFO"].died == SMALL.days
    assert last[:, -20:].all()
    assert not last[:, :-20].any()
    np.testing.assert_array_equal(policies["FIFO"].died, policies["EBB capacity, no reinforcement"].died)
    lru = policies["LRU"]
    for at in range(len(SEEDS)):
        recalled = [max(days, default=b) for days, b in zip(lru.items(SEEDS[at])["recalls"], last[at])]
        held = lru.died[at] == SMALL.days
        born = np.arange(held.size) // SMALL.facts
        latest = np.maximum(np.array(recalled, dtype=float), born)
        gone_late = ~held & (lru.died[at] == SMALL.days - 1)
        assert latest[gone_late].max() <= latest[held].min() + 1


def test_expected_sizes_of_rules_without_recalls():
    """With nobody asking, the number held is the sum of the survival function over the days."""
    quiet = [Policy("hazard", "hazard", reinforce=False), Policy("bug", "as_published_bug", reinforce=False)]
    fate = draw(Life(), range(600, 640))
    ages = np.arange(60)
    sizes = [live(fate, policy).sizes[:, -1].mean() for policy in quiet]
    assert sizes[0] == pytest.approx(10 * np.exp(-ages / 5).sum(), rel=0.03)
    assert sizes[1] == pytest.approx(10 * compounded(ages, 1.0, 5.0).sum(), rel=0.03)


def test_runs_are_bit_identical_however_they_are_batched():
    policies = policies_at(16)
    whole = scores(SMALL, policies, SEEDS, batch=50)
    parts = scores(SMALL, policies, SEEDS, batch=4)
    keys = ["policy", "unit"]
    whole, parts = (f.sort_values(keys).reset_index(drop=True) for f in (whole, parts))
    assert whole.equals(parts)
    assert whole.equals(scores(SMALL, policies, SEEDS).sort_values(keys).reset_index(drop=True))


def test_grid_is_the_product_and_an_endless_scale_is_the_capacity_alone():
    policies = life_task.grid([1.0, math.inf], [0.0, 1.0], [16, 32])
    assert len({policy.name for policy in policies}) == 8
    fate = draw(SMALL, SEEDS)
    endless = next(p for p in policies if p.time_scale == math.inf and p.increment == 1 and p.capacity == 16)
    alone = live(fate, Policy("EBB", "capacity", capacity=16))
    np.testing.assert_array_equal(live(fate, endless).died, alone.died)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Life(days=0),
        lambda: Life(score_from=60),
        lambda: Life(drift=0),
        lambda: Policy("p", "fade"),
        lambda: Policy("p", evict="mru"),
        lambda: Policy("p", capacity=0),
        lambda: Policy("p", time_scale=0),
        lambda: Policy("p", threshold=2),
        lambda: draw(SMALL, []),
        lambda: Life(days="60"),
        lambda: Life(drift=math.nan),
        lambda: Policy("p", capacity="16"),
        lambda: Policy("p", capacity=math.nan),
        lambda: Policy("p", time_scale="slow"),
        lambda: Policy("p", increment=math.nan),
        lambda: Policy("p", threshold="low"),
        lambda: draw(SMALL, [-1]),
        lambda: draw(SMALL, ["x"]),
        lambda: draw(SMALL, 3),
        lambda: scores(SMALL, [KEEP_ALL, KEEP_ALL], [1]),
        lambda: live(draw(SMALL, [1]), KEEP_ALL).items(2),
    ],
)
def test_bad_settings_are_refused(make):
    with pytest.raises(BadInput):
        make()
