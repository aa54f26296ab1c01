"""Intervals and verdicts: every claim of a study is judged by an interval, never by a bare number.

All resampling is seeded. Where scipy has the method it is scipy's; the closed forms name their source.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from workbench.errors import BadInput

if TYPE_CHECKING:
    import numpy as np

HOLDS, NOT_REPRODUCED, INCONCLUSIVE = "holds", "not reproduced", "inconclusive"
VERDICTS = (HOLDS, NOT_REPRODUCED, INCONCLUSIVE)
DIRECTIONS = (">", ">=", "<", "<=")

__all__ = [
    "DIRECTIONS",
    "HOLDS",
    "INCONCLUSIVE",
    "NOT_REPRODUCED",
    "VERDICTS",
    "Interval",
    "McNemar",
    "bootstrap",
    "exposures_to_criterion",
    "group_means",
    "mcnemar",
    "paired_bootstrap",
    "slope_interval",
    "spearman_interval",
    "t_interval",
    "verdict",
    "wilson",
]


class Interval(NamedTuple):
    """An estimate with its confidence interval; ``n`` is the number of independent observations."""

    effect: float
    low: float
    high: float
    n: int


class McNemar(NamedTuple):
    """Paired yes/no outcomes: ``only_a`` and ``only_b`` are the discordant pairs, ``p`` the exact two-sided p-value.

    ``effect`` is the difference of the two rates (a minus b).
    """

    only_a: int
    only_b: int
    effect: float
    p: float
    n: int


def wilson(k: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson score interval of a proportion of ``k`` successes in ``n`` trials (scipy's ``binomtest``)."""
    from scipy.stats import binomtest

    if n < 1 or not 0 <= k <= n or int(k) != k or int(n) != n:
        raise BadInput(f"wilson(k={k}, n={n}) needs whole numbers with 0 <= k <= n and n >= 1")
    interval = binomtest(int(k), int(n)).proportion_ci(_level(confidence), method="wilson")
    return Interval(k / n, float(interval.low), float(interval.high), int(n))


def bootstrap(
    values: Any,
    statistic: Callable[..., Any] | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 9_999,
    seed: int = 0,
) -> Interval:
    """Bias-corrected accelerated bootstrap interval of ``statistic`` (default: the mean; called as ``f(x, axis=-1)``).

    Values that are all equal have no spread to resample: the interval is then that one point.
    """
    import numpy as np
    from scipy import stats

    sample = _column("values", values, least=2)
    function = np.mean if statistic is None else statistic
    effect = float(function(sample, axis=-1))
    if np.ptp(sample) == 0:
        return Interval(effect, effect, effect, len(sample))
    method = {"method": "BCa", "rng": np.random.default_rng(seed), "n_resamples": resamples, "batch": 1_000}
    with np.errstate(all="ignore"):
        interval = _bootstrap_or_percentile(stats, sample, function, _level(confidence), method, seed)
    return Interval(effect, float(interval.low), float(interval.high), len(sample))


def _bootstrap_or_percentile(
    stats: Any, sample: Any, function: Any, level: float, options: dict[str, Any], seed: int
) -> Any:
    """BCa is undefined when all resamples lie on one side (a near-constant sample); percentiles are not."""
    import warnings

    import numpy as np

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        interval = stats.bootstrap((sample,), function, confidence_level=level, **options).confidence_interval
        if np.isnan(interval.low) or np.isnan(interval.high):
            options = {**options, "method": "percentile", "rng": np.random.default_rng(seed)}
            interval = stats.bootstrap((sample,), function, confidence_level=level, **options).confidence_interval
    return interval


def paired_bootstrap(a: Any, b: Any, *, confidence: float = 0.95, resamples: int = 9_999, seed: int = 0) -> Interval:
    """Interval of mean(a - b) over pairs (the same items, seeds or groups under two treatments)."""
    first, second = _column("a", a, least=2), _column("b", b, least=2)
    if len(first) != len(second):
        raise BadInput(f"paired_bootstrap needs pairs; a has {len(first)} values and b has {len(second)}")
    return bootstrap(first - second, confidence=confidence, resamples=resamples, seed=seed)


