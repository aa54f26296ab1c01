"""A recorder around the attention call: it sees post-rotary Q, K, V and the mask while the fast kernel runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field

from torch import Tensor

from workbench.models.masks import MaskPlan

#: The recorder of the forward pass that runs in this context, if any. One look-up is all an unrecorded call pays.
ACTIVE: ContextVar[Recorder | None] = ContextVar("workbench_recorder", default=None)


@dataclass(frozen=True)
class Call:
    """One attention call in the layout (B, S, H, D); ``lse`` is None when the kernel gives none."""

    q: Tensor
    k: Tensor
    v: Tensor
    lse: Tensor | None
    plan: MaskPlan
    scale: float
    softcap: float | None
    sinks: Tensor | None


@dataclass
class Recorder:
    """Counts attention calls and hands those of the wanted layers to ``take`` (all of them when ``layers`` is None).

    A call belongs to the layer that its module names (in a hybrid some layers do not attend), else to the one after the
    last: modules without a number, and those that are called again.
    """

    take: Callable[[int, Call], None]
    layers: frozenset[int] | None = None
    tick: Callable[[int], None] | None = None
    calls: int = field(default=0, init=False)
    last: int = field(default=-1, init=False)

    def begin(self, named: int | None) -> bool:
        """A call of the layer ``named`` by its module begins; whether it is wanted."""
        self.calls += 1
        self.last = named if named is not None and named > self.last else self.last + 1
        return self.layers is None or self.last in self.layers

    def saw(self, call: Call | None) -> None:
        """The call that began is over; None if it was not wanted."""
        if call is not None:
            self.take(self.last, call)
        if self.tick is not None:
            self.tick(self.last + 1)


@contextlib.contextmanager
def recording(recorder: Recorder) -> Iterator[Recorder]:
    token = ACTIVE.set(recorder)
    try:
        yield recorder
    finally:
        ACTIVE.reset(token)
