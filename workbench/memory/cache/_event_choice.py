"""Which events a layer fetches: the similarity buffer and the contiguity buffer (arXiv 2407.09450, section 3.3).

Every layer asks this for every token it decodes. The buffers hold some hundred events at most, so a loop that stops
when a budget is used is quicker than whole arrays; nothing here loops over all events.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain


def filled(order: Sequence[int], lengths: Sequence[int], budget: int) -> list[int]:
    """The head of ``order`` that fills ``budget`` tokens; the event that crosses it stays if that is nearer.

    Args:
        order: events in falling score, as many as can fit. lengths: tokens of every event.
    """
    used = 0
    for n, event in enumerate(order):
        then = used + lengths[event]
        if then > budget:
            return list(order[: n + (then - budget <= budget - used)])
        used = then
    return list(order)


def neighbours(chosen: Sequence[int], queue: Sequence[int], lengths: Sequence[int], budget: int) -> list[int]:
    """The contiguity buffer: b+1 then b-1 of every chosen event in score order, then what it held before.

    ``queue`` is the buffer of the pass before, newest first; the result is newest first and holds <= budget tokens.
    """
    taken, found, left = {-1, len(lengths), *chosen}, [], budget
    around = chain.from_iterable((middle + 1, middle - 1) for middle in chosen)
    for event in chain(around, queue):
        if event not in taken:
            left -= lengths[event]
            if left < 0:
                break
            taken.add(event)
            found.append(event)
    return found