def t_interval(values: Any, *, confidence: float = 0.95) -> Interval:
    """Student's t interval of the mean: for a handful of seeds, of which a bootstrap knows too little.

    >>> [round(x, 2) for x in t_interval([0.4, 0.5, 0.6])]
    [0.5, 0.25, 0.75, 3]
    """
    from scipy import stats

    sample = _column("values", values, least=2)
    mean, n = float(sample.mean()), len(sample)
    half = float(stats.t.ppf(0.5 + _level(confidence) / 2, n - 1) * sample.std(ddof=1) / math.sqrt(n))
    return Interval(mean, mean - half, mean + half, n)


def of_differences(differences: Any) -> Interval:
    """Interval of the mean of paired differences of shares, each in [-1, 1].

    A bootstrap; where all pairs agree it would have no width, and is as wide as other pairs may be rare (Wilson of 0
    in n).
    """
    import numpy as np

    values = _column("differences", differences, least=2)
    if np.ptp(values) > 0:
        return bootstrap(values)
    same, unseen = float(values[0]), wilson(0, len(values)).high
    return Interval(same, max(same - unseen, -1.0), min(same + unseen, 1.0), len(values))


def group_means(values: Any, groups: Any) -> np.ndarray:
    """One number a group (a person, a document), the mean of its values, in the order of the sorted group names.

    Several values of one group are not independent of each other: an interval takes the groups, each counting once.
    """
    import numpy as np

    column, names = _column("values", values, least=1), np.asarray(groups)
    if names.shape != column.shape:
        raise BadInput(f"group_means needs a group for each value; got {len(column)} values, groups {names.shape}")
    found, place = np.unique(names, return_inverse=True)
    if found.dtype.kind == "f" and np.isnan(found).any():
        raise BadInput(f"{int(np.isnan(names).sum())} of {len(names)} values have no group (NaN)")
    return np.asarray(np.bincount(place, column) / np.bincount(place))


