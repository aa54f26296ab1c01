"""The memory protocol: write, read, reset, nbytes, contents() and events().

``contents()`` is a tidy frame, one row per thing the memory holds; the inspector shows it as it is.
``events()`` is an append-only log of what was written, read, merged or evicted, when and why; the timeline scrubs it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from workbench.errors import BadInput
from workbench.registry import Registry

if TYPE_CHECKING:
    import pandas as pd

MEMORIES: Registry[type] = Registry(
    "memory",
    [f"workbench.memory.{kind}" for kind in ("cache", "layers", "stores", "associative", "parametric")],
    "memory_workbench.memories",
)

#: What an event may be. `write`, `merge`, `evict`, `restore` and `reset` change which items are held; `decay` and
#: `rerank` change scores, `update` and `link` what an item says or points to (detail: field, old, new).
EVENT_KINDS = ("write", "read", "merge", "evict", "restore", "decay", "rerank", "update", "link", "reset")


@dataclass(frozen=True)
class Event:
    """One thing that happened to a memory. ``items`` are stable item ids (for a cache: stream positions)."""

    step: int
    kind: str
    items: tuple[int, ...]
    why: str
    detail: dict[str, Any] = field(default_factory=dict)


class EventLog:
    """Append-only; replays to the set of items held after any step, so every view can scrub through time."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def append(self, kind: str, items: Iterable[int], why: str, **detail: Any) -> Event:
        if kind not in EVENT_KINDS:
            raise BadInput(f"event kind {kind!r} is not one of {', '.join(EVENT_KINDS)}")
        event = Event(len(self._events), kind, tuple(int(item) for item in items), why, detail)
        self._events.append(event)
        return event

    def copy(self) -> EventLog:
        """A log of its own with the same past (for a memory that is forked or tried out and put back)."""
        twin = EventLog()
        twin._events = list(self._events)
        return twin

    def __len__(self) -> int:
        return len(self._events)

    def __iter__(self) -> Iterator[Event]:
        return iter(self._events)

    def held(self, step: int | None = None) -> set[int]:
        """Item ids held after event ``step`` (``None``: now; ``-1``: before the first event)."""
        last = len(self._events) - 1 if step is None else step
        if not -1 <= last < max(len(self._events), 1):
            raise BadInput(
                f"step {step} is outside this log of {len(self._events)} events (0 to {len(self._events) - 1})"
            )
        held: set[int] = set()
        for event in self._events[: last + 1]:
            if event.kind in ("write", "restore"):
                held.update(event.items)
            elif event.kind in ("evict", "merge"):
                held.difference_update(event.items)
                held.update(event.detail.get("into", ()))
            elif event.kind == "reset":
                held.clear()
        return held

    def diff(self, before: int, after: int) -> dict[str, set[int]]:
        """What entered and what left between two steps."""
        old, new = self.held(before), self.held(after)
        return {"entered": new - old, "left": old - new, "stayed": old & new}

    def frame(self) -> pd.DataFrame:
        """One row per event: step, kind, n (items touched), items, why, and one column per detail key."""
        import pandas as pd

        rows = [
            {"step": e.step, "kind": e.kind, "n": len(e.items), "items": list(e.items), "why": e.why, **e.detail}
            for e in self._events
        ]
        return pd.DataFrame(rows, columns=None if rows else ["step", "kind", "n", "items", "why"])

    def clear(self) -> None:
        self._events.clear()


def settings_of(memory: object, kinds: Iterable[type] | None = None) -> dict[str, Any]:
    """The hyper-parameters of a mechanism's constructor as they stand, of those that it keeps under their names.

    ``kinds``: the classes whose constructors count (default its own); for one that hands ``**settings`` to its base.
    """
    own = [type(memory)] if kinds is None else [kind for kind in kinds if "__init__" in vars(kind)]
    taken = [inspect.signature(vars(kind).get("__init__", kind)).parameters.values() for kind in own]
    loose = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    names = [p.name for parameters in taken for p in parameters if p.name != "self" and p.kind not in loose]
    return {name: getattr(memory, name) for name in names if hasattr(memory, name)}


@runtime_checkable
class Memory(Protocol):
    """What every mechanism says, whatever its kind. ``write`` and ``read`` take what the kind needs."""

    def write(self, *args: Any, **kwargs: Any) -> Any: ...

    def read(self, *args: Any, **kwargs: Any) -> Any: ...

    def reset(self) -> None: ...

    def nbytes(self) -> int: ...

    def contents(self) -> pd.DataFrame: ...

    def events(self) -> EventLog: ...
