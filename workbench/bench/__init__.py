"""Races of our kernels against every peer present: one module a table, found by its name.

>>> from workbench import bench
>>> bench.run("attention", quick=True)                                     # doctest: +SKIP
>>> bench.self_test("tiled", queries=1000, keys=1000, heads=8)             # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.bench.base import BENCHES, Bench, Case, Contender

if TYPE_CHECKING:
    from workbench.bench._runner import run
    from workbench.bench._self_test import self_test

_LAZY = {"run": "workbench.bench._runner", "self_test": "workbench.bench._self_test"}

__all__ = ["BENCHES", "Bench", "Case", "Contender", "run", "self_test"]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'workbench.bench' has no attribute {name!r}; it offers {', '.join(__all__)}")
