"""Comparing trained models: over seeds where there are several, over test sequences of one, and saying which."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from workbench import statistics
from workbench.studies import _trained_seeds as trained


def rows(values, models=3, units=4, noise=0.0, seed=0):
    """Values by variant; ``noise`` moves both variants of a unit alike, so that pairing takes it out again."""
    rng = np.random.default_rng(seed)
    shift = noise * rng.normal(size=(models, units))
    return pd.DataFrame(
        {"seed": 0, "variant": name, "model": str(m), "unit": str(u), "value": value + 0.01 * m + shift[m, u]}
        for name, value in values.items() for m in range(models) for u in range(units)
    )  # fmt: skip


def test_several_models_are_paired_by_seed():
    frame = rows({"a": 0.7, "b": 0.4}, noise=0.2)
    frame.loc[frame["variant"] == "a", "value"] += frame["model"].astype(int) * 0.1
    found = trained.paired(trained.wide(frame), "a", "b")
    expected = statistics.t_interval([0.3, 0.4, 0.5])
    assert found.interval == pytest.approx(expected)
    assert found.several
    assert found.over == trained.SEVERAL
    assert found.first - found.second == pytest.approx(0.4)


def test_one_model_is_compared_over_its_test_sequences_and_says_so():
    frame = rows({"a": 0.7, "b": 0.4}, models=1, units=20)
    frame.loc[frame["variant"] == "a", "value"] += frame["unit"].astype(int) % 2 * 0.1
    found = trained.paired(trained.wide(frame), "a", "b")
    assert found.interval == pytest.approx(statistics.of_differences(np.tile([0.3, 0.4], 10)), abs=1e-9)
    assert found.interval.low < 0.35 < found.interval.high
    assert not found.several
    assert found.over == trained.ONE_MODEL


def test_more_test_sequences_make_several_models_no_surer():
    """Groups of one model are no independent models: their number must not narrow the interval."""
    few, many = (trained.paired(trained.wide(rows({"a": 0.7, "b": 0.4}, units=n)), "a", "b") for n in (2, 50))
    assert few.interval.n == many.interval.n == 3


def test_models_of_two_runs_are_apart():
    frame = pd.concat([rows({"a": 0.7, "b": 0.4}, models=1).assign(seed=s) for s in (0, 1)])
    found = trained.paired(trained.wide(frame), "a", "b")
    assert found.several
    assert found.interval.n == 2


def test_what_only_one_variant_has_is_left_out():
    frame = rows({"a": 0.7, "b": 0.4})
    short = frame[~((frame["variant"] == "b") & (frame["model"] == "2"))]
    assert trained.paired(trained.wide(short), "a", "b").interval.n == 2
    assert trained.paired(trained.wide(frame[frame["variant"] == "a"]), "a", "b") is None
    assert trained.paired(trained.wide(frame.iloc[:0]), "a", "b") is None
    single = frame[(frame["model"] == "0") & (frame["unit"] == "0")]
    assert trained.paired(trained.wide(single), "a", "b") is None


def test_numbers_that_are_no_shares_bring_their_own_interval():
    frame = rows({"a": 5.0, "b": 3.0}, models=1, units=6)
    found = trained.paired(trained.wide(frame), "a", "b", alone=statistics.bootstrap)
    assert found.interval == pytest.approx((2.0, 2.0, 2.0, 6)), "of_differences would hold it within [-1, 1]"


def test_a_measure_of_each_model():
    frame = rows({"a": 0.5}, models=2).rename(columns={"unit": "group", "model": "unit"})

    def mean(own):
        return trained.Measured(float(own["value"].mean()), 0.04, 10)

    assert trained.by_model(frame, mean, model="unit") == statistics.t_interval([0.5, 0.51])
    one = trained.by_model(frame[frame["unit"] == "0"], mean, model="unit")
    assert (one.high - one.low) / 2 == pytest.approx(1.96 * 0.2)
    assert one.n == 10
    assert trained.by_model(frame, lambda own: None, model="unit") is None
    assert trained.by_model(frame, lambda own: trained.Measured(math.nan, 0.0, 1), model="unit") is None
    assert trained.Measured(0.5, 0.01, 4).minus(trained.Measured(0.2, 0.02, 5)) == pytest.approx((0.3, 0.03, 9))
