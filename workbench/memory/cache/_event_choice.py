"""Which events a layer fetches: the similarity buffer and the contiguity buffer (arXiv 2407.09450, section 3.3).

Every layer asks this for every token it decodes, so nothing here loops over events.
"""

from __future__ import annotations

import numpy as np


def similar(scores: np.ndarray, lengths: np.ndarray, budget: int) -> np.ndarray:
    """Events in falling score until ``budget`` tokens are used; the one that crosses it stays if that is nearer."""
    return filled(np.argsort(-scores, kind="stable"), lengths, budget)


def filled(order: np.ndarray, lengths: np.ndarray, budget: int) -> np.ndarray:
    """The head of ``order`` that fills ``budget`` tokens, as :func:`similar` has it."""
    used = lengths[order].cumsum()
    n = int(used.searchsorted(budget, side="right"))
    if n < len(order) and used[n] - budget <= budget - (used[n - 1] if n else 0):
        n += 1
    return order[:n]


def neighbours(chosen: np.ndarray, queue: np.ndarray, lengths: np.ndarray, budget: int) -> np.ndarray:
    """The contiguity buffer: b+1 then b-1 of every chosen event in score order, then what it held before.

    ``queue`` is the buffer of the pass before, newest first; the result is newest first and holds <= budget tokens.
    """
    n = len(chosen)
    wanted = np.empty(2 * n + len(queue), dtype=np.int64)
    wanted[: 2 * n : 2], wanted[1 : 2 * n : 2], wanted[2 * n :] = chosen + 1, chosen - 1, queue
    order = np.arange(len(wanted))
    first = np.empty(len(lengths) + 1, dtype=np.int64)  # read only where written; its last place stands for -1 too
    first[wanted[::-1]] = order[::-1]  # the last one written stays: where it is named first
    first[chosen] = first[-1] = -1
    wanted = wanted[first[wanted] == order]
    return wanted[: lengths[wanted].cumsum().searchsorted(budget, side="right")]
