"""The corpora of HippoRAG's study as memories, and the scores of every method on their questions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from workbench.studies import _hipporag_claims as names

if TYPE_CHECKING:
    import numpy as np

    from workbench.memory.retrieval import Encoder
    from workbench.memory.stores.hipporag import HippoRAG
    from workbench_datasets.musique import Corpus
    from workbench_datasets.passage_world import PassageWorld

#: Methods that are the memory itself with one switch thrown.
SWITCHES: dict[str, dict[str, Any]] = {
    names.FULL: {},
    names.NODES: {"walk": "query nodes"},
    names.NEIGHBOURS: {"walk": "neighbours"},
    names.NO_SPECIFICITY: {"specificity": False},
    names.NO_SYNONYMY: {"synonymy": False},
    names.ENSEMBLE: {"ensemble": True},
    names.TWO: {"version": "2"},
}
#: The same memory with the triples of the rules instead of given ones.
OTHER_OPENIE = names.RULES
KINDS = {names.BM25: "bm25", names.DENSE: "dense"}


@dataclass(frozen=True)
class Asked:
    """One question: gold ids of passages in the memory, and its entities where the corpus knows them exactly."""

    name: str
    text: str
    kind: str
    gold: frozenset[int]
    entities: tuple[str, ...] | None
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Written:
    """A corpus written into a memory."""

    part: str
    corpus: str
    memory: HippoRAG
    asked: tuple[Asked, ...]


def encoders(name: str) -> tuple[Encoder, Encoder | None]:
    """(passages, phrases): "light" needs no model (TF-IDF, letter triples), anything else encodes both, cached."""
    from workbench import storage
    from workbench.memory.retrieval import HashedTfidf, cached
    from workbench.memory.stores._hipporag_phrases import LetterTriples

    if name == "light":
        return HashedTfidf(), LetterTriples(512)
    return cached(name, storage.cache_dir("vectors", f"{name}.sqlite")), None


def world(made: PassageWorld, encoder: str, part: str) -> Written:
    memory, ids = _written(
        [p.passage for p in made.passages],
        [{"entities": list(p.entities), "triples": list(map(list, p.triples))} for p in made.passages],
        encoder,
    )
    asked = [
        Asked(f"{number}", q.text, q.kind, frozenset(ids[e] for e in q.evidence), q.entities, q.answers)
        for number, q in enumerate(made.questions)
    ]
    return Written(part, str(made.seed), memory, tuple(asked))


def corpus(made: Corpus, encoder: str, part: str, *, given: bool = True) -> Written:
    """MuSiQue or a case study; ``given=False`` ignores published triples and lets the rules extract."""
    metas: list[dict[str, Any]] = [
        {"entities": list(p.entities), "triples": [*map(list, p.triples), *map(list, p.malformed)]} if given else {}
        for p in made.passages
    ]
    memory, ids = _written([p.passage for p in made.passages], metas, encoder)
    asked = [
        Asked(q.key, q.text, q.kind, frozenset(ids[e] for e in q.evidence), None, q.answers) for q in made.questions
    ]
    return Written(part, made.name, memory, tuple(asked))


def _written(texts: Sequence[str], metas: Sequence[Mapping[str, Any]], encoder: str) -> tuple[HippoRAG, list[int]]:
    from workbench.memory.stores.hipporag import HippoRAG

    passages, phrases = encoders(encoder)
    memory = HippoRAG(encoder=passages, phrases=phrases)
    return memory, memory.write_many(texts, metas)


# ---------------------------------------------------------------------- scores


def scores(ranked: Sequence[int], gold: frozenset[int]) -> dict[str, float]:
    """R@2 and R@5 (share of the gold passages among the first), AR@5 (all of them among the first five)."""
    from workbench.tasks.evidence import all_recall_at, recall_at

    return {
        "R@2": recall_at(ranked, gold, 2),
        "R@5": recall_at(ranked, gold, 5),
        "AR@5": all_recall_at(ranked, gold, 5),
    }


def rows(held: Written, methods: Sequence[str], quiet: Callable[..., Any]) -> Iterable[dict[str, Any]]:
    """R@2, R@5, AR@5 (and calls) of every method on every question, at the memory's own damping and threshold."""
    ranker = {name: _ranker(held, name) for name in methods}
    for asked in quiet(held.asked, f"{held.part} {held.corpus}"):
        for name, rank in ranker.items():
            ids, calls = rank(asked)
            for metric, value in {**scores(ids, asked.gold), "calls": float(calls)}.items():
                yield _row(held, asked, name, metric, value)


