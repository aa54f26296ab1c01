"""HippoRAG (Jiménez Gutiérrez et al. 2024, NeurIPS, arXiv 2405.14831): a graph of phrases finds passages in one step.

While passages are written, triples are extracted from them; subjects and objects become nodes of one graph, and
phrases that are alike are joined. A question's entities are looked up in the graph, one personalised PageRank starts
from them, and passages are ranked by the mass of the phrases they name: two passages that never mention each other are
found together when a phrase joins them. The passages and their triples are items of the store; the graph is derived
from them, kept in step with the store's log (edits, deletions and undo included), and rebuilt when a file is opened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.checks import number, whole
from workbench.errors import BadInput
from workbench.llm import ChatModel
from workbench.memory.base import MEMORIES
from workbench.memory.stores._hipporag_graph import Index, PhraseGraph
from workbench.memory.stores._hipporag_openie import (
    GIVEN,
    Extraction,
    Gazetteer,
    OpenIE,
    as_openie,
    check_entities,
    check_passage,
    from_meta,
)
from workbench.memory.stores._hipporag_rank import WALKS, Link, Trace, minmax, personalisation, spread
from workbench.memory.stores._hipporag_sync import KIND, Mirror
from workbench.memory.stores._hipporag_text import normalise
from workbench.memory.stores._hipporag_two import FactFilter, FactGraph, LlmFilter
from workbench.memory.stores.base import Reading, Recalled, StoreMemory, check_read, count_tokens, fitting

if TYPE_CHECKING:
    import numpy as np

    from workbench.memory.durable import Store
    from workbench.memory.retrieval import Encoder

FLAT = ("dense", "bm25")
VERSIONS = ("1", "2")
#: Settings that ``trace`` and ``read`` may be given for one question.
SWITCHES = (
    "damping", "tau", "specificity", "synonymy", "walk", "neighbour_share", "ensemble", "recognition", "flat",
    "solver", "version", "facts", "passage_weight",
)  # fmt: skip


@MEMORIES.register("hipporag")
class HippoRAG(StoreMemory):
    """A store whose passages are found through a graph of their phrases.

    Args:
        path: the store's file (None: in memory); or give an open ``store``.
        encoder: encodes passages and questions (dense scores); the store's default when None.
        phrases: encodes phrases for linking and synonymy; the passages' encoder when None.
        openie: who extracts entities and triples: None (rules, labelled), a chat model, a mapping from passage to
            its published ``{"entities": ..., "triples": ...}``, or an :class:`OpenIE`. Triples that come with a
            passage (``meta["triples"]``) are always used unchanged.
        damping: d, the probability of walking on (the paper's 0.5; its prose means 1 - d).
        tau: cosine from which two phrases are joined by a synonymy edge.
        specificity: weight the question's nodes by s_i = 1 / |P_i|, |P_i| passages naming the node.
        synonymy: walk synonymy edges too.
        walk: "pagerank"; the ablations "query nodes" (no walk) and "neighbours" (a share of one step).
        neighbour_share: that share (not published; ours).
        ensemble: average with the flat score unless every entity is linked with a cosine above ``recognition``
            (appendix F.2).
        flat: "dense" or "bm25": what answers when the graph cannot, and the ensemble's other half.
        k: passages that a read gives back.
        synonyms: most synonymy edges that one phrase proposes.
        accents: "fold" (é to e, ours) or "drop" (the released code).
        solver: "auto", "igraph" or "power" (see :class:`Walker`).
        version: "1"; "2" for HippoRAG 2 with its ``facts`` (facts linked), ``passage_weight`` and ``fact_filter``.

    Raises BadInput for a setting outside its range.
    """

    slug = "hipporag"

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        store: Store | None = None,
        encoder: Encoder | str | None = None,
        phrases: Encoder | None = None,
        openie: ChatModel | OpenIE | Mapping[str, Mapping[str, Any]] | None = None,
        damping: float = 0.5,
        tau: float = 0.8,
        specificity: bool = True,
        synonymy: bool = True,
        walk: str = "pagerank",
        neighbour_share: float = 0.1,
        ensemble: bool = False,
        recognition: float = 0.9,
        flat: str = "dense",
        k: int = 5,
        synonyms: int = 100,
        accents: str = "fold",
        solver: str = "auto",
        version: str = "1",
        facts: int = 5,
        passage_weight: float = 0.05,
        fact_filter: FactFilter | None = None,
    ):
        from workbench.memory.durable import Store

        if store is not None and (path is not None or encoder is not None):
            raise BadInput("give a store, or a path and an encoder for one, not both")
        self.damping, self.tau, self.specificity, self.synonymy = damping, tau, specificity, synonymy
        self.walk, self.neighbour_share, self.ensemble, self.recognition = walk, neighbour_share, ensemble, recognition
        self.k, self.synonyms = whole("k", k), whole("synonyms", synonyms)
        self.flat, self.accents, self.solver = flat, accents, solver
        self.version, self.facts, self.passage_weight = version, facts, passage_weight
        vars(self).update(checked_settings({name: getattr(self, name) for name in SWITCHES}))
        normalise("", accents)
        self.openie = as_openie(openie)
        llm = self.openie.llm
        self.fact_filter = fact_filter or (LlmFilter(llm, self.openie.ledger) if llm is not None else None)
        self.store = store if store is not None else Store(path, encoder=encoder)
        self.phrases = phrases
        graph = PhraseGraph(self._encode_phrases, tau=tau, most=self.synonyms)
        self._mirror = Mirror(self.store, graph, self.openie, accents)
        self._two: dict[tuple[int, bool], FactGraph] = {}

    # -- writing ------------------------------------------------------------------------------------------------

    def write(
        self, text: str, *, time: float | None = None, key: str | None = None, meta: dict[str, Any] | None = None
    ) -> int:
        """Keep one passage with its triples; ``meta`` may bring "entities" and "triples" of its own.

        A passage that is already held is not written twice: its id comes back (and the log says so), unless it would
        get another key, which is BadInput.
        """
        return self._write([text], [meta or {}], [key], [time])[0]

    def write_many(
        self,
        texts: Sequence[str],
        metas: Sequence[Mapping[str, Any]] | None = None,
        *,
        keys: Sequence[str | None] | None = None,
        times: Sequence[float | None] | None = None,
    ) -> list[int]:
        """Keep a corpus in one transaction; the ids in the order given.

        Raises BadInput when, after that, the whole index would hold not one triple: an empty extraction would make
        every ranking meaningless without a sign of it.
        """
        count = len(texts)
        metas, keys, times = metas or [{}] * count, keys or [None] * count, times or [None] * count
        for name, column in (("metas", metas), ("keys", keys), ("times", times)):
            if len(column) != count:
                raise BadInput(f"{name} must have one entry for each of {count} texts, got {len(column)}")
        return self._write(texts, metas, keys, times, corpus=True)

    def _write(
        self,
        texts: Sequence[str],
        metas: Sequence[Mapping[str, Any]],
        keys: Sequence[str | None],
        times: Sequence[float | None],
        corpus: bool = False,
    ) -> list[int]:
        from workbench.memory.durable.items import NewItem

        self._mirror.sync()
        new: dict[str, NewItem] = {}
        for text, meta, key, time in zip(texts, metas, keys, times):
            check_passage(text, meta)
            held = self._mirror.find(text)
            if held is not None and key is not None and self.store.get(held).key != key:
                raise BadInput(f"this passage is already held as item {held}; it cannot get the key {key!r} as well")
            if held is None and text not in new:
                found = self._extract(text, meta)
                more = {name: value for name, value in meta.items() if name not in ("entities", "triples")}
                whole = {**more, **found.meta(), "extracted_from": Mirror.digest(text)}
                new[text] = NewItem(text, key=key, kind=KIND, time=time, meta=whole)
        total = sum(len(item.meta["triples"]) for item in new.values() if item.meta)
        if corpus and new and not total and not self.index().facts:
            raise BadInput(
                f"not one triple came out of {len(new)} passages ({self.openie.label}); an index without triples "
                "cannot rank. Check the extraction, or give triples in metas"
            )
        why = f"{len(new)} passages, {total} triples ({self.openie.label})"
        made = {item.text: item.id for item in self.store.add_many(list(new.values()), why)}
        again = [text for text in texts if text not in made]
        ids = [made[text] if text in made else self._held(text) for text in texts]
        if again:
            self.store.record("read", dict.fromkeys(map(self._held, again)), "already held, not written again")
        return ids

    def _held(self, text: str) -> int:
        found = self._mirror.find(text)
        assert found is not None
        return found

    def _extract(self, text: str, meta: Mapping[str, Any]) -> Extraction:
        if "triples" in meta:
            return from_meta({**meta, "openie": meta.get("openie", GIVEN)}, self.accents)
        if "entities" in meta:
            raise BadInput('meta["entities"] comes with meta["triples"]; give both or neither')
        return self.openie.passage(text, self.accents)

    # -- reading ------------------------------------------------------------------------------------------------

    def index(self) -> Index:
        """The graph and its matrices (D, H, T, S, W, P) as the store stands now."""
        with self._mirror.lock:
            self._mirror.sync()
            return self._mirror.graph.index()

    def statistics(self) -> dict[str, int]:
        """Passages, nodes, relations, triples, synonymy edges, and malformed triples that were dropped."""
        return {**self.index().statistics(), "malformed triples": self._mirror.malformed}

    def read(
        self,
        query: str,
        *,
        k: int | None = None,
        budget_notes: int | None = None,
        budget_tokens: int | None = None,
        time: float | None = None,
    ) -> Reading:
        """The ``k`` best passages with a score above 0 (those that the walk reached); ``time`` plays no part here.

        A passage longer than what is left of ``budget_tokens`` is left out, and the note says so.
        """
        query = check_read(query, k=k, budget_notes=budget_notes, budget_tokens=budget_tokens)
        trace = self.trace(query)
        wanted = min(k or self.k, budget_notes or len(trace.scores))
        rows = [row for row in trace.order[:wanted].tolist() if trace.scores[row] > 0]
        items = self.store.items([trace.index.passages[row] for row in rows])
        places, tokens = fitting((count_tokens(item.text) for item in items), budget_tokens)
        kept = [Recalled(items[i].id, items[i].text, float(trace.scores[rows[i]]), trace.how) for i in places]
        dropped = len(rows) - len(kept)
        notes = [trace.note, f"{dropped} passages did not fit into {budget_tokens} tokens" if dropped else ""]
        note = "; ".join(part for part in notes if part)
        entities = [link.entity for link in trace.links]
        told = {"query": query, "how": trace.how, "entities": entities, "note": note}
        self.store.record("read", [recalled.id for recalled in kept], "asked", **told)
        return Reading(query, tuple(kept), tokens, note)

    def trace(self, query: str, *, entities: Sequence[str] | None = None, **switches: Any) -> Trace:
        """One retrieval in full: links, personalisation, mass, scores of all passages. Changes nothing in the store.

        ``entities`` stands in for the question's named entities; ``switches`` replace settings (``SWITCHES``) for this
        question. Without entities, without triples or without mass on any passage the flat score ranks, and
        ``Trace.note`` says why.
        """
        query = check_read(query)
        unknown = set(switches) - set(SWITCHES)
        if unknown:
            raise BadInput(f"trace has no switch {sorted(unknown)[0]!r}; it has {', '.join(SWITCHES)}")
        settings = checked_settings({name: getattr(self, name) for name in SWITCHES} | switches)
        with self._mirror.lock:
            return self._trace(query, entities, settings)

    def _trace(self, query: str, entities: Sequence[str] | None, settings: dict[str, Any]) -> Trace:
        self._mirror.sync()
        index = self._mirror.graph.at(settings["tau"])
        if not index.passages:
            return self._flat(query, index, settings, "the memory is empty")
        if not index.facts:
            return self._flat(query, index, settings, "the index holds no triples")
        if settings["version"] == "2":
            return self._trace_two(query, index, settings)
        by = "given"
        if entities is None:
            entities, by = self.openie.question(query, self._mirror.gazetteer)
        links = self.link(entities, index)
        if not links:
            return self._flat(query, index, settings, "no entity was found in the question", by)
        return self._trace_one(query, index, settings, links, by)

    def _trace_one(self, query: str, index: Index, settings: dict[str, Any], links: tuple[Link, ...], by: str) -> Trace:
        start = personalisation(index, [link.node for link in links], settings["specificity"])
        names = ("walk", "damping", "synonymy", "neighbour_share", "solver")
        mass = spread(index, start, **{name: settings[name] for name in names})
        raw = index.P @ mass
        scores, how, note = minmax(raw), "graph", ""
        if not scores.any() and raw.any():
            scores = (raw > 0).astype(float)  # all passages alike: as after one passage was written
        if not raw.any():
            return self._flat(query, index, settings, "no passage holds a phrase that the walk reached", by)
        if settings["ensemble"] and min(link.cosine for link in links) <= settings["recognition"]:
            scores, how = 0.5 * scores + 0.5 * minmax(self.flat_scores(query, settings["flat"])), "graph + flat"
            note = (
                f"an entity is linked with a cosine of at most {settings['recognition']}: averaged with the flat score"
            )
        return Trace(query, index, scores, how, note, by, links, start, mass, settings)

    def _trace_two(self, query: str, index: Index, settings: dict[str, Any]) -> Trace:
        graph = self._fact_graph(index, settings["synonymy"])
        vector = self._encode_facts([query])[0]
        links = graph.link(query, vector, settings["facts"], self.fact_filter)
        if not links:
            return self._flat(query, index, settings, "the filter kept no fact")
        dense = self.flat_scores(query, settings["flat"])
        weights = {name: settings[name] for name in ("passage_weight", "specificity")}
        start = graph.start(links, dense, **weights)
        if not start.any():
            return self._flat(query, index, settings, "neither facts nor passages have a score")
        mass = graph.walker.rank(start, settings["damping"], solver=settings["solver"])
        size = len(index.nodes)
        return Trace(query, index, mass[size:], "graph", "", "facts", links, start, mass[:size], settings)

    def _flat(self, query: str, index: Index, settings: dict[str, Any], why: str, by: str = "") -> Trace:
        import numpy as np

        if not index.passages:
            return Trace(query, index, np.zeros(0), "nothing", why, by, settings=settings)
        scores = self.flat_scores(query, settings["flat"])
        if not (scores > 0).any():
            return Trace(query, index, scores, "nothing", f"{why}, and no passage is like it", by, settings=settings)
        note = f"{why}: ranked by {settings['flat']}"
        return Trace(query, index, scores, settings["flat"], note, by, settings=settings)

    def link(self, entities: Sequence[str], index: Index | None = None) -> tuple[Link, ...]:
        """The node nearest to each entity (cosine 1 for the phrase itself); entities without letters are left out."""
        check_entities(entities)
        index = self.index() if index is None else index
        wanted = [(entity, normalise(entity, self.accents)) for entity in entities]
        wanted = [(entity, phrase) for entity, phrase in wanted if phrase]
        if not wanted or not index.nodes:
            return ()
        unknown = [phrase for _, phrase in wanted if phrase not in index.position]
        cosines = index.vectors @ self._encode_phrases(unknown).T if unknown else None
        links = []
        for entity, phrase in wanted:
            if phrase in index.position:
                links.append(Link(entity, phrase, index.position[phrase], 1.0))
            elif cosines is not None:
                column = cosines[:, unknown.index(phrase)]
                links.append(Link(entity, phrase, int(column.argmax()), float(column.max())))
        return tuple(links)

    def flat_scores(self, query: str, kind: str = "dense") -> np.ndarray:
        """(P,) scores of all passages by cosine ("dense") or by BM25: the baselines, and the fallback."""
        query = check_read(query)
        if kind not in FLAT:
            raise BadInput(f"flat={kind!r} is not one of {', '.join(FLAT)}")
        with self._mirror.lock:
            passages = self.index().passages
            return self._mirror.dense(query, passages) if kind == "dense" else self._mirror.bm25(query, passages)

    # -- encoders -----------------------------------------------------------------------------------------------

    def _encode_phrases(self, texts: Sequence[str]) -> np.ndarray:
        return (self.phrases or self.store.encoder).encode(list(texts))

    def _encode_facts(self, texts: Sequence[str]) -> np.ndarray:
        return self.store.encoder.encode(list(texts))

    def _fact_graph(self, index: Index, synonymy: bool) -> FactGraph:
        key = (id(index), synonymy)
        if key not in self._two:
            self._two = {key: FactGraph(index, self._encode_facts, synonymy)}
        return self._two[key]


def checked_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """``settings`` with plain numbers. Raises BadInput for a switch outside its range."""
    choices = {"walk": WALKS, "flat": FLAT, "version": VERSIONS, "solver": ("auto", "igraph", "power")}
    for name, legal in choices.items():
        if settings[name] not in legal:
            raise BadInput(f"{name}={settings[name]!r} is not one of {', '.join(map(repr, legal))}")
    shares = {name: number(name, settings[name], 0, 1) for name in ("damping", "tau", "recognition")}
    weights = {name: number(name, settings[name], 0) for name in ("neighbour_share", "passage_weight")}
    if shares["damping"] == 1 or shares["tau"] == 0:
        raise BadInput("damping must be below 1 (the walk has to return) and tau above 0")
    return {**settings, **shares, **weights, "facts": whole("facts", settings["facts"])}


__all__ = ["Gazetteer", "HippoRAG", "OpenIE"]
