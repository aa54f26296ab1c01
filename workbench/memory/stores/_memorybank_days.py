"""The end of a day: its summary and insight, then the global summary and the portrait."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from workbench.memory.stores._memorybank_mirror import PIECES, noted, user_of, user_tag
from workbench.memory.stores._memorybank_summaries import Insight, Summariser

if TYPE_CHECKING:
    from workbench.memory.durable import Item, Store


SUMMARY = "Summary of the day: "


class Days:
    """Writes and renews the four derived texts of a user in a store."""

    def __init__(self, store: Store, summariser: Summariser):
        self.store, self.summariser = store, summariser

    def close(self, user: str, date: str, pieces: Sequence[Item]) -> None:
        """From the living ``pieces`` of the user; a day on which nothing was said changes nothing."""
        talk = [piece for piece in pieces if piece.kind == "exchange" and piece.meta["date"] == date]
        if not talk:
            return
        said = [(str(p.meta.get("query", p.text)), str(p.meta.get("response", ""))) for p in talk]
        ids, moment = [piece.id for piece in talk], max(piece.time for piece in talk)
        summary = self.summariser.day(user, date, said)
        days = [p for p in pieces if p.kind == "daily summary" and p.meta["date"] != date]
        if summary:
            meta = noted(user, date, moment, True)
            days.append(self._put(f"{user}_{date}_summary", "daily summary", f"{SUMMARY}{summary}", meta,
                                  ids, moment))  # fmt: skip
        insight = self.summariser.insight(user, date, said)
        if insight.text:
            meta = {"user": user, "date": date, "facts": [list(fact) for fact in insight.facts]}
            self._put(f"{user}_{date}_insight", "daily insight", insight.text, meta, ids, moment)
        self._condense(user, date, moment, days)

    def _condense(self, user: str, date: str, moment: float, days: list[Item]) -> None:
        """The global summary of the daily summaries that are still held, and the portrait of all insights."""
        meta = {"user": user, "date": date}
        days = sorted(days, key=lambda piece: (str(piece.meta["date"]), piece.id))
        overall = self.summariser.overall(user, [(str(p.meta["date"]), p.text.removeprefix(SUMMARY)) for p in days])
        if overall:
            self._put(f"{user}_global_summary", "global summary", overall, meta, [p.id for p in days], moment)
        notes = [item for item in self.store.items(kinds="daily insight") if user_of(item) == user]
        notes.sort(key=lambda item: (str(item.meta["date"]), item.id))
        portrait = self.summariser.portrait(user, [_insight(item) for item in notes])
        if portrait:
            self._put(f"{user}_portrait", "portrait", portrait, meta, [item.id for item in notes], moment)

    def _put(self, key: str, kind: str, text: str, meta: dict[str, Any], links: list[int], moment: float) -> Item:
        """Write a derived text, or bring the one that is there up to date; its strength and recalls stay."""
        meta = {**meta, "by": self.summariser.label}
        held = self.store.find(key)
        searched = kind in PIECES
        if held is None:
            # What is pasted into every prompt is never searched for: its vector says what it is, and is made once.
            vector_of = None if searched else f"{kind} of {meta['user']}"
            return self.store.add(text, key=key, kind=kind, time=moment, meta=meta, links=links,
                                  tags=(user_tag(meta["user"]),), index_text=vector_of)  # fmt: skip
        renewed = {**held.meta, **{name: meta[name] for name in ("date", "facts", "by") if name in meta}}
        return self.store.update(held.id, lazy=not searched, text=text, time=moment, links=links, meta=renewed)


def _insight(item: Item) -> Insight:
    facts = tuple((str(attribute), str(value)) for attribute, value in item.meta.get("facts", []))
    return Insight(str(item.meta["date"]), item.text, facts)
