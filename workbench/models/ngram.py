"""An interpolated Kneser-Ney n-gram model on token ids: the baseline a neural language model has to beat.

Kneser and Ney 1995, the interpolated form with one discount for all orders. An n-gram is packed into one 64-bit word,
so counting is sorting; nothing is stored in Python objects.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workbench.errors import BadInput


@dataclass(frozen=True)
class _Order:
    """Sorted n-grams with their counts, and for each context its total and its number of distinct followers."""

    grams: np.ndarray
    counts: np.ndarray
    contexts: np.ndarray
    totals: np.ndarray
    followers: np.ndarray


def _find(sorted_keys: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    at = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return at, sorted_keys[at] == keys


class KneserNey:
    """``fit`` on a token stream, then ``logprob`` of every token of another (nats)."""

    def __init__(self, tokens: np.ndarray, *, vocabulary: int, order: int = 5, discount: float = 0.75):
        self.bits, self.order, self.discount, self.vocabulary = (
            int(vocabulary - 1).bit_length(),
            order,
            discount,
            vocabulary,
        )
        if order < 1 or self.bits * order > 63:
            raise BadInput(f"order={order}: expected 1 to {63 // self.bits} for a vocabulary of {vocabulary}")
        if len(tokens) < order:
            raise BadInput(f"{len(tokens)} tokens: expected at least {order}")
        self.orders = self._count(np.asarray(tokens, np.uint64))

    def _pack(self, tokens: np.ndarray, n: int) -> np.ndarray:
        """Every window of n tokens as one number, the first token in the highest bits."""
        packed = np.zeros(len(tokens) - n + 1, np.uint64)
        for index in range(n):
            packed = (packed << np.uint64(self.bits)) | tokens[index : len(tokens) - n + 1 + index]
        return packed

    def _count(self, tokens: np.ndarray) -> list[_Order]:
        grams, counts = np.unique(self._pack(tokens, self.order), return_counts=True)
        orders = [self._order(grams, counts)]
        for n in range(self.order - 1, 0, -1):  # a lower order counts in how many contexts a gram was seen
            mask = np.uint64((1 << (self.bits * n)) - 1)
            grams, counts = np.unique(grams & mask, return_counts=True)
            orders.append(self._order(grams, counts))
        return orders[::-1]

    def _order(self, grams: np.ndarray, counts: np.ndarray) -> _Order:
        contexts, first, followers = np.unique(grams >> np.uint64(self.bits), return_index=True, return_counts=True)
        return _Order(
            grams, counts.astype(np.float64), contexts, np.add.reduceat(counts.astype(np.float64), first), followers
        )

    def logprob(self, tokens: np.ndarray) -> np.ndarray:
        """Log-probability (nats) of each token from the ``order``-th on, given those before it; (N - order + 1,)."""
        tokens = np.asarray(tokens, np.uint64)
        full = self._pack(tokens, self.order)
        probability = np.full(len(full), 1.0 / self.vocabulary)
        for n, order in enumerate(self.orders, start=1):
            probability = self._interpolate(order, full & np.uint64((1 << (self.bits * n)) - 1), probability)
        return np.log(probability)

    def _interpolate(self, order: _Order, grams: np.ndarray, lower: np.ndarray) -> np.ndarray:
        at, seen = _find(order.contexts, grams >> np.uint64(self.bits))
        gram_at, known = _find(order.grams, grams)
        count = np.where(known, order.counts[gram_at], 0.0)
        total, followers = order.totals[at], order.followers[at]
        mixed = np.maximum(count - self.discount, 0.0) / total + self.discount * followers / total * lower
        return np.where(seen, mixed, lower)
