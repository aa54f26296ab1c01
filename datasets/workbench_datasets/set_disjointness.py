"""Set disjointness: a stream tells set A, then set B; which element do they share?

The data of Just Read Twice (Arora et al. 2024, arXiv 2407.05483, section 3): a causal model of one pass needs memory
for the first set, so the order of a small and a large set decides how hard the same question is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workbench_datasets._checks import whole
from workbench_datasets.streams import IGNORE, Streams, blank, drawn, generator, in_blocks, join

__all__ = [
    "ANSWER",
    "FIRST_ELEMENT",
    "MASK",
    "PREFIX",
    "SEPARATOR",
    "answer_positions",
    "set_disjointness",
    "sizes_pool",
]

MASK, PREFIX, SEPARATOR, ANSWER = 0, 1, 2, 3  # 0 also pads
FIRST_ELEMENT = 4


def set_disjointness(
    n: int,
    first: int,
    second: int,
    *,
    vocabulary: int = 2048,
    passes: int = 1,
    seed: int = 0,
    split: str = "train",
) -> Streams:
    """``n`` sequences ``[1] A [2] B [3]``; the element that A and B share is the target at the last position.

    Args:
        first, second: |A| and |B|. Elements are ids 4..V-1, different within and between the sets, except that one
            random place of B is overwritten by one random element of A: the intersection has exactly one element.
        passes: how often ``[1] A [2] B`` is told before the ``[3]`` (2: the JRT prompt).

    ``distance`` counts from the shared element's place in A (of the last pass); ``category`` is "first,second"; chance:
    1/min(first, second): guessing an element of the shorter set.

    Raises ValueError for an empty set, or sets that need more elements than the vocabulary has.
    """
    whole("n", n)
    whole("first", first)
    whole("second", second)
    whole("passes", passes)
    elements = whole("vocabulary", vocabulary, FIRST_ELEMENT + 2) - FIRST_ELEMENT
    if first + second > elements:
        raise ValueError(
            f"|A| + |B| = {first + second} elements: a vocabulary of {vocabulary} has {elements} (ids from 4 on)"
        )
    rng = generator("set-disjointness", seed, split, first, second, vocabulary, passes)
    return in_blocks(n, elements, lambda rows: _made(rng, rows, first, second, vocabulary, passes))


def _made(rng: np.random.Generator, rows: int, first: int, second: int, vocabulary: int, passes: int) -> Streams:
    once = first + second + 2  # [1] A [2] B
    elements = drawn(rng, rows, first + second, vocabulary - FIRST_ELEMENT) + FIRST_ELEMENT
    a, b = elements[:, :first], elements[:, first:].copy()
    at = rng.integers(0, first, (rows, 1))
    shared = np.take_along_axis(a, at, 1)
    np.put_along_axis(b, rng.integers(0, second, (rows, 1)), shared, 1)
    tables = blank(rows, passes * once + 1, ANSWER)
    mark = np.full((rows, 1), PREFIX), np.full((rows, 1), SEPARATOR)
    tables["ids"][:, :-1] = np.tile(np.concatenate([mark[0], a, mark[1], b], 1), (1, passes))
    tables["targets"][:, -1] = shared[:, 0]
    tables["distance"][:, -1] = once - 1 - at[:, 0]
    tables["category"][:, -1] = 0
    return Streams(**tables, categories=(f"{first},{second}",), vocabulary=vocabulary, chance=1 / min(first, second))


def sizes_pool(
    sizes: Sequence[tuple[int, int]],
    each: int,
    *,
    vocabulary: int = 2048,
    length: int | None = None,
    side: str = "right",
    seed: int = 0,
    split: str = "train",
) -> Streams:
    """``each`` sequences of every pair of sizes, shuffled together and padded to one length (see ``join``)."""
    if not sizes or not all(isinstance(pair, Sequence) and len(pair) == 2 for pair in sizes):
        raise ValueError(f"sizes={sizes!r}: expected one or more pairs such as (4, 16)")
    parts = [set_disjointness(each, a, b, vocabulary=vocabulary, seed=seed, split=split) for a, b in sizes]
    return join(parts, length=length, side=side, seed=seed)


def answer_positions(pool: Streams) -> np.ndarray:
    """Position of the ``[3]`` in every sequence, (N,): the prefix length M of prefix linear attention is one more."""
    return (pool.targets != IGNORE).argmax(1)
