"""Phrases by their letters: an encoder for linking and synonymy that needs no language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from workbench.checks import whole

if TYPE_CHECKING:
    import numpy as np


class LetterTriples:
    """Counts of three-letter sequences (a space before and after each word), hashed to ``dim`` columns, unit rows.

    Finds spellings ("Lisbon", "Lisboa"; "J. Castrel", "Jorin Castrel"), not meanings ("UK", "Britain"). Cosines are
    off by about 1 / sqrt(dim) through chance collisions. Deterministic, thousands of phrases a second.
    """

    label = "letter triples (no sentence encoder)"

    def __init__(self, dim: int = 1024):
        self.dim, self.name = whole("dim", dim, 16), f"letter-triples-{dim}"
        self._hashing: Any = None

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """(n, dim) float32; a text without letters gives a row of zeros."""
        import numpy as np

        if not len(texts):
            return np.zeros((0, self.dim), dtype=np.float32)
        if self._hashing is None:
            from sklearn.feature_extraction.text import HashingVectorizer

            self._hashing = HashingVectorizer(
                analyzer="char_wb", ngram_range=(3, 3), n_features=self.dim, norm="l2", dtype=np.float32
            )
        return np.asarray(self._hashing.transform(list(texts)).toarray(), dtype=np.float32)