def difference_of_means(first: Any, second: Any, *, resamples: int = 4_000, seed: int = 0) -> Interval:
    """Bootstrap interval of mean(first) - mean(second) for two independent samples, each resampled by itself."""
    import numpy as np

    a, b, rng = _column("first", first, least=2), _column("second", second, least=2), np.random.default_rng(seed)
    draws = [rng.choice(a, len(a)).mean() - rng.choice(b, len(b)).mean() for _ in range(resamples)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(float(a.mean() - b.mean()), float(low), float(high), len(a) + len(b))


def mcnemar(a: Any, b: Any) -> McNemar:
    """Exact McNemar test of two yes/no outcomes on the same items (a binomial test of the discordant pairs)."""
    from scipy.stats import binomtest

    first, second = _flags("a", a), _flags("b", b)
    if len(first) != len(second):
        raise BadInput(f"mcnemar needs pairs; a has {len(first)} values and b has {len(second)}")
    only_a, only_b = int((first & ~second).sum()), int((~first & second).sum())
    discordant = only_a + only_b
    p = float(binomtest(only_a, discordant).pvalue) if discordant else 1.0
    return McNemar(only_a, only_b, (only_a - only_b) / len(first), p, len(first))


def spearman_interval(x: Any, y: Any, *, confidence: float = 0.95) -> Interval:
    """Spearman's rank correlation with the Bonett-Wright interval (Psychometrika 2000, standard error of Fisher's z).

    A perfect correlation would give an interval of no width; it is therefore moved half a step of an adjacent rank
    swap towards zero before the interval is computed. Constant data have no rank order: BadInput.
    """
    import numpy as np
    from scipy import stats

    first, second = _column("x", x, least=4), _column("y", y, least=4)
    if len(first) != len(second):
        raise BadInput(f"spearman_interval needs pairs; x has {len(first)} values and y has {len(second)}")
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        raise BadInput("spearman_interval needs values that vary; x or y is constant")
    rho, n = float(stats.spearmanr(first, second).statistic), len(first)
    limit = 1 - 6 / (n * (n * n - 1))
    inner = min(max(rho, -limit), limit)
    half = _quantile(confidence) * math.sqrt((1 + inner * inner / 2) / (n - 3))
    low, high = math.tanh(math.atanh(inner) - half), math.tanh(math.atanh(inner) + half)
    return Interval(rho, min(low, rho), max(high, rho), n)


def slope_interval(x: Any, y: Any, *, log: bool = False, confidence: float = 0.95) -> Interval:
    """Least-squares slope of y on x with its t interval; ``log=True`` fits log y on log x (an exponent)."""
    import numpy as np
    from scipy import stats

    first, second = _column("x", x, least=3), _column("y", y, least=3)
    if len(first) != len(second):
        raise BadInput(f"slope_interval needs pairs; x has {len(first)} values and y has {len(second)}")
    if log and (first.min() <= 0 or second.min() <= 0):
        raise BadInput("slope_interval(log=True) needs x > 0 and y > 0")
    if log:
        first, second = np.log(first), np.log(second)
    if np.ptp(first) == 0:
        raise BadInput("slope_interval needs an x that varies")
    fit = stats.linregress(first, second)
    half = float(stats.t.ppf(0.5 + _level(confidence) / 2, len(first) - 2) * fit.stderr)
    return Interval(float(fit.slope), float(fit.slope) - half, float(fit.slope) + half, len(first))


def exposures_to_criterion(exposures: Any, scores: Any, criterion: float = 0.9, *, sustained: int = 1) -> float:
    """Smallest exposure count whose score reaches ``criterion`` and stays there for ``sustained`` measurements.

    ``inf`` when it is never reached. Measurements may come in any order; they are sorted by exposure count.
    """
    import numpy as np

    counts, values = _column("exposures", exposures, least=1), _column("scores", scores, least=1)
    if len(counts) != len(values):
        raise BadInput(f"exposures and scores differ in length: {len(counts)} and {len(values)}")
    if sustained < 1:
        raise BadInput(f"sustained={sustained} must be at least 1")
    order = np.argsort(counts, kind="stable")
    reached = values[order] >= criterion
    for start in range(len(reached) - sustained + 1):
        if reached[start : start + sustained].all():
            return float(counts[order][start])
    return math.inf


def verdict(low: float, high: float, threshold: float = 0.0, direction: str = ">") -> str:
    """Does "effect ``direction`` threshold" stand, given the interval [low, high]?

    *holds* when the whole interval satisfies it, *not reproduced* when no point of it does, else *inconclusive*
    (also for an interval with NaN: nothing was measured).
    """
    if direction not in DIRECTIONS:
        raise BadInput(f"direction {direction!r} is not one of {', '.join(DIRECTIONS)}")
    if math.isnan(low) or math.isnan(high) or math.isnan(threshold):
        return INCONCLUSIVE
    if low > high:
        raise BadInput(f"an interval needs low <= high, got [{low}, {high}]")
    if direction.startswith("<"):
        low, high, threshold = -high, -low, -threshold
    strict = len(direction) == 1
    if low > threshold or (not strict and low == threshold):
        return HOLDS
    if high < threshold or (strict and high == threshold):
        return NOT_REPRODUCED
    return INCONCLUSIVE


def _column(name: str, values: Any, *, least: int) -> np.ndarray:
    import numpy as np

    try:
        column = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise BadInput(f"{name} must be numbers: {error}") from error
    if column.ndim != 1 or len(column) < least:
        raise BadInput(f"{name} must be a flat sequence of at least {least} numbers, got shape {column.shape}")
    if not np.isfinite(column).all():
        raise BadInput(f"{name} has {int((~np.isfinite(column)).sum())} values that are not finite")
    return column


def _flags(name: str, values: Sequence[Any]) -> np.ndarray:
    column = _column(name, values, least=1)
    if not ((column == 0) | (column == 1)).all():
        raise BadInput(f"{name} must be yes/no values (True, False, 0, 1)")
    return column.astype(bool)


def _level(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise BadInput(f"confidence={confidence} must lie between 0 and 1")
    return float(confidence)


def _quantile(confidence: float) -> float:
    from scipy.stats import norm

    return float(norm.ppf(0.5 + _level(confidence) / 2))
