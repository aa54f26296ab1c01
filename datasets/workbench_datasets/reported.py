"""Numbers that the papers report, one CSV a paper: ``datasets/reported/<slug>.csv``.

Columns: ``table`` (where in the paper), ``item`` (row), ``metric``, ``value``, ``low``, ``high``, ``unit``,
``verified`` (somebody read it in the paper itself; unverified numbers are drawn hollow) and ``source``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from workbench_datasets.files import files_root
from workbench_datasets.papers import check_slug

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("table", "item", "metric", "value", "low", "high", "unit", "verified", "source")
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def path(slug: str) -> Path:
    return files_root() / "reported" / f"{slug}.csv"


def exists(slug: str) -> bool:
    return path(slug).is_file()


def load(slug: str) -> pd.DataFrame:
    """The reported numbers of a paper; empty (with all columns) when none were published or verified as yet.

    Raises ``ValueError`` for a slug that nobody knows, a missing column, or a ``verified`` that is no truth value.
    """
    import pandas as pd

    if not exists(slug):
        check_slug(slug)
        return pd.DataFrame(columns=list(COLUMNS))
    frame = pd.read_csv(path(slug), dtype={"table": str, "item": str, "metric": str, "unit": str, "source": str})
    missing = [name for name in COLUMNS if name not in frame]
    if missing:
        raise ValueError(
            f"{os.fspath(path(slug))} lacks the columns {', '.join(missing)}; it needs {', '.join(COLUMNS)}"
        )
    frame["verified"] = [_truth(slug, value) for value in frame["verified"]]
    return frame.loc[:, list(COLUMNS)]


def _truth(slug: str, value: object) -> bool:
    text = str(value).strip().lower()
    if text not in _TRUTH:
        raise ValueError(f"{path(slug)}: verified is {value!r}; legal values are true and false")
    return _TRUTH[text]
