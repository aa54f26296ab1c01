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
    """Counts attention calls and hands those of the wanted layers to ``take`` (all of them when ``layers`` is None)."""

    take: Callable[[int, Call], None]
    layers: frozenset[int] | None = None
    tick: Callable[[int], None] | None = None
    calls: int = field(default=0, init=False)

    def wants_next(self) -> bool:
        return self.layers is None or self.calls in self.layers

    def saw(self, call: Call | None) -> None:
        index, self.calls = self.calls, self.calls + 1
        if call is not None:
            self.take(index, call)
        if self.tick is not None:
            self.tick(self.calls)


@contextlib.contextmanager
def recording(recorder: Recorder) -> Iterator[Recorder]:
    token = ACTIVE.set(recorder)
    try:
        yield recorder
    finally:
        ACTIVE.reset(token)
