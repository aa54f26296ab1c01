"""What exists of each paper, found in the tree: mechanism, study, notebook, reported and recorded numbers.

Nothing here is written down by hand and nothing heavy is imported: a mechanism is a module named by its slug in one of
the mechanism packages, or a ``register("slug")`` there; the others are files in their places.
"""

from __future__ import annotations

import ast
import functools
import gzip
import pkgutil
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from workbench.errors import UnknownName
from workbench.registry import slug_of
from workbench_datasets import files, recorded, reported
from workbench_datasets.papers import Paper, papers

PARTS = ("mechanism", "study", "notebook", "reported", "recorded")
_HOMES = ("workbench.memory", "workbench.models", "workbench.systems", "workbench.probes", "workbench_kernels")


@dataclass(frozen=True)
class Entry:
    """One paper and which of its five parts exist."""

    paper: Paper
    mechanism: bool
    study: bool
    notebook: bool
    reported: bool
    recorded: bool

    @property
    def complete(self) -> bool:
        return all(getattr(self, part) for part in PARTS)

    def to_json(self) -> dict[str, Any]:
        parts = {part: getattr(self, part) for part in PARTS}
        return {**asdict(self.paper), **parts, "complete": self.complete}


def entries() -> list[Entry]:
    """All papers in the order of the catalogue (by chapter)."""
    mechanisms, studied = _mechanisms(), _studies()
    return [_entry(paper, mechanisms, studied) for paper in papers().values()]


def entry(slug: str) -> Entry:
    """One paper; an unknown slug suggests the nearest."""
    if slug not in papers():
        raise UnknownName("paper", slug, papers())
    return _entry(papers()[slug], _mechanisms(), _studies())


def notebook_of(paper: Paper) -> Path:
    return files.notebooks_root() / paper.chapter / f"{paper.slug}.ipynb"


def _entry(paper: Paper, mechanisms: frozenset[str], studied: frozenset[str]) -> Entry:
    slug = paper.slug
    return Entry(
        paper,
        mechanism=slug in mechanisms,
        study=slug in studied,
        notebook=notebook_of(paper).is_file(),
        reported=_has_rows(reported.path(slug)),
        recorded=_has_rows(recorded.path(slug)),
    )


def _has_rows(path: Path) -> bool:
    """A header alone is no number."""
    if not path.is_file():
        return False
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        return sum(bool(line.strip()) for _, line in zip(range(2), file)) == 2


@functools.cache
def _mechanisms() -> frozenset[str]:
    found: set[str] = set()
    for home in _HOMES:
        for path in Path(import_module(home).__file__ or "").parent.rglob("*.py"):
            found.add(slug_of(path.stem))
            found.update(_registered(path.read_text(encoding="utf-8")))
    return frozenset(found | {point.name for point in metadata.entry_points(group="memory_workbench.memories")})


def _registered(source: str) -> set[str]:
    """Names in calls ``X.register("name")``; a docstring that mentions one does not count."""
    if ".register(" not in source:
        return set()
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return {
        call.args[0].value
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and call.func.attr == "register"
        and call.args
        and isinstance(call.args[0], ast.Constant)
        and isinstance(call.args[0].value, str)
    }


@functools.cache
def _studies() -> frozenset[str]:
    modules = pkgutil.iter_modules(import_module("workbench.studies").__path__)
    points = metadata.entry_points(group="memory_workbench.studies")
    return frozenset({slug_of(info.name) for info in modules} | {point.name for point in points})
