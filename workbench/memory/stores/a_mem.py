"""A-MEM: every turn becomes a structured note; a new note is linked to its neighbours and rewrites what they say.

Xu, Liang, Mei, Gao, Tan, Zhang 2025, "A-MEM: Agentic Memory for LLM Agents", arXiv 2502.12110. A language model works
only at write time; reading is dense retrieval plus one hop of links. Without a model, rules fill its place, labelled as
such. What a model must answer and how it is applied: ``_amem_notes``, ``_amem_plan``; the rules: ``_amem_rules``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from workbench.checks import number, whole
from workbench.errors import BadInput
from workbench.llm import NO_MODEL, ChatModel, Ledger, Request, ask
from workbench.memory.base import MEMORIES
from workbench.memory.durable import Store, seconds
from workbench.memory.stores import _amem_read as reading
from workbench.memory.stores import _amem_rules as rules
from workbench.memory.stores._amem_inspect import Inspect
from workbench.memory.stores._amem_notes import (
    KIND,
    Evolution,
    Note,
    NoteFields,
    SearchWords,
    construct_messages,
    distinct,
    evolve_messages,
    search_messages,
)
from workbench.memory.stores._amem_plan import Plan, plan
from workbench.memory.stores._amem_state import Cosines, Memo, Notes
from workbench.memory.stores.base import Reading, Recalled, StoreMemory, check_read, count_tokens

if TYPE_CHECKING:
    from workbench.memory.retrieval import Encoder

READERS = ("links", "window", "recent", "history")
INDEXING = ("note", "published")
RESERVED = ("keywords", "context", "entities")

#: The paper's ablations and the baselines of the comparison, as settings. All of them share notes, encoder and budget.
VARIANTS: dict[str, dict[str, Any]] = {
    "FULL": {},
    "LINKS-ONLY": {"evolve": False},
    "EVOLVE-ONLY": {"link": False},
    "FLAT": {"link": False, "evolve": False},
    "WINDOW": {"link": False, "evolve": False, "reader": "window"},
    "RECENT-N": {"link": False, "evolve": False, "reader": "recent"},
    "FULL-HISTORY": {"link": False, "evolve": False, "reader": "history", "show": "content"},
}


@MEMORIES.register("a-mem")
class AMem(Inspect, StoreMemory):
    """A memory of linked notes that evolve.

    Args:
        path: the store's file; None keeps it in memory.
        store: a store that is open already (then ``path`` and ``encoder`` are its own).
        encoder: f_enc of equation 3, by name or object; None: the file's own, else all-MiniLM-L6-v2 where installed.
        llm: writes the notes and decides about links and evolution; None: rules.
        k_write: how many neighbours a new note meets (k = 5 in the published code).
        k_read: k, direct hits of a read (10).
        link_cap: at most so many linked notes on top of the k hits; None: ``k_read``.
        link_share: part of a budget that is kept for linked notes, 0 to 1.
        link_order: what linked notes are ranked by: "sum", "walk" or "novel" (see ``_amem_read.linked``).
        directed: links lead from the new note to the old one only, as in the published code; else both ways (Fig. 2).
        link: make and follow links. ``evolve``: let new notes rewrite context and tags of their neighbours.
        construct: describe a note by keywords, tags and context; False keeps and embeds the bare text.
        rewrite: turn a question into keywords before the search, as the evaluation code does.
        link_threshold: cosine above which the rule links notes that share no rare word.
        entity_weight: weight of names in the search for neighbours; None: 3 with rules, 1 with a model.
        reembed_every: 1 re-encodes changed notes at once; n leaves them stale until n are (published: 100).
        indexing: "note" embeds content, keywords, tags and context (equation 3); "published" embeds context and
            keywords of a new note and all of it only when it is re-encoded.
        reader: "links"; baselines: "window" (each hit with its two neighbours in time), "recent", "history".
        show: what a note shows to a reader: "note" (time, content, context, keywords, tags) or "content".
        temperature: of the model (0.7). ``seed``: passed to the model. ``tries``: answers it may give before the rule.
        log_reads: write an event for each read.

    Raises BadInput for a setting outside its range.
    """

    slug: ClassVar[str] = "a-mem"

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        store: Store | None = None,
        encoder: Encoder | str | None = None,
        llm: ChatModel | None = None,
        k_write: int = 5,
        k_read: int = 10,
        link_cap: int | None = None,
        link_share: float = 0.5,
        link_order: str = "sum",
        directed: bool = False,
        link: bool = True,
        evolve: bool = True,
        construct: bool = True,
        rewrite: bool = False,
        link_threshold: float = 0.6,
        entity_weight: float | None = None,
        reembed_every: int = 1,
        indexing: str = "note",
        reader: str = "links",
        show: str = "note",
        temperature: float = 0.7,
        seed: int = 0,
        tries: int = 3,
        log_reads: bool = True,
    ):
        if llm is not None and not isinstance(llm, ChatModel):
            raise BadInput(f"llm must be None or a chat model (open_llm of workbench.llm opens one), got {llm!r:.60}")
        self.llm, self.k_write, self.k_read = llm, whole("k_write", k_write), whole("k_read", k_read)
        self.link_cap = self.k_read if link_cap is None else whole("link_cap", link_cap, 0)
        self.link_order = _one_of("link_order", link_order, reading.ORDERS)
        self.directed, self.link, self.evolve, self.construct, self.rewrite = directed, link, evolve, construct, rewrite
        self.link_threshold = number("link_threshold", link_threshold, -1, 1)
        weight = (3.0 if llm is None else 1.0) if entity_weight is None else entity_weight
        self.entity_weight = number("entity_weight", weight, 0, 1_000)
        self.reembed_every = whole("reembed_every", reembed_every)
        self.indexing, self.reader = _one_of("indexing", indexing, INDEXING), _one_of("reader", reader, READERS)
        self.show, self.link_share = _one_of("show", show, ("note", "content")), number("link_share", link_share, 0, 1)
        Request.of("a question", temperature=temperature, seed=seed)  # raises for what no model takes
        self.temperature, self.seed, self.tries = temperature, seed, whole("tries", tries)
        if store is not None and (path is not None or encoder is not None):
            raise BadInput("give either store, or path and encoder: an open store has its own")
        self.store = store if store is not None else _open(path, encoder)
        self.notes, self.ledger, self.log_reads = Notes(self.store), Ledger(), log_reads
        #: What a model said that could not be used, by kind.
        self.problems: Counter[str] = Counter()
        self._topics: np.ndarray | None = None

    @classmethod
    def variant(cls, name: str, path: str | Path | None = None, **settings: Any) -> AMem:
        """A memory with the settings of :data:`VARIANTS`; ``settings`` come on top."""
        return cls(path, **{**VARIANTS[_one_of("variant", name, tuple(VARIANTS))], **settings})

    @property
    def label(self) -> str:
        """Who writes the notes; shown beside everything they wrote."""
        return NO_MODEL if self.llm is None else self.llm.label

    # -- writing --------------------------------------------------------------------------------------------------

    def write(
        self, text: str, *, time: float | None = None, key: str | None = None, meta: dict[str, Any] | None = None
    ) -> int:
        """Construct a note, meet its neighbours, link, evolve, store: one transaction, one undo step.

        The model is asked before anything is written. Raises BadInput as :class:`StoreMemory` says and for ``meta``
        with a name that notes use themselves (keywords, context, entities).
        """
        moment = self._check(text, time, key, meta)
        self.notes.sync()
        note = self._constructed(text, moment)
        found = self._neighbours(note)
        planned = self._decided(note, *found)
        self.problems.update(planned.problems)
        return self._store(planned, key, meta or {})

    def _check(self, text: Any, time: Any, key: str | None, meta: Any) -> float:
        from workbench.memory.durable.items import NewItem, new_row

        row = new_row(NewItem(text, key, KIND, time, meta=meta), seconds(self.store.clock()))
        if taken := sorted(set(RESERVED) & set(row["meta"])):
            raise BadInput(f"meta may not hold {taken[0]!r}: notes keep their own {', '.join(RESERVED)} there")
        if key is not None and key in self.store:
            raise BadInput(f"the key {key!r} is taken by note {self.store.get(key).id}; keys are unique")
        return row["time"]

    def _constructed(self, content: str, moment: float) -> Note:
        """Step 1, P_s1: keywords, tags and context of the content."""
        if not self.construct:
            return Note(content, moment)
        terms = self.notes.terms
        named = rules.entities(content, terms)

        def by_rule() -> NoteFields:
            first = self.encode([content, *self._entity_text(named)])[0]  # names too: one batch
            return rules.fields(content, named, terms, first, self._topic_vectors())

        made: Any = self._ask(construct_messages(content, moment), NoteFields, by_rule)
        words = distinct(made.keywords) or (content,)
        return Note(content, moment, words, " ".join(made.context.split()), distinct(made.tags), entities=named)

    def _entity_text(self, entities: Sequence[str]) -> list[str]:
        return [" ".join(entities)] if entities and self.entity_weight != 1 else []

    def _neighbours(self, note: Note) -> tuple[list[Note], list[float]]:
        """Step 3: the nearest notes and their cosines with the new one, which is not among them yet."""
        if not (self.link or self.evolve) or not self.notes.held:
            return [], []
        vector = self.encode([self._index_text(note)])[0]
        query = self.encode([note.content])[0] if self.indexing == "published" else vector
        hits = self.store.search(self._weighted(query, note.entities), self.k_write, kinds=KIND)
        cosines = self.store.vectors([hit.id for hit in hits]) @ vector
        return [self.notes.held[hit.id] for hit in hits], [float(cosine) for cosine in cosines]

    def _weighted(self, vector: np.ndarray, entities: Sequence[str]) -> np.ndarray:
        """The vector with names counted ``entity_weight`` times; unit length."""
        if not (names := self._entity_text(entities)):
            return vector
        mixed = vector + (self.entity_weight - 1) * self.encode(names)[0]
        length = float(np.linalg.norm(mixed))
        return mixed / length if length > 0 else vector

    def _decided(self, note: Note, neighbours: list[Note], cosines: list[float]) -> Plan:
        """Steps 4 and 5: links of the new note, new contexts and tags of its neighbours."""
        if not neighbours:
            return Plan(note)
        terms = self.notes.terms

        def by_rule() -> Evolution:
            return rules.decide(note, neighbours, cosines, terms, self.link_threshold)

        decided: Any = self._ask(evolve_messages(note, neighbours), Evolution, by_rule)
        return plan(decided, note, neighbours, link=self.link, evolve=self.evolve)

    def _ask(self, messages: Any, schema: Any, by_rule: Any) -> Any:
        options: dict[str, Any] = {"temperature": self.temperature, "max_tokens": 1000, "seed": self.seed}
        return ask(self.llm, messages, schema, tries=self.tries, fallback=by_rule, ledger=self.ledger, **options).parsed

    def _store(self, planned: Plan, key: str | None, meta: dict[str, Any]) -> int:
        """Steps 5 and 6, together or not at all."""
        note = planned.note
        lazy = self.reembed_every > 1
        texts = [self._index_text(note)] + ([] if lazy else [new.index_text() for new in planned.changed])
        self.encode(texts)  # one batch, before others have to wait for the transaction
        told = f"; {', '.join(f'{n} {what}' for what, n in planned.problems.items())}" if planned.problems else ""
        why = f"note constructed by {self.label}{told}"
        with self.store.transaction(why):
            links = [id for id in note.links if id in self.store]  # another process may have deleted one meanwhile
            made = self.store.add(
                note.content, key=key, kind=KIND, time=note.time, tags=note.tags, links=links,
                meta={**meta, **_fields(note)}, index_text=texts[0], why=why,
            )  # fmt: skip
            for new in planned.changed:
                if new.id in self.store:
                    self._evolve(new, made.id, lazy)
            self._refresh()
        return made.id

    def _evolve(self, new: Note, cause: int, lazy: bool) -> None:
        assert new.id is not None
        meta = {**self.store.get(new.id).meta, **_fields(new)}
        why = f"evolved by note {cause}"
        self.store.update(new.id, why=why, lazy=lazy, tags=new.tags, meta=meta, index_text=new.index_text())

    def _refresh(self) -> None:
        """Lazy mode: once ``reembed_every`` notes are stale, encode them (published: index every note in full)."""
        if self.reembed_every == 1:
            return
        items = self.store.items(kinds=KIND)
        stale = sum(item.stale for item in items)
        if stale < self.reembed_every:
            return
        why = f"re-embedded: {stale} notes had changed"
        for item in items if self.indexing == "published" else ():
            self.store.update(item.id, why=why, lazy=True, index_text=Note.of(item).index_text())
        self.store.refresh([item.id for item in items], why=why)

    def _index_text(self, note: Note) -> str:
        return note.index_text("metadata" if self.indexing == "published" else "note")

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """(n, dim) float32 by the store's encoder."""
        return self.store.encoder.encode(texts)

    def _topic_vectors(self) -> np.ndarray:
        if self._topics is None:
            self._topics = self.encode(list(rules.TOPICS))
        return self._topics

    # -- reading --------------------------------------------------------------------------------------------------

    def read(
        self,
        query: str,
        *,
        k: int | None = None,
        budget_notes: int | None = None,
        budget_tokens: int | None = None,
        time: float | None = None,
    ) -> Reading:
        """Direct hits by cosine, then the notes they are linked to.

        Without a budget: ``k`` hits and up to ``link_cap`` linked notes on top. With one: the part ``link_share`` of
        its notes is kept for linked ones, unused places go back to direct hits. ``time`` does not matter: A-MEM has no
        clock at read time. Raises BadInput as :class:`StoreMemory` says.
        """
        query = check_read(query, k=k, budget_notes=budget_notes, budget_tokens=budget_tokens)
        found, left_out = self._found(query, k, budget_notes, budget_tokens)
        texts = [self.notes.held[one.id].prompt_text(self.show) for one in found]
        items = [Recalled(one.id, text, one.score, one.how, one.via) for one, text in zip(found, texts)]
        if self.log_reads and items:
            self.store.record("read", [item.id for item in items], "asked", query=query)
        note = f"{left_out} notes are longer than the budget" if left_out else ""
        return Reading(query, tuple(items), sum(count_tokens(text) for text in texts), note)

    def _found(
        self, query: str, k: int | None, notes: int | None, tokens: int | None
    ) -> tuple[list[reading.Found], int]:
        """What is given back, best first, and how many notes were too long to be."""
        held = self.notes.sync().held
        long = set() if tokens is None else {id for id in held if self._cost(id) > tokens}
        if len(long) == len(held):
            return [], len(long)
        most = len(held) - len(long) if tokens is None else min(len(held) - len(long), tokens)
        most = most if notes is None else min(most, notes)
        choose = self._in_time(k, long) if self.reader in ("recent", "history") else self._similar(query, k, most, long)
        if tokens is not None:
            return reading.within_tokens(choose, self._cost, tokens, most), len(long)
        return choose(notes), len(long)

    def _cost(self, id: int) -> int:
        return count_tokens(self.notes.held[id].prompt_text(self.show))

    def _similar(self, query: str, k: int | None, most: int, long: set[int]) -> reading.Choose:
        """A function from a number of notes (None: no budget) to a reading by similarity and links."""
        vector = self.encode([self._search_text(query)])[0]
        cosines = Cosines(self.store, vector)
        hits = cosines.nearest(max(2 * most, k or self.k_read), long)
        if self.reader == "window":
            order = [id for id in self.notes.order if id not in long]
            before, after = dict(zip(order[1:], order)), dict(pairwise(order))
            return lambda n: reading.window(hits[: k or (self.k_read if n is None else n)], before, after, n)

        def links(id: int) -> list[int]:
            return [to for to in self.notes.links(id, self.directed) if to not in long] if self.link else []

        def choose(n: int | None) -> list[reading.Found]:
            if n is None:
                cap = self.link_cap if self.link else 0
                return reading.on_top(hits, links, cosines, k or self.k_read, cap, self.link_order)
            share = self.link_share if self.link else 0.0
            return reading.within(hits, links, cosines, n, share, k, self.link_order)

        return choose

    def _in_time(self, k: int | None, long: set[int]) -> reading.Choose:
        """RECENT-N: the last notes, newest first. FULL-HISTORY: all of them in order, the newest under a budget."""
        held, newest = self.notes.held, [id for id in self.notes.order[::-1] if id not in long]
        recent = self.reader == "recent"

        def choose(n: int | None) -> list[reading.Found]:
            last = newest[: k or (self.k_read if recent and n is None else len(newest))][:n]
            return [reading.Found(id, held[id].time, self.reader, 0.0) for id in (last if recent else last[::-1])]

        return choose

    def _search_text(self, query: str) -> str:
        if not self.rewrite:
            return query

        def by_rule() -> SearchWords:
            from workbench.llm.rules import keywords

            return SearchWords(keywords=keywords(query, 12, self.notes.terms.idf) or [query])

        return ", ".join(self._ask(search_messages(query), SearchWords, by_rule).keywords)


def _fields(note: Note) -> dict[str, Any]:
    return {"keywords": list(note.keywords), "context": note.context, "entities": list(note.entities)}


def _open(path: str | Path | None, encoder: Encoder | str | None) -> Store:
    """A file remembers its encoder; a store in memory has none to remember."""
    if path is not None and encoder is None:
        return Store(path)
    return Store(path, encoder=Memo("default" if encoder is None else encoder))


def _one_of(name: str, value: Any, legal: tuple[str, ...]) -> str:
    if value not in legal:
        raise BadInput(f"{name}={value!r} is not one of {', '.join(legal)}")
    return str(value)
