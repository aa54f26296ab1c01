"""What Sparsey claims and how each claim is tested; thresholds are the card's.

Every test reads the study's tidy frame: experiment, selection, setting, x, unit, metric, value (and the runner's seed).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from workbench import statistics
from workbench.studies.base import Claim, Outcome

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

SOURCE, PAGE = "arXiv 1710.07829", "arXiv 1710.07829; thresholds of our own for scikit-learn's digits"
#: The item that the similarity curve is read at: a mac that already holds 21 of them.
FILLED = "stored=21"


def _rows(frame: pd.DataFrame, experiment: str, metric: str, select: str | None = None) -> pd.DataFrame:
    rows = frame[(frame.experiment == experiment) & (frame.metric == metric)]
    return rows if select is None else rows[rows.selection == select]


def _curves(frame: pd.DataFrame, select: str) -> np.ndarray:
    """Code intersections (trials, shared inputs) of the controlled test."""
    rows = _rows(frame, "similarity", "intersection", select)
    rows = rows[rows.setting == FILLED]
    keys = [key for key in ("seed", "unit") if key in rows]
    return rows.pivot_table(index=keys, columns="x", values="value").to_numpy()


def similar_codes(frame: pd.DataFrame) -> Outcome:
    """Spearman of the mean curve; trials are resampled."""
    import numpy as np
    from scipy.stats import rankdata

    curves = _curves(frame, "csa")
    if len(curves) < 2:
        return Outcome.unmeasured("the controlled similarity test did not run")

    def rank_correlation(mean: np.ndarray) -> float:
        return float(np.corrcoef(rankdata(mean), np.arange(len(mean)))[0, 1])

    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(curves), (2_000, len(curves)))
    spread = np.sort([rank_correlation(curves[draw].mean(0)) for draw in draws])
    low, high = spread[[50, 1_949]]
    effect = rank_correlation(curves.mean(0))
    note = "mean intersection " + " ".join(f"{value:.2f}" for value in curves.mean(0))
    return Outcome.of(statistics.Interval(effect, float(low), float(high), len(curves)), 0.9, ">", note)


def single_trial(frame: pd.DataFrame) -> Outcome:
    rows = frame[frame.experiment == "single trial"]
    if not len(rows):
        return Outcome.unmeasured("the single-trial test did not run")
    keys = [key for key in ("seed", "unit") if key in rows]
    both = rows.pivot_table(index=keys, columns="metric", values="value").min(axis=1)
    return Outcome.of(statistics.wilson(int(both.sum()), len(both)), 0.95, ">", "same code and G = 1, 5 items stored")


def fixed_time(frame: pd.DataFrame) -> Outcome:
    """Growth of the time to store one item, as a share of the mean per 100 items held, is below 1 %."""
    rows = _rows(frame, "time", "store")
    if len(rows) < 20:
        return Outcome.unmeasured("storing was not timed")
    usual = rows[rows.value <= rows.value.quantile(0.99)]  # a pause of the machine is not the memory's
    slope = statistics.slope_interval(usual.x, usual.value)
    share = 100 / usual.value.mean()
    grows = statistics.Interval(share * slope.effect, share * slope.low, share * slope.high, slope.n)
    note = f"{usual.value.mean():.2f} ms an item; share of the mean per 100 items held"
    return Outcome.of(grows, 0.01, "<", note)


def noise_control(frame: pd.DataFrame) -> Outcome:
    """Rise of the intersection from nothing shared to everything shared, CSA minus random codes."""
    csa, random = _curves(frame, "csa"), _curves(frame, "random")
    if len(csa) < 2 or len(random) < 2:
        return Outcome.unmeasured("the controlled similarity test did not run for both")
    rise, flat = csa[:, -1] - csa[:, 0], random[:, -1] - random[:, 0]
    note = f"rise {rise.mean():.2f} with the CSA, {flat.mean():.2f} with random codes"
    return Outcome.of(statistics.paired_bootstrap(rise, flat), 0.0, ">", note)


def _digits_difference(
    metric: str, threshold: float, direction: str, sign: float = 1.0
) -> Callable[[pd.DataFrame], Outcome]:
    def test(frame: pd.DataFrame) -> Outcome:
        rows = _rows(frame, "digits", metric)
        keys = [key for key in ("seed", "x", "unit") if key in rows]
        wide = rows.pivot_table(index=keys, columns="selection", values="value")
        if len(wide) < 2 or not {"csa", "random"} <= set(wide):
            return Outcome.unmeasured(f"{metric} was not measured for both kinds of codes")
        note = f"{metric}: CSA {wide['csa'].mean():.3f}, random codes {wide['random'].mean():.3f}"
        interval = statistics.bootstrap(sign * (wide["csa"] - wide["random"]).to_numpy())
        return Outcome.of(interval, threshold, direction, note)

    return test


def accurate(frame: pd.DataFrame) -> Outcome:
    rows = _rows(frame, "digits", "class units", "csa")
    if len(rows) < 2:
        return Outcome.unmeasured("no digits were classified")
    pixels = _rows(frame, "digits", "nearest image", "csa").value.mean()
    note = f"raw-pixel 1-NN on the same images: {pixels:.3f}"
    return Outcome.of(statistics.bootstrap(rows.value.to_numpy()), 0.72, ">=", note)


def trade_off(frame: pd.DataFrame) -> Outcome:
    """Recall of random codes minus that of the CSA where one mac holds 100 items or more."""
    rows = _rows(frame, "capacity", "recall")
    rows = rows[rows.x >= 100]
    keys = [key for key in ("seed", "x", "unit") if key in rows]
    wide = rows.pivot_table(index=keys, columns="selection", values="value")
    if len(wide) < 2 or not {"csa", "random"} <= set(wide):
        return Outcome.unmeasured("capacity was not measured")
    note = f"recall from 100 items on: random codes {wide['random'].mean():.3f}, CSA {wide['csa'].mean():.3f}"
    return Outcome.of(statistics.paired_bootstrap(wide["random"], wide["csa"]), 0.0, ">=", note)


CLAIMS = (
    Claim("C1", "code intersection rises with input overlap: Spearman of the mean curve > .9", SOURCE, similar_codes),
    Claim("C2", "one exposure: the same code again and G = 1, in more than 95 % of items", SOURCE, single_trial),
    Claim("C3", "time to store grows by less than 1 % per 100 items held", SOURCE, fixed_time),
    Claim("C4", "noise control matters: similarity of codes, CSA > random codes", SOURCE, noise_control),
    Claim("C5", "digits: rank correlation of image and code similarity, CSA - random > .02", PAGE,
          _digits_difference("code similarity", 0.02, ">")),
    Claim("C6", "digits: fewer distinct codes a mac (a basis forms), random - CSA > 0", PAGE,
          _digits_difference("distinct codes", 0.0, ">", -1.0)),
    Claim("C7", "digits: class accuracy not more than .01 below random codes", PAGE,
          _digits_difference("class units", -0.01, ">=")),
    Claim("C8", "digits: class accuracy >= .72", PAGE, accurate),
    Claim("C9", "the trade-off: random codes store at least as much as the CSA", SOURCE, trade_off),
)  # fmt: skip
