"""What a reading gives back within its budget, and the tables of the inspector and of the life chart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from workbench.memory.stores._memorybank_curve import DAY
from workbench.memory.stores._memorybank_mirror import PIECES, last_recall, user_of
from workbench.memory.stores._memorybank_pieces import Found
from workbench.memory.stores._memorybank_prompt import Block
from workbench.memory.stores.base import Reading, Recalled, count_tokens, fitting

if TYPE_CHECKING:
    import pandas as pd

    from workbench.memory.durable import Item, Store
    from workbench.memory.stores.memorybank import MemoryBank

COLUMNS = ("id", "key", "kind", "user", "date", "text", "S", "last_recall", "t", "R", "recalls", "forgotten_at")


def reading(query: str, found: Sequence[Found], budget_notes: int | None, budget_tokens: int | None) -> Reading:
    """Best first, as many as the budgets allow; a piece that does not fit is left out and a shorter one may follow."""
    from workbench.llm.rules import content_words

    texts = [_dated(one) for one in found[:budget_notes]]
    places, tokens = fitting(map(count_tokens, texts), budget_tokens)
    kept = [Recalled(found[i].item.id, texts[i], found[i].score, _how(found[i].item)) for i in places]
    notes = [f"{len(found) - len(kept)} left out by the budget"] if len(kept) < len(found) else []
    if found and not content_words(query):
        notes.append("the question has no content words, so the similarities say little")
    if not found:
        notes.append("nothing is stored for this user")
    return Reading(query, tuple(kept), tokens, "; ".join(notes))


def _dated(one: Found) -> str:
    """One line that begins with the date, the form in which the embedded reader knows dated notes."""
    return f"[{one.item.meta.get('date')}] {' '.join(one.text().split())}"


def _how(item: Item) -> str:
    return "summary" if item.kind == "daily summary" else "direct"


def memories(store: Store, found: Reading) -> list[Block]:
    """The reading's pieces as blocks of a prompt, with the time of each."""
    times = {item.id: item.time for item in store.items([id for id in found.ids if id in store])}
    return [Block("memory", item.text, (item.id,), item.score, times.get(item.id)) for item in found.items]


def overlapping(found: Reading, answer: str) -> list[int]:
    """Ids of the pieces that share a content word with ``answer``, words of the question not counted."""
    from workbench.llm.rules import content_words

    said = set(content_words(answer)) - set(content_words(found.query))
    return [item.id for item in found.items if said & set(content_words(item.text))]


def contents(
    memory: MemoryBank, start: int, count: int | None, today: Any, query: str | None, forgotten: bool
) -> pd.DataFrame:
    """The inspector's table; see ``MemoryBank.contents``."""
    import pandas as pd

    page = memory.store.contents(start=start, count=count)
    items = memory.store.items(page["id"].tolist()) if len(page) else []
    gone = memory.forgotten() if forgotten else []
    ended = _forgotten_on(memory.store) if gone else {}
    moments = {user: memory._moment(user, today) for user in {user_of(item) or memory.user for item in items}}
    rows = [_row(memory, item, moments[user_of(item) or memory.user], None) for item in items]
    rows += [_row(memory, item, 0.0, ended.get(item.id, "by hand")) for item in gone]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    if query is not None:
        hits = memory.store.search(query, max(len(memory.store), 1), kinds=PIECES)
        frame["similarity"] = frame["id"].map({hit.id: hit.score for hit in hits}).astype(float)
    return frame


def _row(memory: MemoryBank, item: Item, now: float, ended: str | None) -> tuple[Any, ...]:
    from workbench.memory.durable import when

    state: tuple[Any, ...] = (None, None, float("nan"), float("nan"), 0)
    if item.kind in PIECES:
        recalled, recalls = last_recall(item), item.meta.get("recalls", 0)
        t = (now - recalled) / DAY if ended is None else float("nan")
        r = float(memory._retentions([item], now)[0]) if ended is None else float("nan")
        state = (item.strength, f"{when(recalled):%Y-%m-%d}", t, r, recalls)
    date = item.meta.get("date", f"{when(item.time):%Y-%m-%d}")
    return (item.id, item.key, item.kind, user_of(item), date, item.text, *state, ended)


def _forgotten_on(store: Store) -> dict[int, str]:
    """Date of the last forgetting by id, from the log."""
    from workbench.memory.durable import when

    return {id: f"{when(at):%Y-%m-%d}" for id, at in _forgettings(store).items()}


def _forgettings(store: Store) -> dict[int, float]:
    told = [event for event in store.events() if event.kind == "decay" and "at" in event.detail]
    return {id: float(event.detail["at"]) for event in told for id in event.items}


def lives(memory: MemoryBank, user: str) -> pd.DataFrame:
    """The life chart's table; see ``MemoryBank.lives``."""
    import pandas as pd

    living, gone = memory._mirror.pieces(user), memory.forgotten(user)
    pieces: list[Item] = sorted([*living, *gone], key=lambda item: item.id)
    first = min((piece.time for piece in pieces), default=0.0)
    last = max([memory._newest(user), *_ends(memory.store, pieces)], default=first)
    recalled, ended = _recalls(memory.store), _forgettings(memory.store)
    dead = {piece.id for piece in gone}
    rows = []
    for piece in pieces:
        end = ended.get(piece.id, last) if piece.id in dead else last
        times = [(at - first) / DAY for at in recalled.get(piece.id, [])]
        rows.append((piece.id, piece.key, piece.kind, piece.text, (piece.time - first) / DAY, (end - first) / DAY,
                     piece.id not in dead, piece.strength, times))  # fmt: skip
    return pd.DataFrame(rows, columns=["id", "key", "kind", "text", "born", "ended", "alive", "S", "recalls"])


def _ends(store: Store, pieces: Iterable[Item]) -> list[float]:
    ids = {piece.id for piece in pieces}
    return [at for id, at in _forgettings(store).items() if id in ids]


def _recalls(store: Store) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for event in store.events():
        if event.kind == "read" and "at" in event.detail:
            for id in event.detail.get("recalled", ()):
                found.setdefault(int(id), []).append(float(event.detail["at"]))
    return found
