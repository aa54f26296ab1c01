"""Handwritten digits as binary images: scikit-learn's bundled 8 x 8 scans, enlarged, thresholded, thinned to strokes.

>>> digits = skeleton_digits()
>>> digits.images.shape, digits.labels.shape                                   # doctest: +SKIP
((1797, 24, 16), (1797,))
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

#: The eight neighbours of a pixel, clockwise from above (Zhang and Suen's P2 .. P9).
_RING = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))


@dataclass(frozen=True)
class Digits:
    """Binary images (n, rows, columns) and their classes 0..9 (n,), in scikit-learn's order."""

    images: np.ndarray
    labels: np.ndarray

    def flat(self) -> np.ndarray:
        """Images as bool vectors (n, rows x columns)."""
        return self.images.reshape(len(self.images), -1)

    def split(self, train: int, test: int, seed: int) -> tuple[Digits, Digits]:
        """Two disjoint random parts; raises ValueError when there are fewer images than asked for."""
        if train < 1 or test < 1 or train + test > len(self.labels):
            raise ValueError(f"there are {len(self.labels)} images; train={train} and test={test} do not fit")
        order = np.random.default_rng(seed).permutation(len(self.labels))[: train + test]
        first, second = order[:train], order[train:]
        return Digits(self.images[first], self.labels[first]), Digits(self.images[second], self.labels[second])


@functools.lru_cache(maxsize=4)
def skeleton_digits(rows: int = 24, columns: int = 16, threshold: float = 8.0) -> Digits:
    """The 1,797 digits as one-pixel strokes: bilinear zoom, ``> threshold`` of 16 grey levels, Zhang-Suen thinning."""
    from scipy.ndimage import zoom
    from sklearn.datasets import load_digits

    if rows < 8 or columns < 8:
        raise ValueError(f"digits are 8 x 8 to begin with; rows={rows} and columns={columns} must be at least 8")
    raw = load_digits()
    large = zoom(raw.images, (1, rows / 8, columns / 8), order=1)
    images = thin(large > threshold)
    images.setflags(write=False)
    return Digits(images, raw.target.astype(np.int64))


def thin(images: np.ndarray) -> np.ndarray:
    """One-pixel-wide skeletons of binary images (n, rows, columns) or (rows, columns), all at once.

    Zhang and Suen 1984: a border pixel goes when it has 2 to 6 neighbours, exactly one change from off to on round its
    ring, and does not end a stroke; south-east and north-west borders in turn, until nothing changes.
    """
    given = np.asarray(images)
    if given.ndim not in (2, 3):
        raise ValueError(f"images must be (rows, columns) or (n, rows, columns), got shape {given.shape}")
    on = np.pad(given.astype(bool).reshape(-1, *given.shape[-2:]), _BORDER)
    while True:
        before = on.copy()
        for side in (0, 1):
            on &= ~_removable(on, side)
        if np.array_equal(on, before):
            kept = on[:, 1:-1, 1:-1]
            return kept if given.ndim == 3 else kept[0]


_BORDER = ((0, 0), (1, 1), (1, 1))


def _removable(on: np.ndarray, side: int) -> np.ndarray:
    ring = np.stack([np.roll(on, (-down, -right), (1, 2)) for down, right in _RING])
    count = ring.sum(0)
    rises = (~ring & np.roll(ring, -1, 0)).sum(0)
    above, right, below, left = ring[0], ring[2], ring[4], ring[6]
    if side == 0:
        free = ~(above & right & below) & ~(right & below & left)
    else:
        free = ~(above & right & left) & ~(above & below & left)
    return on & (count >= 2) & (count <= 6) & (rises == 1) & free
