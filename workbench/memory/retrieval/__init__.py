"""Finding items by meaning or by words: encoders and indices behind one small protocol."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.memory.retrieval.cache import cached
    from workbench.memory.retrieval.encoders import SentenceEncoder, encoder
    from workbench.memory.retrieval.exact import Exact
    from workbench.memory.retrieval.indices import check_index, index
    from workbench.memory.retrieval.lexical import Bm25, words
    from workbench.memory.retrieval.protocol import Encoder, Index
    from workbench.memory.retrieval.tfidf import HashedTfidf

_LAZY = {
    "Bm25": "lexical",
    "Encoder": "protocol",
    "Exact": "exact",
    "HashedTfidf": "tfidf",
    "Index": "protocol",
    "SentenceEncoder": "encoders",
    "cached": "cache",
    "check_index": "indices",
    "encoder": "encoders",
    "index": "indices",
    "words": "lexical",
}

__all__ = [
    "Bm25",
    "Encoder",
    "Exact",
    "HashedTfidf",
    "Index",
    "SentenceEncoder",
    "cached",
    "check_index",
    "encoder",
    "index",
    "words",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
