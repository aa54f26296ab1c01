"""The store of the memories of agents: durable items with text, vector, time and links, and their history."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.memory.durable.clock import seconds, when
    from workbench.memory.durable.items import MAX_TEXT, Hit, Item, NewItem, UnknownItem
    from workbench.memory.durable.snapshot import Snapshot
    from workbench.memory.durable.store import Store

_LAZY = {
    "Hit": "items",
    "Item": "items",
    "MAX_TEXT": "items",
    "NewItem": "items",
    "Snapshot": "snapshot",
    "Store": "store",
    "UnknownItem": "items",
    "seconds": "clock",
    "when": "clock",
}

__all__ = ["MAX_TEXT", "Hit", "Item", "NewItem", "Snapshot", "Store", "UnknownItem", "seconds", "when"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
