"""How many parts the keys of a sequence are cut into, from the number of programs that the card runs at once."""

from __future__ import annotations

import functools

#: Tiles of work that starting a program and merging its part cost.
START_TILES = 2
MOST_PARTS = 256


@functools.cache
def parts(tiles: int, keys: int, block_n: int, slots: int) -> int:
    """Parts a sequence is cut into, so that waves of ``slots`` programs are full and none is too short.

    A wave takes as long as its programs: their tiles of keys and a start-up worth ``START_TILES``. The fewest parts
    of the shortest total win.
    """
    blocks = max(1, -(-keys // block_n))

    def cost(count: int) -> int:
        return -(-tiles * count // slots) * (-(-blocks // count) + START_TILES)

    return min(range(1, min(blocks, MOST_PARTS) + 1), key=lambda count: (cost(count), count))
