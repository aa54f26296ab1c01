"""The rows of a study's tidy frame that a picture is drawn from, or an error that says what is missing."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from workbench.errors import BadInput
from workbench.views._check import has_columns

if TYPE_CHECKING:
    import pandas as pd


def study_rows(
    view: str, frame: pd.DataFrame, *, experiments: Collection[str] = (), metrics: Collection[str] = ()
) -> pd.DataFrame:
    """The rows of these experiments and metrics (of all, where none is named); BadInput where there are none."""
    wanted = {"experiment": experiments, "metric": metrics}
    has_columns(view, frame, *(column for column, names in wanted.items() if names), "value")
    rows = frame
    for column, names in wanted.items():
        rows = rows[rows[column].isin(list(names))] if names else rows
    if not len(rows):
        named = ", ".join(f"{column} {' or '.join(names)}" for column, names in wanted.items() if names)
        raise BadInput(f"{view}: the frame has no rows of {named}, so there is nothing to draw")
    return rows
