"""The pieces of every user, mirrored from the store and kept up with its log; and what a piece notes about itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.memory.base import Event
    from workbench.memory.durable import Item, Store

#: What is retrieved and fades; everything else (insights, global summary, portrait) is derived from these.
PIECES = ("exchange", "daily summary")


def user_tag(user: str) -> str:
    return f"user:{user}"


def user_of(item: Item) -> str | None:
    """Whose item it is; None for one that another program put into the store."""
    return next((tag.removeprefix("user:") for tag in item.tags if tag.startswith("user:")), None)


def noted(user: str, date: str, time: float, dated: bool, more: dict[str, Any] | None = None) -> dict[str, Any]:
    """The metadata of a new piece. ``lives`` counts how often its time since recall began anew (seeds its luck)."""
    state = {"user": user, "date": date, "recalls": 0, "last_recall": time, "lives": 0, "dated": dated}
    return {**(more or {}), **state}


def last_recall(item: Item) -> float:
    """Seconds since 1970 of the last recall, or of the item itself when it was never recalled."""
    return float(item.meta.get("last_recall", item.time))


class Mirror:
    """Living pieces by user, without a query of the whole store at every call.

    Reads the events that came since the last look and fetches the items they touch; starts again when the log is no
    longer the continuation of what was seen (a transaction was rolled back).
    """

    def __init__(self, store: Store):
        self.store = store
        self._items: dict[str, dict[int, Item]] = {}
        self._owner: dict[int, str] = {}
        self._seen: list[Event] = []
        self.gone: list[int] = []
        #: Ids that somebody brought back in the store itself, past the memory: their time since recall is old.
        self.restored: set[int] = set()

    def pieces(self, user: str) -> list[Item]:
        """The living pieces of ``user`` by id."""
        self._sync()
        held = self._items.get(user, {})
        return [held[id] for id in sorted(held)]

    def users(self) -> list[str]:
        self._sync()
        return sorted(user for user, items in self._items.items() if items)

    def _sync(self) -> None:
        events = list(self.store.events())
        behind = len(self._seen)
        if behind and (len(events) < behind or events[behind - 1] != self._seen[-1]):
            self._restart()
            behind = 0
        fresh = events[behind:]
        if not fresh:
            return
        if behind == 0 or any(event.kind == "reset" for event in fresh):
            self._restart()
            self._take(self.store.items(kinds=PIECES))
        else:
            self._follow({id for event in fresh if event.kind not in ("read", "decay", "rerank") for id in event.items})
            for event in fresh:
                if event.kind == "restore" and "undoes" not in event.detail:
                    self.restored.update(event.items)
        self._seen = events

    def _restart(self) -> None:
        self.gone += list(self._owner)
        self._items, self._owner, self._seen = {}, {}, []

    def _follow(self, touched: Iterable[int]) -> None:
        ids = sorted(touched)
        for id in ids:
            owner = self._owner.pop(id, None)
            if owner is not None:
                del self._items[owner][id]
        living = [id for id in ids if id in self.store]
        self._take(self.store.items(living) if living else [])
        self.gone += [id for id in ids if id not in self._owner]

    def _take(self, items: Iterable[Item]) -> None:
        for item in items:
            user = user_of(item)
            if item.kind in PIECES and user is not None:
                self._items.setdefault(user, {})[item.id] = item
                self._owner[item.id] = user

    def take_gone(self) -> list[int]:
        """Ids that left since the last call."""
        gone, self.gone = self.gone, []
        return gone
