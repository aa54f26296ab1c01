"""Looking into A-MEM: what it holds, how a note came to be what it is, and why a question found what it found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from workbench.errors import BadInput
from workbench.memory.stores._amem_notes import KIND, Note
from workbench.memory.stores._amem_rules import common

if TYPE_CHECKING:
    import pandas as pd

    from workbench.memory.base import Event
    from workbench.memory.durable import Item, Store
    from workbench.memory.stores._amem_state import Notes
    from workbench.memory.stores.base import Reading

#: Fields of an item that evolution changes; the index text follows them.
_TOLD = ("tags", "meta")
#: How the reason of such an event begins.
TAKEN_BACK = "taken back:"


class Inspect:
    """What the inspector, the note graph and the retrieval trace show; part of :class:`AMem`."""

    store: Store
    notes: Notes
    directed: bool
    link_threshold: float
    indexing: str
    read: Any

    def contents(self, *, start: int = 0, count: int | None = None) -> pd.DataFrame:
        """One row per note, oldest first.

        Columns: id, key, time (UTC), content, keywords, tags, context, links_out, links_in, retrieved and evolved (how
        often), last_change (step of the log), stale (the embedding is not of the present note: lazy mode, or it was
        edited in the store itself; ``reindex`` mends that).
        """
        import pandas as pd

        items = self.store.items(self.store.contents(start=start, count=count)["id"].tolist())
        self.notes.sync()
        seen = self._counts()
        rows = [_row(item, self.notes.links_in(item.id), seen, self._outdated(item)) for item in items]
        return pd.DataFrame(rows, columns=None if rows else _COLUMNS)

    def _counts(self) -> dict[str, Any]:
        """How often each note was read and evolved, and the step of its last change."""
        retrieved: Counter[int] = Counter()
        last: dict[int, int] = {}
        for event in self.store.events():
            if event.kind == "read":
                retrieved.update(event.items)
            else:
                last.update(dict.fromkeys(event.items, event.step))
        evolved = {(event.items[0], event.detail["unit"]) for event, _ in self._evolving()}
        return {"retrieved": retrieved, "evolved": Counter(id for id, _ in evolved), "last": last}

    def _evolving(self) -> Iterator[tuple[Event, int]]:
        """Every change that a new note made to another one's context or tags, and which note made it.

        The new note is the one that was written in the same unit.
        """
        written: dict[int, int] = {}
        for event in self.store.events():
            if event.kind == "write":
                written[event.detail["unit"]] = event.items[0]
            elif event.kind == "update" and event.detail.get("field") in _TOLD and "undoes" not in event.detail:
                cause = written.get(event.detail["unit"])
                if cause is not None and cause not in event.items:
                    yield event, cause

    def explain(self, query: str, **options: Any) -> pd.DataFrame:
        """Why a question finds what it finds; ``options`` are those of ``read``.

        One row per note: rank, id, how ("direct", "link"), via (the note that led to it), score, text, shared (names
        and keywords that the note has in common with the one that led to it).
        """
        made: Reading = self.read(query, **options)
        frame = made.frame()
        shared = [self.shared(item.id, item.via) if item.via is not None else "" for item in made.items]
        return frame.assign(shared=shared)

    def shared(self, first: int, second: int) -> str:
        """Names and keywords that two notes have in common, as one text."""
        held = self.notes.sync().held
        return ", ".join(common(held[first], held[second]))

    def history(self, id: int) -> pd.DataFrame:
        """What happened to a note: step, why, field (context, keywords, tags), old, new; one row per changed field.

        Notes that were forgotten have one too. Raises UnknownItem for a note that never was.
        """
        import pandas as pd

        from workbench.memory.durable.items import UnknownItem, identifier

        id = self.store.get(id).id if isinstance(id, str) else identifier(id)
        if not any(id in event.items for event in self.store.events()):
            raise UnknownItem(f"there never was a note {id}; contents() lists those that are held")
        causes = {event.step: f"evolved by note {cause}" for event, cause in self._evolving()}
        rows: list[tuple[Any, ...]] = []
        for event in self.store.events():
            if id in event.items and event.kind == "update" and event.detail.get("field") in _TOLD:
                why = causes.get(event.step, event.why)
                rows += [(event.step, why, *change) for change in _changes(event.detail)]
        return pd.DataFrame(rows, columns=["step", "why", "field", "old", "new"])

    def edit(
        self,
        id: int,
        *,
        text: str | None = None,
        tags: Sequence[str] | None = None,
        why: str = "edited",
        **fields: Any,
    ) -> Note:
        """Change what a note says (``text``, ``tags``, ``keywords``, ``context``); its embedding follows at once.

        One undo step. Raises BadInput for another field, or for what an item cannot hold.
        """
        if unknown := sorted(set(fields) - {"keywords", "context"}):
            raise BadInput(f"a note has no {unknown[0]!r} to edit; it has text, tags, keywords and context")
        item = self.store.get(id)
        new: dict[str, Any] = {"text": item.text if text is None else text, "meta": {**item.meta, **fields}}
        new["tags"] = item.tags if tags is None else tags
        if isinstance(text, str):  # anything else is refused by the store
            note = replace(Note.of(item), content=text)
        else:
            note = Note.of(item)
        keywords, context = new["meta"].get("keywords", ()), new["meta"].get("context", "")
        note = replace(note, keywords=tuple(keywords), context=str(context), tags=tuple(new["tags"]))
        return Note.of(self.store.update(item.id, why=why, index_text=note.index_text(), **new))

    def reindex(self) -> int:
        """Let the embeddings follow notes that were edited in the store itself; returns how many had to."""
        outdated = [item for item in self.store.items() if self._outdated(item)]
        with self.store.transaction("embeddings follow the edited notes"):
            for item in outdated:
                self.store.update(item.id, index_text=Note.of(item).index_text())
            self.store.refresh()
        return len(outdated)

    def _outdated(self, item: Item) -> bool:
        return self.indexing == "note" and item.kind == KIND and item.index_text != Note.of(item).index_text()

    def undo_evolution(self, id: int) -> Note:
        """Give a note the context, tags and keywords it had before its last evolution; its embedding follows.

        Unlike ``store.undo()``, which takes back everything that one ``write`` did, this leaves all other notes as
        they are. It is an event of its own and can be repeated back to the note as it was constructed. Raises BadInput
        when the note never evolved or all of it was taken back.
        """
        item = self.store.get(id)
        id, steps = item.id, self._evolutions(item.id)
        if not steps:
            raise BadInput(f"note {id} has no evolution left to take back")
        step, old = steps[-1]
        fields = {"tags": old.get("tags", item.tags), "meta": old.get("meta", item.meta)}
        before = Note(item.text, item.time, tuple(fields["meta"].get("keywords", ())),
                      str(fields["meta"].get("context", "")), tuple(fields["tags"]))  # fmt: skip
        why = _taken_back(step)
        made = self.store.update(id, why=why, index_text=before.index_text(), **fields)
        return Note.of(made)

    def _evolutions(self, id: int) -> list[tuple[int, dict[str, Any]]]:
        """Evolutions of a note that were not taken back: step of the first event, and old values by field."""
        units: dict[int, tuple[int, dict[str, Any]]] = {}
        for event, _ in self._evolving():
            if id in event.items:
                units.setdefault(event.detail["unit"], (event.step, {}))[1][event.detail["field"]] = event.detail["old"]
        for event in self.store.events():
            units.pop(event.detail.get("undoes", -1), None)
        taken = {event.why for event in self.store.events() if id in event.items and event.why.startswith(TAKEN_BACK)}
        return [found for found in units.values() if _taken_back(found[0]) not in taken]

    def graph(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Nodes (id, label, size: links in, group: first tag, step, context, keywords) and edges of the note graph.

        Edges: source, target, weight (words in common), kind "link", step (when the later of the two was written), why
        (the words). Steps count writes from 0, so a slider over them replays the insertion.
        """
        import pandas as pd

        held = self.notes.sync().held
        place = {id: n for n, id in enumerate(self.notes.order)}
        nodes = [_node(id, held[id], place[id], len(self.notes.links_in(id))) for id in self.notes.order]
        edges = []
        for id in self.notes.order:
            for to in self.notes.links(id, directed=True):
                words = self.shared(id, to)
                weight = 1 + words.count(", ") if words else 1
                edges.append((id, to, float(weight), "link", max(place[id], place[to]), words or "similar text"))
        columns = ["source", "target", "weight", "kind", "step", "why"]
        return pd.DataFrame(nodes, columns=None if nodes else _NODE), pd.DataFrame(edges, columns=columns)


