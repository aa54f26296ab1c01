"""How EM-LLM cuts a stream into events: surprise, graph partitions, blocks (arXiv 2407.09450, section 3).

Plain functions on numpy arrays; positions are places in the array that is given. Symbols are the paper's: s_t surprise,
T_t threshold, gamma, tau, A adjacency (similarity of keys), f_M modularity, phi conductance.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from workbench.errors import BadInput

METRICS = ("modularity", "conductance")


def surprise_flags(surprise: np.ndarray, before: np.ndarray, *, gamma: float, tau: int) -> np.ndarray:
    """Which tokens begin an event: ``s_t > mu + gamma sigma`` of the ``tau`` surprises before each.

    Args:
        surprise: (m,) nats of the new tokens; NaN (no prediction) is never a boundary.
        before: (n,) surprises of the stream before them, oldest first.
    """
    values = np.concatenate([before, surprise])
    flags = np.zeros(len(surprise), dtype=bool)
    for index, value in enumerate(surprise):
        at = len(before) + index
        flags[index] = value > threshold(values[max(0, at - tau) : at], gamma)
    return flags


def threshold(window: np.ndarray, gamma: float) -> float:
    """T = mu + gamma sigma of a window of surprises (nats); infinite while fewer than two are known."""
    known = window[~np.isnan(window)]
    return float(known.mean() + gamma * known.std()) if len(known) > 1 else float("inf")


def chunk_flags(
    surprise: np.ndarray, before: np.ndarray, *, gamma: float, tau: int, offset: bool = False
) -> np.ndarray:
    """The released code's rule: one threshold for the whole chunk; ``offset`` flags the token before the surprising."""
    window = before[len(before) - tau :] if len(before) >= tau else before
    flags = surprise > threshold(window if len(window) else surprise, gamma)
    return np.concatenate([flags[1:], [False]]) if offset else flags


def adjacency(keys: Sequence[np.ndarray], similarity: str = "cos01") -> np.ndarray:
    """A (n, n), summed over layers and heads.

    Args:
        keys: one array (H, n, D) a layer, before rotation.
        similarity: ``dot`` (released code: may be negative) or ``cos01``: (1 + cosine) / 2.
    """
    if not keys or keys[0].shape[1] == 0:
        raise BadInput("an event of no tokens has no similarity matrix; give keys of at least one layer and token")
    total = np.zeros((keys[0].shape[1],) * 2)
    for layer in keys:
        wide = layer.astype(np.float64)
        if similarity == "cos01":
            wide = wide / np.maximum(np.linalg.norm(wide, axis=-1, keepdims=True), 1e-12)
        dots = np.einsum("hid,hjd->ij", wide, wide, optimize=True)
        total += dots if similarity == "dot" else (len(layer) + dots) / 2
    return total


