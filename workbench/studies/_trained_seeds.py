"""How trained models are compared, in every study that trains some: over seeds, or over test sequences of one model.

With several trained models of a variant the interval is Student's t over the models, paired by seed. With one model of
each (the weights that ship) it comes from what is left to vary, the test sequences, and the note says that it holds
for these models alone.

Frames: ``variant``, ``value``, and of ``seed`` (of the run), ``model`` (the training seed) and ``unit`` (a group of
test sequences) those that there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from workbench import statistics
from workbench.statistics import Interval

if TYPE_CHECKING:
    import pandas as pd

#: What a note says where the interval is not over models.
ONE_MODEL = "one trained model of each: the interval is over test sequences and says nothing of others"
SEVERAL = "over trained seeds"
UNIT = "unit"


class Measured(NamedTuple):
    """A number of one trained model and its variance by the finite number of test sequences ``n``."""

    value: float
    variance: float
    n: int

    def minus(self, other: Measured) -> Measured:
        """The difference of two independent numbers."""
        return Measured(self.value - other.value, self.variance + other.variance, self.n + other.n)


class Paired(NamedTuple):
    """Means of two variants, the interval of first minus second, and whether it is over several models."""

    first: float
    second: float
    interval: Interval
    several: bool

    @property
    def over(self) -> str:
        return SEVERAL if self.several else ONE_MODEL


def wide(rows: pd.DataFrame) -> pd.DataFrame:
    """A column a variant, a row a model and group of test sequences (and seed of the run)."""
    keys = [name for name in ("seed", "model", UNIT) if name in rows]
    return rows.pivot_table(index=keys, columns="variant", values="value")


def complete(table: pd.DataFrame, variants: Sequence[str]) -> pd.DataFrame | None:
    """The rows that all of these variants have; None where there are fewer than two."""
    if not set(variants) <= set(table):
        return None
    both = table[list(variants)].dropna()
    return both if len(both) > 1 else None


def of_models(values: pd.Series) -> pd.Series:
    """One number a model: means over its groups of test sequences."""
    return values.groupby(level=[name for name in values.index.names if name != UNIT]).mean()


def several(table: pd.DataFrame) -> bool:
    """Whether rows of ``wide`` belong to more than one model."""
    return table.groupby(level=[name for name in table.index.names if name != UNIT]).ngroups > 1


def over_models(values: pd.Series, alone: Callable[[Any], Interval] = statistics.of_differences) -> Interval:
    """Interval of the mean of a column of ``wide``: t over models, or ``alone`` over the groups of the one model.

    ``alone`` is made for differences of shares; numbers of another kind bring their own (``statistics.bootstrap``).
    """
    models = of_models(values)
    return statistics.t_interval(models.to_numpy()) if len(models) > 1 else alone(values.to_numpy())


def paired(
    table: pd.DataFrame, first: str, second: str, alone: Callable[[Any], Interval] = statistics.of_differences
) -> Paired | None:
    """``first`` minus ``second`` of a table of ``wide``; None where fewer than two pairs were measured."""
    both = complete(table, (first, second))
    if both is None:
        return None
    a, b = both[first], both[second]
    return Paired(float(a.mean()), float(b.mean()), over_models(a - b, alone), several(both))


def by_model(
    rows: pd.DataFrame, measure: Callable[[pd.DataFrame], Measured | None], model: str = "model"
) -> Interval | None:
    """``measure`` of each model's rows: t over models; of one model, the normal interval of its own variance.

    None where no model could be measured (``measure`` gave None, or a number that is not finite).
    """
    made = [found for _, own in rows.groupby(model) if (found := measure(own)) is not None]
    made = [found for found in made if math.isfinite(found.value)]
    if not made:
        return None
    if len(made) > 1:
        return statistics.t_interval([found.value for found in made])
    (one,) = made
    half = 1.96 * math.sqrt(one.variance)
    return Interval(one.value, one.value - half, one.value + half, one.n)
