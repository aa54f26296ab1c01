"""Colour tables that every picture shares: charts, rasters and the matrix canvas.

All are safe for colour-blind readers. The magnitude tables are anchor colours of matplotlib's viridis, cividis and
magma (released CC0); in between we interpolate linearly in sRGB, which differs from the original by two
levels at most.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from workbench.errors import BadInput, UnknownName

_ANCHORS = {
    "viridis": (
        "440154 470e61 481a6c 482575 472f7d 443a83 414487 3d4e8a 39568c 35608d 31688e 2d708e 2a788e 27818e "
        "23888e 21918d 1f988b 1fa088 22a884 2ab07f 35b779 43bf71 54c568 66cc5d 7ad151 8fd744 a5db36 bcdf27 "
        "d2e21b e9e51a fde725"
    ),
    "cividis": (
        "002051 00265d 012b65 083169 0d366b 1b3f6e 26426e 31476e 3c4d6e 47536d 51586e 5a5e6e 616467 6a6a70 "
        "727171 7a7674 827f75 898577 908b78 969178 9e9778 a59e77 aea575 b6ab73 c0b26f c9b96a d3c065 ddc85f "
        "e7cf58 f0d652 f7de4c fce647"
    ),
    "magma": (
        "000004 040413 0b0924 150e37 20114b 2c1160 3b0f70 4a1079 57157e 651a80 721f81 7f2482 8c2981 9a2e80 "
        "a8327d b6377a c43c75 d1426f de4968 e95462 f1605d f76f5c fa7f5e fc8f65 fe9f6d feaf78 febf84 fece91 "
        "fddea0 fcedaf fcfdbf"
    ),
    "blue-orange": ("08386e 1259a0 2f7cbf 64a3d4 9cc7e6 cfe3f1 f6f6f4 fde0bd fbbe7c f29339 d86c0a a84c02 733100"),
}

#: Tables for signed numbers; their middle stands for zero.
DIVERGING = frozenset({"blue-orange"})

#: Okabe and Ito's categories, ordered so that the first four are far apart on white.
OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8A6D00", "#4D4D4D")


def names() -> list[str]:
    return list(_ANCHORS)


def anchors(scheme: str) -> list[str]:
    """The table's colours from low to high as ``#rrggbb``; an unknown name suggests the nearest."""
    if scheme not in _ANCHORS:
        raise UnknownName("colour scheme", str(scheme), _ANCHORS)
    return [f"#{colour}" for colour in _ANCHORS[scheme].split()]


@lru_cache(maxsize=16)
def table(scheme: str, size: int = 256) -> np.ndarray:
    """(size, 3) uint8 colours from low to high."""
    if size < 2:
        raise BadInput(f"size must be at least 2 colours, got {size}")
    points = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in anchors(scheme)], dtype=float)
    where = np.linspace(0, len(points) - 1, size)
    columns = [np.interp(where, np.arange(len(points)), points[:, channel]) for channel in range(3)]
    return np.rint(np.stack(columns, axis=1)).astype(np.uint8)
