"""Indices by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.errors import BadInput, UnknownName
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
    if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
        raise BadInput(f"dim must be a whole number of at least 1, got {dim!r}")
    if name == "exact":
        return Exact(dim)
    from workbench.memory.retrieval.approximate import FaissHnsw, FaissIvf

    return FaissHnsw(dim) if name == "faiss-hnsw" else FaissIvf(dim)