def _taken_back(step: int) -> str:
    return f"{TAKEN_BACK} evolution of step {step}"


_COLUMNS = ["id", "key", "time", "content", "keywords", "tags", "context", "links_out", "links_in", "retrieved",
            "evolved", "last_change", "stale"]  # fmt: skip
_NODE = ["id", "label", "size", "group", "step", "context", "keywords"]


def _row(item: Item, links_in: list[int], seen: dict[str, Any], outdated: bool) -> dict[str, Any]:
    from workbench.memory.durable import when

    note = Note.of(item)
    values = (
        item.id, item.key, when(item.time).strftime("%Y-%m-%d %H:%M"), item.text, ", ".join(note.keywords),
        ", ".join(note.tags), note.context, list(note.links), links_in, seen["retrieved"][item.id],
        seen["evolved"][item.id], seen["last"].get(item.id, 0),
        item.stale or outdated,
    )  # fmt: skip
    return dict(zip(_COLUMNS, values))


def _node(id: int, note: Note, step: int, links_in: int) -> dict[str, Any]:
    group = note.tags[0] if note.tags else "note"
    values = (id, note.content, links_in, group, step, note.context, ", ".join(note.keywords))
    return dict(zip(_NODE, values))


def _changes(detail: dict[str, Any]) -> list[tuple[str, str, str]]:
    """One changed field of an item as what a reader sees: (field, old, new) for tags, keywords and context."""
    if detail["field"] == "tags":
        return [("tags", ", ".join(detail["old"]), ", ".join(detail["new"]))]
    old, new = detail["old"] or {}, detail["new"] or {}
    pairs = [("context", old.get("context", ""), new.get("context", ""))]
    pairs.append(("keywords", ", ".join(old.get("keywords", ())), ", ".join(new.get("keywords", ()))))
    return [(name, before, after) for name, before, after in pairs if before != after]