def _sums(matrix: np.ndarray, cuts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Inside sums of both sides for every cut, degrees' prefix sum at the cuts, and the total (= 2m)."""
    both = np.zeros((len(matrix) + 1,) * 2)
    both[1:, 1:] = matrix.cumsum(0).cumsum(1)
    total, left, row = both[-1, -1], both[cuts, cuts], both[cuts, -1]
    return left, total - row - both[-1, cuts] + left, row, float(total)


def modularity_curve(matrix: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """f_M of the two communities before / from every cut, O(1) a cut after prefix sums. NaN where m <= 0."""
    left, right, degrees, total = _sums(matrix, cuts)
    if total <= 0:
        return np.full(len(cuts), np.nan)
    return (left - degrees**2 / total + right - (total - degrees) ** 2 / total) / (2 * total)


def conductance_curve(matrix: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """phi of the better side for every cut, with vol as the released code has it (vol(S^c) = total - vol(S))."""
    left, right, _, total = _sums(matrix, cuts)
    cut = (total - left - right) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        one = cut / np.minimum(left, total - left)
        other = cut / np.minimum(right, total - right)
    found = np.minimum(one, other)
    return np.where(np.isfinite(found), found, np.nan)


def modularity(matrix: np.ndarray, boundaries: Sequence[int]) -> float:
    """f_M of the partition that begins a part at 0 and at every boundary. Raises BadInput when m <= 0."""
    total, degrees = float(matrix.sum()), matrix.sum(1)
    if total <= 0:
        raise BadInput(f"the similarities sum to {total:.3g}; modularity needs a positive sum, use similarity='cos01'")
    edges = _edges(len(matrix), boundaries)
    parts = [slice(a, b) for a, b in pairwise(edges)]
    return float(sum(matrix[p, p].sum() - degrees[p].sum() ** 2 / total for p in parts) / (2 * total))


def conductance(matrix: np.ndarray, boundaries: Sequence[int]) -> float:
    """Smallest phi over the parts of a partition."""
    edges, total = _edges(len(matrix), boundaries), float(matrix.sum())
    values = []
    for part in (slice(a, b) for a, b in pairwise(edges)):
        inside = float(matrix[part, part].sum())
        low = min(inside, total - inside)
        values.append((float(matrix[part].sum()) - inside) / low if low > 0 else np.inf)
    return min(values)


def intra_inter(matrix: np.ndarray, boundaries: Sequence[int]) -> float:
    """I/IS: mean similarity within events divided by the mean between them; NaN with one event."""
    edges = _edges(len(matrix), boundaries)
    label = np.repeat(np.arange(len(edges) - 1), np.diff(edges))
    same = label[:, None] == label
    return float(matrix[same].mean() / matrix[~same].mean()) if not same.all() else float("nan")


def _edges(n: int, boundaries: Sequence[int]) -> list[int]:
    return [0, *sorted({int(at) for at in boundaries if 0 < at < n}), n]


def refined(matrix: np.ndarray, alpha: int, beta: int, *, metric: str, min_block: int) -> int:
    """Where the boundary ``beta`` moves: the best split in (alpha + min_block, beta], the place itself included.

    The graph is the stretch from half an event before ``alpha`` to half an event after ``beta``, clipped to ``matrix``.
    Ties, and a graph without positive mass, leave the boundary where it is.
    """
    half = (beta - alpha) // 2
    low, high = max(0, alpha - half), min(len(matrix), max(beta + half, beta + 1))
    cuts = np.arange(beta, alpha + min_block, -1)
    if not len(cuts) or beta >= len(matrix):
        return beta
    curve = {"modularity": modularity_curve, "conductance": lambda *a: -conductance_curve(*a)}[metric]
    values = curve(matrix[low:high, low:high], cuts - low)
    return beta if np.isnan(values).all() or np.isnan(values[0]) else int(cuts[np.nanargmax(values)])


def refine_all(matrix: np.ndarray, boundaries: Sequence[int], *, metric: str, min_block: int) -> list[int]:
    """Every boundary of a stretch refined, left to right; those too near to the one before are dropped first."""
    alpha, result = 0, []
    for beta in near_dropped(boundaries, min_block):
        alpha = refined(matrix, alpha, beta, metric=metric, min_block=min_block)
        result.append(alpha)
    return result


def near_dropped(boundaries: Sequence[int], min_block: int) -> list[int]:
    """Boundaries at least ``min_block`` after the start and after the one before."""
    kept, last = [], 0
    for at in boundaries:
        if at - last >= min_block:
            kept.append(int(at))
            last = int(at)
    return kept


def blocks(start: int, end: int, flags: Sequence[int], *, min_block: int, max_block: int) -> list[tuple[int, int, str]]:
    """Events (first, behind the last, why) that are finished in [start, end): every length is in [min, max].

    A flag nearer than ``min_block`` merges its event with the next; without a flag an event is cut at ``max_block``.
    What is left over waits for its boundary.
    """
    found: list[tuple[int, int, str]] = []
    at, marks = start, np.asarray(sorted(flags), dtype=np.int64)
    while True:
        inside = marks[(marks >= at + min_block) & (marks <= min(at + max_block, end))]
        if len(inside):
            stop, why = int(inside[0]), "boundary"
        elif at + max_block <= end:
            stop, why = at + max_block, "max-cut"
        else:
            return found
        found.append((at, stop, why))
        at = stop
