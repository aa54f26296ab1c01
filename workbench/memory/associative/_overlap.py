"""How codes intersect, for many codes at once."""

from __future__ import annotations

import numpy as np


def one_hot(codes: np.ndarray, k: int) -> np.ndarray:
    """Codes (n, M, Q) of cell numbers as float32 cells (n, M Q K); -1 is nobody."""
    return (codes[..., None] == np.arange(k)).reshape(len(codes), -1).astype(np.float32)


def intersections(first: np.ndarray, second: np.ndarray, k: int) -> np.ndarray:
    """Shared winners of every pair of codes over the larger number of winners of the two: (n, m) in [0, 1]."""
    a, b = one_hot(first, k), one_hot(second, k)
    most = np.maximum(a.sum(1)[:, None], b.sum(1))
    return (a @ b.T) / np.maximum(most, 1.0)


def nearest_other(codes: np.ndarray, k: int) -> np.ndarray:
    """Largest intersection of each code with any other stored one; 0 where there is no other."""
    if len(codes) < 2:
        return np.zeros(len(codes))
    pairs = intersections(codes, codes, k)
    np.fill_diagonal(pairs, 0.0)
    return pairs.max(1)


def distinct_codes(codes: np.ndarray) -> float:
    """Mean over macs of the number of different codes that were used; codes (n, M, Q)."""
    counts = [len(np.unique(mac[(mac >= 0).all(1)], axis=0)) for mac in np.moveaxis(codes, 1, 0)]
    return float(np.mean(counts)) if counts else 0.0
