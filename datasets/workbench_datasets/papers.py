"""The catalogue of papers: ``datasets/catalogue.toml``, one table a paper, in the order of the chapters."""

from __future__ import annotations

import difflib
import functools
import tomllib
from dataclasses import dataclass

from workbench_datasets.files import files_root


@dataclass(frozen=True)
class Paper:
    """One paper; ``chapter`` is its folder under notebooks/, ``kind`` the sort of mechanism it brings."""

    slug: str
    title: str
    authors: str
    year: int
    link: str
    chapter: str
    kind: str


@functools.cache
def papers() -> dict[str, Paper]:
    """All papers by slug."""
    with (files_root() / "catalogue.toml").open("rb") as file:
        listed = tomllib.load(file)["paper"]
    return {entry["slug"]: Paper(**entry) for entry in listed}


def check_slug(slug: str) -> str:
    """The slug itself if the catalogue has it, else a ``ValueError`` with the nearest ones."""
    known = papers()
    if slug not in known:
        near = difflib.get_close_matches(str(slug).lower(), known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "`workbench papers` lists all"
        raise ValueError(f"there is no paper called {slug!r}; {hint}")
    return slug
