"""Indices by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.checks import whole
from workbench.errors import UnknownName
from workbench.memory.retrieval.exact import Exact

if TYPE_CHECKING:
    from workbench.memory.retrieval.protocol import Index

NAMES = ("exact", "faiss-hnsw", "faiss-ivf")


def check_index(name: str) -> str:
    """``name`` if there is such an index. Raises UnknownName."""
    if name not in NAMES:
        raise UnknownName("index", str(name), NAMES)
    return name


def index(name: str, dim: int) -> Index:
    """An empty index for vectors of width ``dim``: "exact" compares all, the FAISS ones compare some (an extra)."""
    check_index(name)
    dim = whole("dim", dim)
    if name == "exact":
        return Exact(dim)
    from workbench.memory.retrieval.approximate import FaissHnsw, FaissIvf

    return FaissHnsw(dim) if name == "faiss-hnsw" else FaissIvf(dim)
