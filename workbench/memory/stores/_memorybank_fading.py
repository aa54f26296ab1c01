"""Pieces that fade: the sweep, the full store, tombstones and the way back; users and their clocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from workbench.errors import BadInput
from workbench.memory.stores._memorybank_curve import DAY, eviction_order, forgotten_now, luck_of, retention
from workbench.memory.stores._memorybank_mirror import PIECES, Mirror, last_recall, user_of
from workbench.memory.stores._memorybank_parts import date_of, user_name
from workbench.memory.stores.base import StoreMemory

if TYPE_CHECKING:
    from workbench.memory.durable import Item


class Fading(StoreMemory):
    """A memory of users' pieces whose retention decides what is forgotten; MemoryBank writes and reads on top of it."""

    user: str
    rule: str
    time_scale: float
    threshold: float
    capacity: int | None
    seed: int
    _mirror: Mirror

    def sweep(self, time: Any = None, *, user: str | None = None) -> list[Item]:
        """Forget what the rule says at this moment; the pieces become tombstones and are returned.

        Only the one user's pieces; "sweep" and "as_published_bug" throw their dice once a second at most. Raises
        BadInput, and forgets nothing, when a memory is later than ``time``.
        """
        who = self._who(user)
        now = self._moment(who, time)
        self._welcome(who, now)
        pieces = self._mirror.pieces(who)
        if not pieces or self.rule in ("none", "capacity"):
            return []
        days = [(now - last_recall(piece)) / DAY for piece in pieces]
        strengths = [piece.strength for piece in pieces]
        keys = [[piece.id for piece in pieces], [piece.meta.get("lives", 0) for piece in pieces]]
        fresh = (int(now),) if self.rule in ("sweep", "as_published_bug") else ()
        gone = forgotten_now(self.rule, days, strengths, luck_of(self.seed, *keys, *fresh),
                             time_scale=self.time_scale, threshold=self.threshold)  # fmt: skip
        return self._forget([piece for piece, out in zip(pieces, gone) if out], now, self.rule)

    def _welcome(self, user: str, now: float) -> None:
        """Pieces that were brought back in the store (an inspector does so) count as recalled now, as by restore."""
        back = [piece for piece in self._mirror.pieces(user) if piece.id in self._mirror.restored]
        for piece in back:
            self.store.update(piece.id, meta=begun_anew(piece, now), why="restored: its time begins anew")
        self._mirror.restored.difference_update(piece.id for piece in back)

    def _evict(self, user: str, now: float, keep: int | None = None) -> None:
        """Let the lowest retentions go until the capacity is kept; the piece ``keep`` stays."""
        held = self._mirror.pieces(user)
        over = 0 if self.capacity is None else len(held) - self.capacity
        pieces = [piece for piece in held if piece.id != keep]
        if over > 0:
            order = eviction_order(self._retentions(pieces, now), [piece.time for piece in pieces])[:over]
            self._forget([pieces[at] for at in order], now, "capacity")

    def _forget(self, pieces: Sequence[Item], now: float, rule: str) -> list[Item]:
        if not pieces:
            return []
        with self.store.transaction(f"forgotten by {rule}"):
            told = f"forgotten by {rule} on {date_of(now)}"
            self.store.record("decay", [piece.id for piece in pieces], told, at=now, rule=rule)
            for piece, r in zip(pieces, self._retentions(pieces, now)):
                self.store.delete(piece.id, f"{told}: R = {r:.3g}, S = {piece.strength:g}")
        return list(pieces)

    def retention_of(self, piece: Item, time: Any = None) -> float:
        """R of a piece at a moment, by the formula of this memory's rule. Raises BadInput for a moment before its
        last recall."""
        return float(self._retentions([piece], self._moment(user_of(piece) or self.user, time))[0])

    def _retentions(self, pieces: Sequence[Item], now: float) -> Any:
        formula = "as_published_bug" if self.rule == "as_published_bug" else "paper"
        days = [(now - last_recall(piece)) / DAY for piece in pieces]
        return retention(days, [piece.strength for piece in pieces], self.time_scale, formula=formula)

    def forgotten(self, user: str | None = None) -> list[Item]:
        """Tombstones of a user's pieces (of everybody's, when no user is named), by id."""
        gone = [item for item in self.store.forgotten() if item.kind in PIECES]
        return [item for item in gone if user is None or user_of(item) == user_name(user)]

    def restore(self, id: int, *, time: Any = None) -> Item:
        """Bring a forgotten piece back as if it were recalled now: t = 0, S as it was. May push another one out."""
        with self.store.transaction("restored by hand"):
            item = self.store.restore(id)
            if item.kind not in PIECES:
                return item
            user = user_of(item) or self.user
            now = self._moment(user, time)
            item = self.store.update(item.id, meta=begun_anew(item, now))
            self._evict(user, now, keep=item.id)
            self._mirror.restored.discard(item.id)
        return item

    # -- users and clocks ---------------------------------------------------------------------------------------------

    def pieces(self, user: str | None = None) -> list[Item]:
        """The living pieces of a user by id."""
        return self._mirror.pieces(self._who(user))

    def users(self) -> list[str]:
        """Everybody who has a piece, in order of the name."""
        return self._mirror.users()

    def _who(self, user: str | None) -> str:
        return self.user if user is None else user_name(user)

    def _newest(self, user: str) -> float:
        return max((max(piece.time, last_recall(piece)) for piece in self._mirror.pieces(user)), default=0.0)

    def _clock(self, user: str, time: Any = None) -> float:
        """The moment meant by None: the latest known for a memory that was told times, else the store's clock."""
        pieces = self._mirror.pieces(user)
        newest = self._newest(user)
        if pieces and pieces[-1].meta.get("dated", True):
            return newest
        return max(newest, float(self.store.clock()))

    def _moment(self, user: str, time: Any) -> float:
        from workbench.memory.durable import seconds, when

        if time is None:
            return self._clock(user)
        now, newest = seconds(time), self._newest(user)
        if now < newest:
            raise BadInput(
                f"{when(now):%Y-%m-%d %H:%M} lies before the latest memory of {user!r}, {when(newest):%Y-%m-%d %H:%M}; "
                "time since a recall cannot be negative; give a later time, or correct the date of that memory"
            )
        return now


def begun_anew(piece: Item, now: float) -> dict[str, Any]:
    """The metadata of a piece whose time since recall begins at ``now``, with new luck."""
    return {**piece.meta, "last_recall": now, "lives": piece.meta.get("lives", 0) + 1}
