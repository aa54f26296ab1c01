"""TF-IDF vectors by hashing: an encoder that needs no model, no corpus and no network."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from workbench.checks import whole
from workbench.errors import BadInput

#: Words that say nothing about a text's subject; left out before words and pairs of words are counted.
_FUNCTION_WORDS = """
a about after all also am an and any are as at be because been before being but by can could did do does
doing each for from had has have having he her here hers him his how i if in into is it its just me more most
my no nor not of on once only or other our ours out over own same she should so some such than that the their
theirs them then there these they this those through to too under until up very was we were what when where
which while who whom whose why will with would you your yours
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())


class HashedTfidf:
    """Words and pairs of neighbouring words, hashed into ``dim`` places, weighted 1 + log(count), of length 1.

    Without ``corpus`` a text's vector depends on the text alone. With a corpus each place is also weighted by its
    inverse document frequency there, log((1 + n) / (1 + df)) + 1. A text without content words gives a row of zeros.
    """

    label = "TF-IDF (no sentence encoder)"

    def __init__(self, dim: int = 4096, corpus: Sequence[str] | None = None):
        self.dim = whole("dim", dim, 2, 2**20)
        self.name = f"tfidf-{dim}"
        self._idf: np.ndarray | None = None
        if corpus is not None:
            texts = list(corpus)
            if not texts or not all(isinstance(text, str) for text in texts):
                raise BadInput("the corpus must be a list of at least one text; leave it out to weight all words alike")
            self._idf = self._fit(texts)
            self.name += "-" + hashlib.sha256(self._idf.tobytes()).hexdigest()[:16]

    @cached_property
    def _vectorizer(self) -> Any:
        from sklearn.feature_extraction.text import HashingVectorizer

        return HashingVectorizer(
            n_features=self.dim,
            ngram_range=(1, 2),
            stop_words=sorted(FUNCTION_WORDS),
            token_pattern=r"(?u)\b\w+\b",
            alternate_sign=False,
            norm=None,
            dtype=np.float32,
        )

    def _fit(self, texts: list[str]) -> np.ndarray:
        seen = self._vectorizer.transform(texts)
        counts = np.bincount(seen.indices, minlength=self.dim)
        return (np.log((1 + len(texts)) / (1 + counts)) + 1).astype(np.float32)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """(n, dim) float32 with rows of length one, or of zeros."""
        if not len(texts):
            return np.zeros((0, self.dim), dtype=np.float32)
        counts = self._vectorizer.transform(texts)
        counts.data = 1 + np.log(counts.data)
        made = counts.toarray()
        if self._idf is not None:
            made *= self._idf
        length = np.linalg.norm(made, axis=1, keepdims=True)
        return made / np.where(length == 0, 1, length)
