"""Which events a layer fetches: the similarity buffer and the contiguity buffer (arXiv 2407.09450, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def similar(scores: np.ndarray, lengths: np.ndarray, budget: int) -> list[int]:
    """Events in falling score until ``budget`` tokens are used; the one that crosses it stays if that is nearer."""
    return filled(np.argsort(-scores, kind="stable"), lengths, budget)


def filled(order: np.ndarray, lengths: np.ndarray, budget: int) -> list[int]:
    """The head of ``order`` that fills ``budget`` tokens, as :func:`similar` has it."""
    used = lengths[order].cumsum()
    n = int(np.searchsorted(used, budget, side="right"))
    if n < len(order) and used[n] - budget <= budget - (used[n - 1] if n else 0):
        n += 1
    return order[:n].tolist()


def neighbours(chosen: Sequence[int], queue: Sequence[int], lengths: np.ndarray, budget: int, n: int) -> list[int]:
    """The contiguity buffer: b+1 then b-1 of every chosen event in score order, then what it held before.

    ``queue`` is the buffer of the pass before, newest first; the result is newest first and holds <= budget tokens.
    """
    taken, used, result = set(chosen), 0, []
    fresh = [index for b in chosen for index in (b + 1, b - 1) if 0 <= index < n]
    for index in [*fresh, *queue]:
        if index in taken:
            continue
        used += int(lengths[index])
        if used > budget:
            break
        taken.add(index)
        result.append(int(index))
    return result