def grid(
    held: Written, dampings: Sequence[float], taus: Sequence[float], quiet: Callable[..., Any]
) -> Iterable[dict[str, Any]]:
    """R@5 and AR@5 over damping and synonymy threshold, except at the paper's own choice, which ``rows`` has."""
    for asked in quiet(held.asked, f"{held.part} grid"):
        for tau in taus:
            for damping in dampings:
                if (damping, tau) == (held.memory.damping, held.memory.tau):
                    continue
                trace = held.memory.trace(asked.text, entities=asked.entities, damping=damping, tau=tau)
                found = scores(trace.ids, asked.gold)
                for metric in ("R@5", "AR@5"):
                    yield _row(held, asked, names.FULL, metric, found[metric], damping, tau)


def answers(held: Written, methods: Sequence[str]) -> Iterable[dict[str, Any]]:
    """EM and F1 (SQuAD's) of what a reader makes of the five best passages; no model is asked, so rules pick a span."""
    from workbench.memory.stores._hipporag_ircot import READ, ThoughtReader
    from workbench.tasks.answers import exact_match, f1

    reader, texts = ThoughtReader(), {item.id: item.text for item in held.memory.store}
    for name in methods:
        rank = _ranker(held, name)
        for asked in held.asked:
            context = "\n\n".join(texts[item] for item in rank(asked)[0][:READ])
            said = reader.answer(asked.text, context).text
            for metric, score in (("EM", exact_match), ("F1", f1)):
                yield _row(held, asked, name, metric, score(said, asked.answers))


def statistics(held: Written, method: str = names.FULL) -> Iterable[dict[str, Any]]:
    """What table 1 counts."""
    nobody = Asked("index", "", "index", frozenset(), None, ())
    for metric, value in held.memory.statistics().items():
        yield _row(held, nobody, method, metric, float(value))


def ranks(held: Written, methods: Sequence[str]) -> Iterable[dict[str, Any]]:
    """Where each gold passage of a case study stands (metric "rank", 1 is best; one line a passage)."""
    for asked in held.asked:
        for name in methods:
            ids, _ = _ranker(held, name)(asked)
            for item in sorted(asked.gold):
                title = held.memory.store.get(item).text.split("\n", 1)[0]
                where = Asked(f"{item}: {title}", "", asked.kind, asked.gold, None, ())
                yield _row(held, where, name, "rank", float(ids.index(item) + 1))


def _row(
    held: Written, asked: Asked, method: str, metric: str, value: float, damping: float = 0.5, tau: float = 0.8
) -> dict[str, Any]:
    return {
        "part": held.part, "corpus": held.corpus, "question": asked.name, "kind": asked.kind, "method": method,
        "damping": damping, "tau": tau, "metric": metric, "value": value,
    }  # fmt: skip


Ranker = Callable[[Asked], tuple[list[int], int]]


def _ranker(held: Written, name: str) -> Ranker:
    """Question -> (ids best first, questions that a language model was or would have been asked)."""
    if name in KINDS:
        return lambda asked: (_flat(held.memory, asked.text, KINDS[name])[0], 0)
    if name in names.IRCOT.values():
        return _iterative(held, next(base for base, label in names.IRCOT.items() if label == name))
    switches = SWITCHES[names.FULL if name == OTHER_OPENIE else name]
    return lambda asked: (held.memory.trace(asked.text, entities=asked.entities, **switches).ids, 1)


def _flat(memory: HippoRAG, query: str, kind: str) -> tuple[list[int], np.ndarray]:
    """Ids best first with their scores; equal scores in the order of the ids."""
    import numpy as np

    found = memory.flat_scores(query, kind)
    order = np.argsort(-found, kind="stable")
    passages = memory.index().passages
    return [passages[row] for row in order.tolist()], found[order]


def _iterative(held: Written, base: str) -> Ranker:
    from workbench.memory.stores._hipporag_ircot import ircot
    from workbench.memory.stores._hipporag_rank import minmax

    texts = {item.id: item.text for item in held.memory.store}

    def retrieve(query: str, asked: Asked) -> list[tuple[int, float]]:
        if base in KINDS:
            ids, found = _flat(held.memory, query, KINDS[base])
            return list(zip(ids, minmax(found).tolist()))
        trace = held.memory.trace(query, entities=asked.entities if query == asked.text else None)
        return list(zip(trace.ids, minmax(trace.scores)[trace.order].tolist()))

    def rank(asked: Asked) -> tuple[list[int], int]:
        chain = ircot(asked.text, partial(retrieve, asked=asked), texts.__getitem__)
        extra = len(chain.queries) if base == names.FULL else 0  # entities of every query
        return list(chain.ids), chain.calls + extra

    return rank
