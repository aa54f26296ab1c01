"""Tile sizes that ship: one line per (card family, bytes of an element, padded head dim, pass), chosen by measurement.

Families: ``large`` has 160 KB of shared memory a multiprocessor or more (A100, H100, H200, B200), ``small`` less.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Tiles:
    """Query positions, key positions, warps, stages of the software pipeline; ``split``: a loop without band mask."""

    rows: int
    cols: int
    warps: int
    stages: int
    split: bool = True


PASSES = ("forward", "keys", "queries")

TABLE: dict[tuple[str, int, int, str], Tiles] = {
    ("hopper", 2, 64, "forward"): Tiles(128, 128, 8, 3),
    ("hopper", 2, 64, "keys"): Tiles(64, 128, 8, 2, False),
    ("hopper", 2, 64, "queries"): Tiles(128, 64, 8, 3),
    ("hopper", 2, 128, "forward"): Tiles(128, 64, 8, 3),
    ("hopper", 2, 128, "keys"): Tiles(32, 128, 8, 2, False),
    ("hopper", 2, 128, "queries"): Tiles(128, 64, 8, 2),
    ("hopper", 2, 256, "forward"): Tiles(128, 64, 8, 2),
    ("hopper", 2, 256, "keys"): Tiles(32, 32, 8, 1, False),
    ("hopper", 2, 256, "queries"): Tiles(64, 32, 8, 2, False),
    ("large", 2, 64, "forward"): Tiles(128, 64, 4, 3),
    ("large", 2, 64, "keys"): Tiles(64, 32, 4, 2, False),
    ("large", 2, 64, "queries"): Tiles(64, 32, 4, 2),
    ("large", 2, 128, "forward"): Tiles(128, 64, 8, 2),
    ("large", 2, 128, "keys"): Tiles(32, 64, 8, 2, False),
    ("large", 2, 128, "queries"): Tiles(64, 64, 8, 2, False),
    ("large", 2, 256, "forward"): Tiles(64, 64, 8, 2),
    ("large", 2, 256, "keys"): Tiles(32, 32, 8, 1, False),
    ("large", 2, 256, "queries"): Tiles(64, 32, 8, 2, False),
    ("small", 2, 64, "forward"): Tiles(64, 64, 4, 3),
    ("small", 2, 64, "keys"): Tiles(64, 32, 4, 2, False),
    ("small", 2, 64, "queries"): Tiles(64, 32, 4, 2),
    ("small", 2, 128, "forward"): Tiles(128, 64, 8, 2),
    ("small", 2, 128, "keys"): Tiles(32, 64, 8, 2, False),
    ("small", 2, 128, "queries"): Tiles(64, 32, 4, 2),
    ("small", 2, 256, "forward"): Tiles(64, 32, 8, 2),
    ("small", 2, 256, "keys"): Tiles(32, 32, 8, 1, False),
    ("small", 2, 256, "queries"): Tiles(32, 32, 8, 1, False),
}
#: float32 products run outside the tensor cores and from registers: small tiles, one table for every card.
TABLE |= {
    ("any", 4, 64, "forward"): Tiles(32, 32, 4, 1, False),
    ("any", 4, 64, "keys"): Tiles(32, 32, 8, 1, False),
    ("any", 4, 64, "queries"): Tiles(32, 32, 8, 1, False),
    ("any", 4, 128, "forward"): Tiles(32, 32, 8, 1, False),
    ("any", 4, 128, "keys"): Tiles(32, 32, 8, 2, False),
    ("any", 4, 128, "queries"): Tiles(32, 32, 8, 2, False),
    ("any", 4, 256, "forward"): Tiles(16, 16, 8, 1, False),
    ("any", 4, 256, "keys"): Tiles(16, 16, 8, 1, False),
    ("any", 4, 256, "queries"): Tiles(16, 16, 8, 2, False),
}
#: FlashAttention's first loop order, forward and backward.
FIRST: dict[tuple[int, int, str], Tiles] = {
    (2, 64, "forward"): Tiles(64, 128, 4, 1),
    (2, 64, "backward"): Tiles(64, 64, 8, 1),
    (2, 128, "forward"): Tiles(32, 128, 8, 1),
    (2, 128, "backward"): Tiles(32, 64, 8, 2),
    (2, 256, "forward"): Tiles(32, 32, 8, 1),
    (2, 256, "backward"): Tiles(16, 32, 8, 1),
    (4, 64, "forward"): Tiles(32, 32, 4, 1),
    (4, 64, "backward"): Tiles(32, 32, 8, 1),
    (4, 128, "forward"): Tiles(32, 32, 8, 1),
    (4, 128, "backward"): Tiles(16, 32, 8, 1),
    (4, 256, "forward"): Tiles(16, 16, 8, 1),
    (4, 256, "backward"): Tiles(16, 16, 8, 2),
}


def family(capability: tuple[int, int]) -> str:
    """Of a card by its compute capability."""
    if capability[0] == 9:
        return "hopper"
    return "large" if capability in ((8, 0), (10, 0), (10, 3)) else "small"


def bucket(*dims: int) -> int:
    """The table's head dim for padded head dims."""
    return max(64, *dims)


def tiles_for(capability: tuple[int, int], size: int, dim: int, which: str) -> Tiles:
    """``which`` is one of ``PASSES``; ``size`` the bytes of an element, ``dim`` the padded head dim."""
    return TABLE["any" if size == 4 else family(capability), size, bucket(dim), which]


def first_tiles_for(capability: tuple[int, int], size: int, dim: int, which: str) -> Tiles:
    """Of the first loop order; ``which`` is "forward" or "backward". Small cards have no room for a second stage."""
    tiles = FIRST[size, bucket(dim), which]
    return replace(tiles, stages=1) if family(capability) == "small" else tiles
