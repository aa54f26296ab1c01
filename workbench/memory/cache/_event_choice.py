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
    n = int(np.searchsorted(used, budget, side="right"))
    if n < len(order) and used[n] - budget <= budget - (used[n - 1] if n else 0):
        n += 1
    return order[:n]


def neighbours(chosen: np.ndarray, queue: np.ndarray, lengths: np.ndarray, budget: int) -> np.ndarray:
    """The contiguity buffer: b+1 then b-1 of every chosen event in score order, then what it held before.

    ``queue`` is the buffer of the pass before, newest first; the result is newest first and holds <= budget tokens.
    """
    around = np.stack([chosen + 1, chosen - 1], axis=1).ravel()
    wanted = np.concatenate([around[(around >= 0) & (around < len(lengths))], queue])
    first = np.full(len(lengths), len(wanted))
    first[wanted[::-1]] = np.arange(len(wanted))[::-1]  # the last one written stays: where it is named first
    first[chosen] = -1
    wanted = wanted[first[wanted] == np.arange(len(wanted))]
    return wanted[: np.searchsorted(lengths[wanted].cumsum(), budget, side="right")]
