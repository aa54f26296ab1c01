"""Recorded runs, one CSV a paper: ``datasets/recorded/<slug>.csv``, or ``<slug>.csv.gz`` where there are many rows.

``workbench run --record`` is the only writer; ``workbench bench NAME --record`` writes ``bench-NAME`` in the same form.

Every row carries its provenance (study, scale, seed, device, libraries, code, date, wall_seconds).
``WORKBENCH_RECORDED`` names another folder to write to and to read first, for runs that are not to be shipped.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from workbench_datasets.files import files_root
from workbench_datasets.papers import check_slug

if TYPE_CHECKING:
    import pandas as pd


ENDINGS = (".csv", ".csv.gz")


def folder() -> Path:
    """Where ``--record`` writes."""
    own = os.environ.get("WORKBENCH_RECORDED")
    return Path(own) if own else files_root() / "recorded"


def path(slug: str) -> Path:
    """The file that holds a study's recorded runs (in ``WORKBENCH_RECORDED`` if it is there, else the shipped one)."""
    names = [place / f"{slug}{ending}" for place in (folder(), files_root() / "recorded") for ending in ENDINGS]
    return next((name for name in names if name.is_file()), names[len(ENDINGS)])


def exists(slug: str) -> bool:
    return path(slug).is_file()


def scales(slug: str) -> list[str]:
    """The scales that were recorded, in the order of the file."""
    import pandas as pd

    return list(pd.read_csv(path(slug), usecols=["scale"], dtype=str)["scale"].unique()) if exists(slug) else []


def load(slug: str, scale: str = "full") -> pd.DataFrame:
    """The recorded rows of one scale, without the columns that only other scales use; empty when nothing was recorded.

    Raises ``ValueError`` for a slug that nobody knows.
    """
    import pandas as pd

    if not exists(slug):
        if not slug.startswith("bench-"):
            check_slug(slug)
        return pd.DataFrame()
    frame = pd.read_csv(path(slug), low_memory=False)
    rows = frame.loc[frame["scale"].astype(str) == scale]
    return (
        rows.dropna(axis="columns", how="all").reset_index(drop=True).infer_objects() if len(rows) else pd.DataFrame()
    )
