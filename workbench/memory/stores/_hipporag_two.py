"""HippoRAG 2 (arXiv 2502.14802): passages are nodes too, and a question is linked to facts instead of entities.

Facts near the question give their two phrases the mean fact score (shared out by |P_i| with specificity, as the
maintained code does), every passage gets its dense score times a small weight, and the walk's mass on the passage
nodes ranks them. A filter (a language model in the paper) may drop facts before that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel, Field

from workbench.llm import ChatModel, Ledger, Message, ask
from workbench.memory.stores._hipporag_pagerank import Walker
from workbench.memory.stores._hipporag_rank import Link, minmax
from workbench.memory.stores._hipporag_text import Triple

if TYPE_CHECKING:
    import numpy as np

    from workbench.memory.stores._hipporag_graph import Index

FactFilter = Callable[[str, Sequence[Triple]], Sequence[Triple]]


class KeptFacts(BaseModel):
    """Answer of the filter: numbers of the facts that help with the question."""

    keep: list[int] = Field(default_factory=list)


@dataclass(frozen=True)
class LlmFilter:
    """Recognition memory of HippoRAG 2: a language model says which linked facts bear on the question.

    Without one (or when it fails) all facts stay, and the ledger counts it.
    """

    llm: ChatModel | None
    ledger: Ledger

    def __call__(self, query: str, facts: Sequence[Triple]) -> Sequence[Triple]:
        listed = "\n".join(f"{number}. {' | '.join(fact)}" for number, fact in enumerate(facts))
        task = "Which of the numbered facts help to answer the question? Give their numbers; none is a valid answer."
        messages = [Message("system", task), Message("user", f"Question: {query}\n{listed}")]
        everything = KeptFacts(keep=list(range(len(facts))))
        reply = ask(self.llm, messages, KeptFacts, fallback=lambda: everything, ledger=self.ledger)
        assert isinstance(reply.parsed, KeptFacts)
        return [facts[number] for number in dict.fromkeys(reply.parsed.keep) if 0 <= number < len(facts)]


class FactGraph:
    """An index with its passages as nodes N .. N + P - 1 and an encoding of every fact."""

    def __init__(self, index: Index, encode: Callable[[Sequence[str]], np.ndarray], synonymy: bool = True):
        from scipy import sparse

        self.index = index
        contains = sparse.csr_array((index.P > 0).astype(float))
        phrases = index.W if synonymy else index.T
        self.walker = Walker(sparse.csr_array(sparse.block_array([[phrases, contains.T], [contains, None]])))
        self.vectors = encode([" ".join(fact) for fact in index.facts])

    def link(self, query: str, vector: np.ndarray, count: int, keep: FactFilter | None) -> tuple[Link, ...]:
        """The ``count`` nearest facts that the filter keeps, as links of both their phrases; cosines scaled to 0..1."""
        import numpy as np

        scores = minmax(self.vectors @ vector)
        best = np.argsort(-scores, kind="stable")[:count].tolist()
        facts = [self.index.facts[fact] for fact in best]
        kept = set(facts if keep is None else keep(query, facts))
        return tuple(
            Link(" ".join(fact), phrase, self.index.position[phrase], float(scores[number]))
            for number, fact in zip(best, facts)
            if fact in kept
            for phrase in dict.fromkeys((fact.subject, fact.object))
        )

    def start(
        self, links: Sequence[Link], dense: np.ndarray, *, passage_weight: float, specificity: bool
    ) -> np.ndarray:
        """(N + P,): mean fact score at the linked phrases, weighted dense scores at the passages."""
        import numpy as np

        size = len(self.index.nodes)
        start, times = np.zeros(size + len(self.index.passages)), np.zeros(size)
        for link in links:
            start[link.node] += link.cosine * (self.index.specificity[link.node] if specificity else 1.0)
            times[link.node] += 1
        start[:size] /= np.maximum(times, 1)
        start[size:] = minmax(dense) * passage_weight
        return start
