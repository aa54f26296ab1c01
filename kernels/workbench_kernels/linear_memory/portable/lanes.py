"""Two queues of launches: a walk over the chunks of one piece of a row beside what needs nothing of it.

A walk is a long chain of small steps that waits for memory, the other launches are bound by how much they move: beside
each other both take less. What a walk needs is made before it is handed over, and whoever needs a walk meets it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

#: Of the walks' stream; the lowest number is served first, so a walk's programs get a multiprocessor before others.
PRIORITY = -1


class OneLane:
    """Every launch in the order in which it is issued."""

    def __enter__(self) -> OneLane:
        return self

    def __exit__(self, *failure: object) -> None:
        """Afterwards everything is in the queue of the current stream."""

    def walk(self, step: Callable[[], None]) -> torch.cuda.Event | None:
        """Issue the launches of a walk; what they need has been issued before. ``step`` makes no tensor."""
        step()
        return None

    def meet(self, mark: torch.cuda.Event | None) -> None:
        """What is issued from now on comes after that walk."""


class TwoLanes(OneLane):
    """Walks, one after the other, on a stream of their own; no call waits, so CUDA graphs capture it.

    All tensors belong to the current stream, whose allocator gives memory away as soon as nobody names it: so ``held``
    names what walks use until the current stream has been told to come after them.
    """

    def __init__(self, device: torch.device) -> None:
        self.current = torch.cuda.current_stream(device)
        self.walks = _stream_beside(self.current, PRIORITY)
        self.held: list[Callable[[], None]] = []

    def __exit__(self, *failure: object) -> None:
        self.current.wait_stream(self.walks)
        self.held.clear()

    def walk(self, step: Callable[[], None]) -> torch.cuda.Event:
        self.held.append(step)
        self.walks.wait_stream(self.current)
        with torch.cuda.stream(self.walks):
            step()
        return self.walks.record_event()

    def meet(self, mark: torch.cuda.Event | None) -> None:
        if mark is not None:
            self.current.wait_event(mark)


@cache
def _stream_beside(current: torch.cuda.Stream, priority: int) -> torch.cuda.Stream:
    """One for each stream that calls: they do not wait for each other, and a capture takes in no other's work."""
    return torch.cuda.Stream(current.device, priority=priority)
