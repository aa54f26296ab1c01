"""When a curriculum changes its pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate


def stage_of_step(shares: Sequence[float], steps: int) -> Callable[[int], int]:
    """Which stage a step belongs to, stages taking these shares of all steps; steps past the end are of the last.

    >>> stage = stage_of_step([0.5, 0.25, 0.25], 8)
    >>> [stage(step) for step in (0, 3, 4, 5, 6, 7, 8)]
    [0, 0, 1, 1, 2, 2, 2]
    """
    ends = [round(passed * steps) for passed in accumulate(shares)]
    return lambda step: next((i for i, end in enumerate(ends) if step < end), len(ends) - 1)
