"""Every interval against a value computed by hand (or by its formula written out)."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from workbench import statistics as st
from workbench.errors import BadInput
from workbench.studies import Outcome

NAN = float("nan")


def test_wilson_is_the_score_interval() -> None:
    k, n, z = 8, 10, 1.959963984540054
    centre = (k / n + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(k / n * (1 - k / n) / n + z * z / (4 * n * n))
    assert st.wilson(k, n) == pytest.approx((0.8, centre - half, centre + half, 10))
    assert st.wilson(0, 5)[:2] == (0.0, 0.0)
    assert st.wilson(5, 5).high == pytest.approx(1.0)


@pytest.mark.parametrize(("k", "n"), [(3, 2), (-1, 4), (0, 0), (1.5, 4)])
def test_wilson_refuses_impossible_counts(k: float, n: int) -> None:
    with pytest.raises(BadInput, match="whole numbers"):
        st.wilson(k, n)  # type: ignore[arg-type]


def test_bootstrap_of_the_mean_matches_theory_and_its_seed() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    found = st.bootstrap(values)
    half = 1.96 * values.std(ddof=1) / math.sqrt(400)
    assert found.effect == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)
    assert st.bootstrap(values) == found
    assert st.bootstrap(values, seed=1) != found


def test_bootstrap_of_another_statistic_and_of_constant_values() -> None:
    assert st.bootstrap([1.0, 2, 3, 4, 100], np.median).effect == 3
    assert st.bootstrap([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0, 3)


def test_bootstrap_of_a_nearly_constant_sample_has_a_finite_interval() -> None:
    found = st.bootstrap([1.0] * 30 + [0.0])
    assert 0 < found.low <= found.effect <= found.high <= 1


def test_paired_bootstrap_takes_the_pairing() -> None:
    """The pairs differ by exactly 0.5 although the values spread widely."""
    a = np.arange(10.0)
    assert st.paired_bootstrap(a + 0.5, a) == (0.5, 0.5, 0.5, 10)
    with pytest.raises(BadInput, match="pairs"):
        st.paired_bootstrap([1, 2, 3], [1, 2])


def test_mcnemar_counts_discordant_pairs() -> None:
    a = [True] * 9 + [False] + [True] * 10
    b = [False] * 9 + [True] + [True] * 10
    found = st.mcnemar(a, b)
    assert (found.only_a, found.only_b, found.n) == (9, 1, 20)
    assert found.effect == pytest.approx(8 / 20)
    assert found.p == pytest.approx(2 * (1 + 10) / 1024)
    assert st.mcnemar([1, 0], [1, 0]).p == 1.0
    with pytest.raises(BadInput, match="yes/no"):
        st.mcnemar([0.5], [1])


def test_spearman_interval_by_hand() -> None:
    found = st.spearman_interval([1, 2, 3, 4, 5], [1, 2, 3, 5, 4])
    half = 1.959963984540054 * math.sqrt((1 + 0.81 / 2) / 2)
    assert found.effect == pytest.approx(0.9)
    assert (found.low, found.high) == pytest.approx(
        (math.tanh(math.atanh(0.9) - half), math.tanh(math.atanh(0.9) + half))
    )


def test_perfect_rank_correlation_still_has_an_interval() -> None:
    up = st.spearman_interval(range(8), range(8))
    assert up.effect == pytest.approx(1.0)
    assert 0 < up.low < 1 <= up.high + 1e-12
    down = st.spearman_interval(range(8), [-value for value in range(8)])
    assert down.effect == pytest.approx(-1.0)
    assert down.low <= down.effect + 1e-12 < down.high < 0


def test_slope_interval_by_hand() -> None:
    """y = 0, 1, 3 at x = 0, 1, 2: slope 3/2, squared residuals sum to 1/6, one degree of freedom."""
    found = st.slope_interval([0, 1, 2], [0, 1, 3])
    half = 12.706204736432095 * math.sqrt((1 / 6) / 2)
    assert found == pytest.approx((1.5, 1.5 - half, 1.5 + half, 3))


def test_log_slope_is_the_exponent() -> None:
    x = np.array([1, 2, 4, 8.0])
    assert st.slope_interval(x, 5 * x**2, log=True)[:3] == pytest.approx((2, 2, 2), abs=1e-6)
    with pytest.raises(BadInput, match="> 0"):
        st.slope_interval([0, 1, 2], [1, 2, 3], log=True)


def test_exposures_to_criterion() -> None:
    exposures, scores = [8, 1, 2, 4], [0.95, 0.1, 0.92, 0.5]
    assert st.exposures_to_criterion(exposures, scores) == 2
    assert st.exposures_to_criterion(exposures, scores, sustained=2) == math.inf
    assert st.exposures_to_criterion(exposures, scores, 0.4, sustained=3) == 2
    assert st.exposures_to_criterion(exposures, scores, 0.99) == math.inf


@pytest.mark.parametrize(
    ("low", "high", "threshold", "direction", "expected"),
    [
        (0.1, 0.3, 0, ">", "holds"),
        (-0.1, 0.3, 0, ">", "inconclusive"),
        (-0.3, -0.1, 0, ">", "not reproduced"),
        (0, 0, 0, ">", "not reproduced"),
        (0, 0, 0, ">=", "holds"),
        (0, 1, 0, ">", "inconclusive"),
        (0.1, 0.3, 0, "<", "not reproduced"),
        (0.1, 0.3, 0.5, "<", "holds"),
        (0.1, 0.5, 0.5, "<=", "holds"),
        (0.1, 0.5, 0.5, "<", "inconclusive"),
        (NAN, 0.5, 0, ">", "inconclusive"),
        (4.6, math.inf, 4.5, ">=", "holds"),
    ],
)
def test_verdict(low: float, high: float, threshold: float, direction: str, expected: str) -> None:
    assert st.verdict(low, high, threshold, direction) == expected


@pytest.mark.parametrize(
    "call",
    [
        lambda: st.verdict(1, 0),
        lambda: st.verdict(0, 1, 0, "=>"),
        lambda: st.bootstrap([1.0]),
        lambda: st.bootstrap([[1.0, 2.0]]),
        lambda: st.bootstrap([1.0, NAN]),
        lambda: st.bootstrap(["a", "b"]),
        lambda: st.bootstrap([1, 2], confidence=95),
        lambda: st.spearman_interval([1, 1, 1, 1], [1, 2, 3, 4]),
        lambda: st.spearman_interval([1, 2, 3, 4], [1, 2, 3]),
        lambda: st.slope_interval([2, 2, 2], [1, 2, 3]),
        lambda: st.exposures_to_criterion([1, 2], [1.0]),
        lambda: st.exposures_to_criterion([1], [1.0], sustained=0),
        lambda: st.group_means([1.0, 2.0], ["a"]),
        lambda: st.group_means([1.0, 2.0], [3.0, NAN]),
        lambda: st.group_means([], []),
        lambda: Outcome("maybe", 0, 0, 0, 1),
    ],
)
def test_bad_input_is_named(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BadInput):
        call()


def test_outcome_of_an_interval() -> None:
    outcome = Outcome.of(st.Interval(0.5, 0.2, 0.8, 40), 0.1, ">", note="groups")
    assert outcome == Outcome("holds", 0.5, 0.2, 0.8, 40, "groups", threshold=0.1)
    assert Outcome.unmeasured("no rows").verdict == "inconclusive"


def test_differences_that_all_agree_are_as_uncertain_as_what_was_never_seen():
    same = st.of_differences([0.0] * 40)
    assert (same.effect, same.n) == (0.0, 40)
    assert same.high == -same.low == pytest.approx(st.wilson(0, 40).high)
    assert st.of_differences([1.0] * 5).high == 1.0
    mixed = st.of_differences([0.0, 1.0, 0.0, 1.0, 0.0, -1.0] * 5)
    assert mixed.low < mixed.effect < mixed.high


def test_each_group_counts_once_however_many_values_it_has():
    assert st.group_means([1, 0, 1, 5], ["b", "b", "a", "b"]).tolist() == [1.0, 2.0]
    few, many = [st.group_means([0.0] * n + [1.0] + [0.5], [7] * n + [3] + [5]) for n in (1, 100)]
    assert few.tolist() == many.tolist() == [1.0, 0.5, 0.0]
    assert st.of_differences(few) == st.of_differences(many)


def test_the_weakest_outcome_decides_and_all_notes_are_kept():
    holds = Outcome("holds", 0.1, 0.0, 0.2, 3, "first", threshold=0.05)
    open_ = Outcome("inconclusive", 0.9, -1.0, 2.0, 4, "second")
    failed = [Outcome("not reproduced", effect, -1.0, 0.0, 5, "third") for effect in (-0.1, -0.2)]
    assert Outcome.weakest([holds, open_]).verdict == "inconclusive"
    found = Outcome.weakest([holds, *failed, open_])
    assert (found.verdict, found.effect, found.n) == ("not reproduced", -0.2, 5)
    assert found.note == "first; third; third; second"
    assert Outcome.weakest([holds], "all of it") == replace(holds, note="all of it")
