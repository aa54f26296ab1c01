"""Did the memory give back what is needed? Recall of gold evidence, with no language model in between.

A question names the pieces that answer it (note ids, turn keys). Recall counts how many of them a reading holds;
*all-evidence* recall asks for every one of them, which is what a two-hop answer needs. Comparisons are made within the
same number of notes or tokens: a memory that gives back more than it was allowed is refused, not scored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from workbench.checks import whole
from workbench.errors import BadInput, MemoryError_
from workbench.tasks.budgets import Budget

if TYPE_CHECKING:
    import pandas as pd

    from workbench.memory.stores.base import Reading, StoreMemory
    from workbench.statistics import Interval

__all__ = ["Asked", "all_recall_at", "compare", "fill", "first_rank", "recall_at", "score", "score_rankings"]

#: Columns that every frame of :func:`score` and :func:`score_rankings` has, before the ``recall@k`` columns.
COLUMNS = (
    "question", "method", "kind", "text", "gold", "lost", "found", "recall", "all", "first", "notes", "tokens",
    "budget_notes", "budget_tokens", "ids",
)  # fmt: skip
IdOf = Mapping[Any, int] | Callable[[Any], int | None]


class Asked(Protocol):
    """What is asked of a question: its text and the names of the pieces that answer it.

    ``kind`` (a label) and ``time`` (seconds since 1970) are used where a question has them.
    """

    @property
    def text(self) -> str: ...

    @property
    def evidence(self) -> Sequence[Hashable]: ...


def recall_at(ids: Sequence[Hashable], gold: Iterable[Hashable], k: int | None = None) -> float:
    """Share of ``gold`` among the first ``k`` of ``ids`` (all of them by default); NaN when there is no gold.

    >>> recall_at([7, 3, 9], {3, 4}, 2)
    0.5
    """
    wanted = set(gold)
    return len(wanted & set(_first(ids, k))) / len(wanted) if wanted else math.nan


def all_recall_at(ids: Sequence[Hashable], gold: Iterable[Hashable], k: int | None = None) -> float:
    """1.0 when every piece of ``gold`` is among the first ``k`` of ``ids``, else 0.0; NaN when there is no gold."""
    wanted = set(gold)
    return float(wanted <= set(_first(ids, k))) if wanted else math.nan


def first_rank(ids: Sequence[Hashable], gold: Iterable[Hashable]) -> float:
    """Rank (from 1) of the first piece of ``gold`` in ``ids``; infinite when none is there."""
    wanted = set(gold)
    return next((float(rank) for rank, one in enumerate(ids, 1) if one in wanted), math.inf)


def _first(ids: Sequence[Hashable], k: int | None) -> Sequence[Hashable]:
    return ids if k is None else ids[: whole("k", k, more=", or None")]


def fill(
    memory: StoreMemory, pieces: Iterable[Any], *, text: Callable[[Any], str] | None = None
) -> dict[Hashable, int]:
    """Write generated or loaded pieces into a memory, in order; gives the item id of every piece.

    A piece is called by its ``key`` (turns) or ``id`` (notes, passages); what is written is ``text(piece)``, by default
    its ``line`` (speaker and text), ``passage`` (title and text) or ``text``, at its ``time`` where it has one.
    """
    written: dict[Hashable, int] = {}
    for piece in pieces:
        name = getattr(piece, "key", None)
        name = getattr(piece, "id", None) if name is None else name
        if name is None or name in written:
            raise BadInput(f"every piece needs a key or an id of its own, got {name!r} for {piece!r:.80}")
        key = name if isinstance(name, str) else None
        written[name] = memory.write((text or _text)(piece), time=getattr(piece, "time", None), key=key)
    return written


def _text(piece: Any) -> str:
    for name in ("line", "passage", "text"):
        if isinstance(getattr(piece, name, None), str):
            return getattr(piece, name)
    raise BadInput(f"a piece needs a line, a passage or a text, got {piece!r:.80}; or give text=")


def score(
    memory: StoreMemory,
    questions: Iterable[Asked],
    *,
    k: int | None = None,
    budget_notes: int | None = None,
    budget_tokens: int | None = None,
    id_of: IdOf | None = None,
    method: str | None = None,
    at: Sequence[int] = (2, 5, 10),
    progress: Callable[..., Any] | None = None,
) -> pd.DataFrame:
    """Read ``memory`` once for every question, in order, and say what of the gold evidence came back.

    Args:
        memory: any memory of agents. Reading may change it (strengths, times of recall): ask of a fresh one to compare.
        questions: things with ``text`` and ``evidence``; ``kind`` and ``time`` are used where they are there.
        k, budget_notes, budget_tokens: handed to ``memory.read``.
        id_of: from a name in ``evidence`` to the memory's item id (what :func:`fill` gives back), or a function;
            by default the store is asked for an item of that key.
        method: name for the ``method`` column; the memory's slug by default.
        at: depths of the ``recall@k`` columns; those beyond ``budget_notes`` are left out.
        progress: wraps the questions, like tqdm.

    Returns one row a question, columns :data:`COLUMNS` and ``recall@k``: ``gold`` pieces, of which ``lost`` are no
    longer in the memory, ``found``, ``recall``, ``all`` (0 or 1) and ``first`` (rank, infinite when nothing was
    found); ``notes`` and ``tokens`` that came back, and their ``ids``. Questions without gold have NaN recalls.

    Raises MemoryError_ when a reading exceeds a budget or holds an item twice, BadInput for what cannot be asked.
    """
    budget = Budget(budget_notes, budget_tokens)
    where = _finder(memory, id_of)
    asked = list(questions)
    rows = []
    for number, question in enumerate(asked if progress is None else progress(asked)):
        options: dict[str, Any] = {"k": k, "budget_notes": budget_notes, "budget_tokens": budget_tokens}
        if getattr(question, "time", None) is not None:
            options["time"] = question.time  # type: ignore[attr-defined]
        reading = memory.read(question.text, **options)
        _check(reading, budget, method or memory.slug)
        gold = {piece: where(piece) for piece in question.evidence}
        size = {"notes": len(reading.ids), "tokens": reading.tokens}
        rows.append(_row(number, question, reading.ids, gold, method or memory.slug, budget, at) | size)
    return _frame(rows, at, budget)


def score_rankings(
    rankings: Iterable[Sequence[Hashable]],
    questions: Iterable[Asked],
    *,
    method: str,
    budget_notes: int | None = None,
    at: Sequence[int] = (2, 5, 10),
) -> pd.DataFrame:
    """The same frame for rankings that are there already: one list of evidence names, best first, a question.

    ``budget_notes`` cuts every ranking. Tokens are not counted (NaN). Raises BadInput for another number of rankings
    than questions, or a ranking that holds a name twice.
    """
    budget, lists, asked = Budget(budget_notes), [list(ranking) for ranking in rankings], list(questions)
    if len(lists) != len(asked):
        raise BadInput(f"{len(lists)} rankings for {len(asked)} questions: give one a question")
    rows = []
    for number, (ids, question) in enumerate(zip(lists, asked)):
        if len(set(ids)) < len(ids):
            raise BadInput(f"ranking {number} names a piece twice: {ids[:10]}")
        gold = {piece: piece for piece in question.evidence}
        kept = ids[:budget_notes]
        size = {"notes": len(kept), "tokens": math.nan}
        rows.append(_row(number, question, kept, gold, method, budget, at) | size)
    return _frame(rows, at, budget)


def _finder(memory: StoreMemory, id_of: IdOf | None) -> Callable[[Any], Hashable | None]:
    """From the name of a piece to the id of the item that is still held, or None."""

    def find(piece: Any) -> int | None:
        if isinstance(id_of, Mapping):
            if piece not in id_of:
                raise BadInput(f"id_of has no item for the evidence {piece!r}; was it written into the memory?")
            found: int | None = id_of[piece]
        elif id_of is not None:
            found = id_of(piece)
        else:
            if not isinstance(piece, str):
                raise BadInput(f"evidence {piece!r} is no key: give id_of, e.g. what evidence.fill returned")
            item = memory.store.find(piece)
            found = None if item is None else item.id
        return found if found is not None and found in memory.store else None

    return find


def _check(reading: Reading, budget: Budget, method: str) -> None:
    if len(set(reading.ids)) < len(reading.ids):
        raise MemoryError_(f"{method} gave an item back twice for {reading.query!r}: {reading.ids}")
    if not budget.allows(notes=len(reading.ids), tokens=reading.tokens):
        raise MemoryError_(
            f"{method} gave back {len(reading.ids)} notes with {reading.tokens} tokens for {reading.query!r}; "
            f"the budget is {budget}"
        )


def _row(
    number: int, question: Asked, ids: Sequence[Hashable], gold: Mapping[Hashable, Hashable | None], method: str,
    budget: Budget, at: Sequence[int],
) -> dict[str, Any]:  # fmt: skip
    held = [one for one in gold.values() if one is not None]
    # A lost piece counts as one that did not come back: forgetting what is needed is a failure to recall.
    wanted: list[Hashable] = [*held, *(("lost", piece) for piece, one in gold.items() if one is None)]
    row = {
        "question": number, "method": method, "kind": str(getattr(question, "kind", "")), "text": question.text,
        "gold": len(gold), "lost": len(gold) - len(held), "found": len(set(held) & set(ids)),
        "recall": recall_at(ids, wanted), "all": all_recall_at(ids, wanted), "first": first_rank(ids, held),
        "budget_notes": budget.notes, "budget_tokens": budget.tokens, "ids": list(ids),
    }  # fmt: skip
    return row | {f"recall@{depth}": recall_at(ids, wanted, depth) for depth in at}


def _frame(rows: list[dict[str, Any]], at: Sequence[int], budget: Budget) -> pd.DataFrame:
    import pandas as pd

    depths = [f"recall@{depth}" for depth in at if budget.notes is None or depth <= budget.notes]
    return pd.DataFrame(rows, columns=[*COLUMNS, *depths])


def compare(
    frame: pd.DataFrame,
    better: str,
    worse: str,
    *,
    metric: str = "all",
    pair_by: Sequence[str] = ("question",),
    seed: int = 0,
) -> Interval:
    """Paired bootstrap interval of ``metric`` of method ``better`` minus method ``worse`` over the same questions.

    ``pair_by`` names the columns that make a question unique (add "seed" when worlds of several seeds are stacked).
    Questions without a value (no gold) are left out. Raises BadInput when the two were not asked the same questions.
    """
    from workbench.statistics import paired_bootstrap

    missing = sorted({"method", metric, *pair_by} - set(frame.columns))
    if missing:
        raise BadInput(f"the frame lacks the columns {', '.join(missing)}; it has {', '.join(map(str, frame.columns))}")
    sides = []
    for name in (better, worse):
        rows = frame.loc[frame["method"] == name].set_index(list(pair_by))[metric].dropna()
        if rows.empty or rows.index.has_duplicates:
            known = ", ".join(sorted(map(str, frame["method"].unique())))
            problem = "no rows" if rows.empty else f"several rows a {' and '.join(pair_by)}"
            raise BadInput(f"method {name!r} has {problem}; methods: {known}. Name more columns in pair_by?")
        sides.append(rows.sort_index())
    if not sides[0].index.equals(sides[1].index):
        raise BadInput(f"{better} and {worse} were not asked the same questions ({len(sides[0])} and {len(sides[1])})")
    return paired_bootstrap(sides[0].to_numpy(float), sides[1].to_numpy(float), seed=seed)
