"""A-MEM's read as pure functions: direct hits, then the notes they are linked to, under a budget.

No model decides anything here (paper, section 3.4). Two ways of accounting: without a budget linked notes come *on top*
of the k hits, as in the paper; under a budget they take places *from* direct hits, so that memories can be compared at
equal size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

#: ids of the notes that a note is linked to
Links = Callable[[int], Sequence[int]]
#: what linked notes are ranked by
ORDERS = ("sum", "walk", "novel")
#: from a number of notes (None: as many as without a budget) to a reading
Choose = Callable[["int | None"], "list[Found]"]


class Cosines(Protocol):
    """Cosines of notes with the query, and of notes with one another."""

    def __call__(self, ids: Sequence[int]) -> dict[int, float]: ...

    def alike(self, ids: Sequence[int], others: Sequence[int]) -> dict[int, float]:
        """Mean cosine of each of ``ids`` with ``others``."""


@dataclass(frozen=True)
class Found:
    """One note of a reading. ``score`` is what it was ranked by (its own cosine with the query for a direct hit),
    ``own`` always its own cosine, ``via`` the hit that it was found through."""

    id: int
    score: float
    how: str
    own: float
    via: int | None = None


def direct(hits: Sequence[tuple[int, float]]) -> list[Found]:
    """(id, cosine) pairs, best first, as direct hits."""
    return [Found(id, score, "direct", score) for id, score in hits]


def linked(parents: Sequence[Found], links: Links, own: Cosines, most: int, order: str = "sum") -> list[Found]:
    """At most ``most`` notes that the parents are linked to and that are no parents, best first.

    The paper gives no order. ``order``: "sum" ranks by the mean of the best parent's cosine and their own; "walk" takes
    the links of the best hit first, then those of the next, as the published code walks; "novel" takes the sum minus
    the mean cosine with all hits, so that what the hits say already comes last (the idea of maximal marginal
    relevance, Carbonell and Goldstein 1998). Ties go to the older note.
    """
    taken = {found.id for found in parents}
    through: dict[int, Found] = {}
    for parent in parents:  # best first, so the first parent of a note is its best
        for id in links(parent.id):
            if id not in taken:
                through.setdefault(id, parent)
    similar = own(list(through))
    if order == "sum":
        scores = {id: (parent.own + similar[id]) / 2 for id, parent in through.items()}
    elif order == "walk":
        scores = {id: parent.own for id, parent in through.items()}
    else:
        alike = own.alike(list(through), list(taken))
        scores = {id: (parent.own + similar[id] - alike[id]) / 2 for id, parent in through.items()}
    found = [Found(id, scores[id], "link", similar[id], parent.id) for id, parent in through.items()]
    return sorted(found, key=lambda one: (-one.score, one.id))[: max(most, 0)]


def on_top(hits: Sequence[Found], links: Links, own: Cosines, k: int, link_cap: int, order: str = "sum") -> list[Found]:
    """The paper's accounting: ``k`` direct hits and at most ``link_cap`` linked notes besides."""
    best = list(hits[:k])
    return best + (linked(best, links, own, link_cap, order) if link_cap > 0 else [])


def within(
    hits: Sequence[Found], links: Links, own: Cosines, notes: int, share: float, k: int | None, order: str = "sum"
) -> list[Found]:
    """Equal accounting: at most ``notes`` notes, of which the part ``share`` is kept for linked ones.

    Places that no linked note takes go to further direct hits (never more than ``k`` of them when it is given).
    """
    kept = int(notes * share)
    best = list(hits[: notes - kept if k is None else min(notes - kept, k)])
    places = kept if k is None else notes - len(best)
    found = linked(best, links, own, places, order) if share > 0 and places > 0 else []
    chosen = {one.id for one in found}
    rest = [one for one in hits[len(best) : k] if one.id not in chosen]
    return best + found + rest[: notes - len(best) - len(found)]


def within_tokens(choose: Choose, cost: Callable[[int], int], tokens: int, most: int) -> list[Found]:
    """The reading of the largest number of notes (up to ``most``) that costs at most ``tokens``.

    ``choose(n)`` gives a reading of n notes. Where the next larger one is too dear, what still fits of it is added.
    """
    chosen: list[Found] = []
    for notes in range(1, most + 1):
        wider = choose(notes)
        if sum(cost(one.id) for one in wider) > tokens:
            return _filled(chosen, wider, cost, tokens)
        if len(wider) == len(chosen):
            return wider
        chosen = wider
    return chosen


def _filled(chosen: list[Found], more: Sequence[Found], cost: Callable[[int], int], tokens: int) -> list[Found]:
    spent, taken = sum(cost(one.id) for one in chosen), {one.id for one in chosen}
    for one in more:
        if one.id not in taken and spent + cost(one.id) <= tokens:
            chosen = [*chosen, one]
            taken.add(one.id)
            spent += cost(one.id)
    return chosen


def window(hits: Sequence[Found], before: dict[int, int], after: dict[int, int], notes: int | None) -> list[Found]:
    """Each hit with the turn before and the turn after it, at most ``notes`` in all (the baseline WINDOW)."""
    notes = 3 * len(hits) if notes is None else notes
    found: dict[int, Found] = {}
    for hit in hits:
        for one in (hit, *(_beside(hit, side.get(hit.id)) for side in (before, after))):
            if one is not None and one.id not in found and len(found) < notes:
                found[one.id] = one
        if len(found) >= notes:
            break
    return list(found.values())


def _beside(hit: Found, id: int | None) -> Found | None:
    return None if id is None else Found(id, hit.score, "window", hit.own, hit.id)
