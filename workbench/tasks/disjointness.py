"""Set disjointness by hand: what order and a second pass cost a memory of fixed size, without any training.

Elements are random unit codes e_x in R^D; the memory of a set is their sum s = sum e_x, and e_x . s says whether x was
written (1 if it was, else 0 with a standard deviation of sqrt(written / D)). A stream brings a set A, then a set B; one
element is in both. A memory that sees the stream once has to write A, whatever its size. One that sees it twice knows
both sizes after the first pass and writes the smaller set in the second ("Just read twice", arXiv 2407.05483, section
3: the general problem of recall, reduced to set disjointness).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.checks import is_whole, whole
from workbench.errors import BadInput

if TYPE_CHECKING:
    import pandas as pd

PASSES = (1, 2)
#: Size of the vocabulary of elements, as in the paper's data.
VOCABULARY = 2_048


@dataclass(frozen=True)
class Sets:
    """Two sets of elements in the order of the stream; ``common`` is the one element of both."""

    first: tuple[int, ...]
    second: tuple[int, ...]
    common: int

    def swapped(self) -> Sets:
        """The same question with the other set first."""
        return Sets(self.second, self.first, self.common)

    def written(self, passes: int) -> tuple[int, ...]:
        """The set that a memory with room for one of them writes; equal sizes leave it at the first."""
        if _passes(passes) == 2 and len(self.second) < len(self.first):
            return self.second
        return self.first

    def asked(self, passes: int) -> tuple[int, ...]:
        return self.first if self.written(passes) is self.second else self.second


def draw_sets(first: int, second: int, rng: np.random.Generator, vocabulary: int = VOCABULARY) -> Sets:
    """Two random sets of the given sizes with exactly one element in common, at a random place of each.

    Raises BadInput for an empty set, or sets that together have more elements than the vocabulary.
    """
    _sizes(first, second, vocabulary)
    elements = rng.choice(vocabulary, first + second - 1, replace=False)
    a, b = rng.permutation(elements[:first]), rng.permutation(elements[first - 1 :])
    return Sets(tuple(map(int, a)), tuple(map(int, b)), int(elements[first - 1]))


def unit_codes(vocabulary: int, dim: int, rng: np.random.Generator) -> np.ndarray:
    """Random directions (vocabulary, dim), one an element, of length 1."""
    whole("dim", dim, more=" (entries of the memory)")
    codes = rng.standard_normal((vocabulary, dim))
    return codes / np.linalg.norm(codes, axis=1, keepdims=True)


def answer(codes: np.ndarray, sets: Sets, passes: int) -> int:
    """The asked element that the memory of the written set knows best."""
    _known(codes, sets)
    memory = codes[list(sets.written(passes))].sum(0)
    asked = np.asarray(sets.asked(passes))
    return int(asked[(codes[asked] @ memory).argmax()])


def accuracy(
    dims: tuple[int, ...] | list[int],
    sizes: list[Any] | tuple[Any, ...],
    trials: int,
    seed: int,
    vocabulary: int = VOCABULARY,
) -> pd.DataFrame:
    """Right or wrong for every dimension, pair of sizes and trial; both numbers of passes see the same sets and codes.

    Columns: dim, first, second, passes, trial, correct (0 or 1). Chance is 1 / (size of the asked set).
    """
    import pandas as pd

    whole("trials", trials)
    rng, rows = np.random.default_rng(seed), []
    for dim in dims:
        codes = unit_codes(vocabulary, dim, rng)
        for first, second in sizes:
            for trial in range(trials):
                sets = draw_sets(first, second, rng, vocabulary)
                for passes in PASSES:
                    right = float(answer(codes, sets, passes) == sets.common)
                    rows.append((dim, first, second, passes, trial, right))
    return pd.DataFrame(rows, columns=["dim", "first", "second", "passes", "trial", "correct"])


def trace(sets: Sets, passes: int, codes: np.ndarray) -> pd.DataFrame:
    """What the memory says of every element after every token: the strip of the order slider.

    Columns: step (token of the stream, from 0), token (element), from ("A" or "B"), pass, wrote (bool), element (one
    row each), score (e_x . s), sigma (standard deviation of the score of an element that was not written: the square
    root of the number written over D), held (bool: written so far), common (bool).
    """
    import pandas as pd

    _known(codes, sets)
    watched = list(dict.fromkeys([*sets.first, *sets.second]))
    writes, memory, held = set(sets.written(passes)), np.zeros(codes.shape[1]), list[int]()
    rows = []
    for step, (turn, name, token) in enumerate(_stream(sets, passes)):
        wrote = turn == passes and token in writes and name == _name(sets, passes)
        if wrote:
            memory, held = memory + codes[token], [*held, token]
        scores, sigma = codes[watched] @ memory, (len(held) / codes.shape[1]) ** 0.5
        rows += [
            (step, token, name, turn, wrote, x, float(score), sigma, x in held, x == sets.common)
            for x, score in zip(watched, scores)
        ]
    columns = ["step", "token", "from", "pass", "wrote", "element", "score", "sigma", "held", "common"]
    return pd.DataFrame(rows, columns=columns)


def _stream(sets: Sets, passes: int) -> list[tuple[int, str, int]]:
    """(pass, set, element) for every token."""
    named = (("A", sets.first), ("B", sets.second))
    return [(turn, name, token) for turn in range(1, passes + 1) for name, members in named for token in members]


def _name(sets: Sets, passes: int) -> str:
    return "A" if sets.written(passes) is sets.first else "B"


def _passes(passes: int) -> int:
    if passes not in PASSES:
        raise BadInput(f"passes={passes!r} must be 1 (the stream is seen once) or 2 (it is seen twice)")
    return passes


def _sizes(first: int, second: int, vocabulary: int) -> None:
    if not all(is_whole(size, 1) for size in (first, second)):
        raise BadInput(f"a set may not be empty: got sizes {first!r} and {second!r}; give whole numbers of at least 1")
    if first + second > vocabulary:
        raise BadInput(
            f"sets of {first} and {second} elements do not fit a vocabulary of {vocabulary}; "
            "make the sets smaller or the vocabulary larger"
        )


def _known(codes: np.ndarray, sets: Sets) -> None:
    highest = max(max(sets.first), max(sets.second))
    if np.ndim(codes) != 2 or highest >= len(codes):
        raise BadInput(
            f"codes must be (vocabulary, D) with a row for every element, up to {highest}, got {np.shape(codes)}: "
            "draw sets and codes for the same vocabulary"
        )
