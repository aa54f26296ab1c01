"""Which phrases are alike: all pairs above a cosine, found block by block, never as one square of all pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from workbench.errors import BadInput, MemoryError_

if TYPE_CHECKING:
    import numpy as np

#: More pairs than this mean that the threshold holds for almost everything; a graph of them would not fit in memory.
MOST_PAIRS = 20_000_000
#: Rows of one block: 1,024 x 16,000 float32 are 64 MB.
BLOCK = 1_024


@dataclass(frozen=True)
class Pairs:
    """Pairs of phrases ``first[i] < second[i]`` (positions) with their ``cosine``, each once, in order."""

    first: np.ndarray
    second: np.ndarray
    cosine: np.ndarray

    def __len__(self) -> int:
        return len(self.cosine)

    def at_least(self, threshold: float) -> Pairs:
        keep = self.cosine >= threshold
        return Pairs(self.first[keep], self.second[keep], self.cosine[keep])


def alike(vectors: np.ndarray, threshold: float, start: int = 0, *, block: int = BLOCK) -> Pairs:
    """All pairs with cosine >= ``threshold`` whose later phrase stands at ``start`` or beyond.

    ``vectors`` (phrases, dim) float32, unit rows (a zero row is like nothing). Memory is ``block`` x phrases.
    Candidates come from a float32 product; their cosine is then computed in float64 row by row and rounded to six
    places, so that neither the block nor the batch a phrase was encoded in shows in the result.
    """
    import numpy as np

    if not 0 < threshold <= 1:
        raise BadInput(f"tau={threshold} must be a cosine above 0 and at most 1")
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    total = 0
    for low in range(start, len(vectors), block):
        high = min(low + block, len(vectors))
        near = vectors[low:high] @ vectors[:high].T >= threshold - 1e-4
        near &= np.arange(high) < np.arange(low, high)[:, None]
        later, earlier = np.nonzero(near)
        later += low
        exact = _cosines(vectors, earlier, later)
        keep = exact >= threshold
        found.append((earlier[keep], later[keep], exact[keep]))
        total += int(keep.sum())
        if total > MOST_PAIRS:
            raise MemoryError_(
                f"more than {MOST_PAIRS:,} pairs of phrases have a cosine of at least tau={threshold}; raise tau"
            )
    return _pairs(found)


def joined(old: Pairs, new: Pairs) -> Pairs:
    return _pairs([(pairs.first, pairs.second, pairs.cosine) for pairs in (old, new)])


def nothing() -> Pairs:
    return _pairs([])


def capped(pairs: Pairs, eligible: np.ndarray, most: int) -> Pairs:
    """The pairs that become synonymy edges: one of the two is ``eligible`` and has the other among its ``most`` best.

    (Ties: the phrase that came first.) An edge has no direction here, so one side suffices.
    """
    import numpy as np

    if not len(pairs):
        return pairs
    count = np.arange(len(pairs))
    of = np.concatenate([pairs.first, pairs.second])
    other = np.concatenate([pairs.second, pairs.first])
    order = np.lexsort((other, -np.concatenate([pairs.cosine, pairs.cosine]), of))
    ranks = np.empty(len(of), dtype=np.int64)
    starts = np.r_[0, np.flatnonzero(np.diff(of[order])) + 1]
    ranks[order] = np.arange(len(of)) - np.repeat(starts, np.diff(np.r_[starts, len(of)]))
    listed = (ranks < most) & eligible[of]
    keep = listed[count] | listed[count + len(pairs)]
    return Pairs(pairs.first[keep], pairs.second[keep], pairs.cosine[keep])


def _cosines(vectors: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    import numpy as np

    exact = np.empty(len(first))
    for low in range(0, len(first), 65_536):
        part = slice(low, low + 65_536)
        products = vectors[first[part]].astype(np.float64) * vectors[second[part]]
        exact[part] = products.sum(axis=1)
    return np.minimum(exact.round(6), 1.0)


def _pairs(parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Pairs:
    import numpy as np

    if not parts:
        none = np.empty(0, dtype=np.int64)
        return Pairs(none, none.copy(), np.empty(0))
    first, second, cosine = (np.concatenate(column) for column in zip(*parts))
    order = np.lexsort((first, second))
    return Pairs(first[order], second[order], cosine[order])
