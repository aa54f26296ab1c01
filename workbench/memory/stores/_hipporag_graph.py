"""HippoRAG's index: a graph of phrases over the triples of passages, and the matrices that lead back to passages.

Everything here is derived from the passages' triples: adding passages one by one gives the same index as adding them
at once, and taking one away gives the index of those that remain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from workbench.errors import BadInput
from workbench.memory.stores import _hipporag_synonyms as synonyms
from workbench.memory.stores._hipporag_pagerank import Walker
from workbench.memory.stores._hipporag_text import Triple, letters

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from scipy import sparse


@dataclass(frozen=True, eq=False)
class Index:
    """The named parts of one index. Sizes: P passages, F facts (different triples), N nodes (different phrases).

    ``D`` (P, F) 0/1: which facts a passage states. ``H`` (F, N) 0/1: which phrases a fact names. ``T`` (N, N): how
    often two phrases stand in a triple together, both directions, no loops. ``S`` (N, N): cosine of synonymous
    phrases. ``W`` = max(T, S), the graph that is walked. ``vectors`` (N, dim) float32: the phrases' encodings.
    """

    passages: tuple[int, ...]
    nodes: tuple[str, ...]
    facts: tuple[Triple, ...]
    D: sparse.csr_array
    H: sparse.csr_array
    T: sparse.csr_array
    S: sparse.csr_array
    vectors: np.ndarray

    @cached_property
    def W(self) -> sparse.csr_array:
        """The released code lets a synonymy edge overwrite the triples' weight; here the larger one stays (ours)."""
        from scipy import sparse

        return sparse.csr_array(self.T.maximum(self.S))

    @cached_property
    def P(self) -> sparse.csr_array:
        """(P, N): in how many facts of a passage a phrase occurs; D H."""
        from scipy import sparse

        return sparse.csr_array(self.D @ self.H)

    @cached_property
    def spread(self) -> np.ndarray:
        """(N,): the number of passages whose facts name the node, |P_i|."""
        import numpy as np

        return np.bincount(self.P.indices, minlength=len(self.nodes))

    @cached_property
    def specificity(self) -> np.ndarray:
        """(N,): s_i = 1 / |P_i| (1 for a node in no passage)."""
        import numpy as np

        return 1.0 / np.maximum(self.spread, 1)

    @cached_property
    def position(self) -> dict[str, int]:
        return {phrase: node for node, phrase in enumerate(self.nodes)}

    @cached_property
    def row(self) -> dict[int, int]:
        """Item id of a passage -> its row in D and P."""
        return {item: row for row, item in enumerate(self.passages)}

    def holding(self, node: int) -> list[int]:
        """Item ids of the passages that name a node."""
        low, high = self._by_node.indptr[node : node + 2]
        return [self.passages[row] for row in sorted(self._by_node.indices[low:high].tolist())]

    @cached_property
    def _by_node(self) -> sparse.csc_array:
        from scipy import sparse

        return sparse.csc_array(self.P)

    def triples(self) -> pd.DataFrame:
        """subject, relation, object, passages (item ids): one row a fact, in the order of their columns in D."""
        import pandas as pd
        from scipy import sparse

        stated = sparse.csc_array(self.D)
        rows = [stated.indices[low:high].tolist() for low, high in pairwise(stated.indptr)]
        passages = [[self.passages[row] for row in sorted(found)] for found in rows]
        frame = pd.DataFrame(self.facts, columns=["subject", "relation", "object"])
        return frame.assign(passages=pd.Series(passages, dtype=object))

    def walker(self, synonymy: bool = True) -> Walker:
        return self._walkers[0] if synonymy else self._walkers[1]

    @cached_property
    def _walkers(self) -> tuple[Walker, Walker]:
        return Walker(self.W), Walker(self.T)

    def statistics(self) -> dict[str, int]:
        """What the paper's table 1 counts (synonymy edges once per pair)."""
        return {
            "passages": len(self.passages),
            "unique nodes": len(self.nodes),
            "unique relations": len({fact.relation for fact in self.facts}),
            "unique triples": len(self.facts),
            "synonymy edges": int(self.S.nnz // 2),
            "edges from triples": int(self.T.nnz // 2),
        }


class PhraseGraph:
    """Passages' triples in, an :class:`Index` out. ``encode`` maps texts to (n, dim) float32 unit rows."""

    def __init__(self, encode: Callable[[Sequence[str]], np.ndarray], *, tau: float = 0.8, most: int = 100):
        if not 0 < tau <= 1:
            raise BadInput(f"tau={tau} must be a cosine above 0 and at most 1")
        if most < 1:
            raise BadInput(f"most={most} synonyms of a phrase must be at least 1")
        self.tau, self.most, self._encode = float(tau), int(most), encode
        self._triples: dict[int, tuple[Triple, ...]] = {}
        self._counted: _Counted | None = _Counted()
        self._phrases = _Phrases(encode)
        self._index: Index | None = None
        self._others: dict[float, Index] = {}

    def __len__(self) -> int:
        return len(self._triples)

    def __contains__(self, item: object) -> bool:
        return item in self._triples

    def items(self) -> Iterable[int]:
        return self._triples.keys()

    def add(self, item: int, triples: Sequence[Triple]) -> None:
        """Passage ``item`` (an id; passages stand in the order of their ids) with its triples, possibly none."""
        if item in self._triples:
            raise BadInput(f"passage {item} is already in the graph; remove it first")
        self._triples[item] = tuple(triples)
        self._index = None
        if self._counted is not None and self._counted.last < item:
            self._counted.append(item, triples)
        else:
            self._counted = None  # out of order: counted anew when the index is asked for

    def remove(self, item: int) -> None:
        if item not in self._triples:
            raise BadInput(f"there is no passage {item} in the graph")
        del self._triples[item]
        self._index = self._counted = None

    def triples(self, item: int) -> tuple[Triple, ...]:
        return self._triples[item]

    def index(self) -> Index:
        """The index of the passages held now; computed when something changed."""
        if self._index is None:
            if self._counted is None:
                self._counted = _Counted()
                for item in sorted(self._triples):
                    self._counted.append(item, self._triples[item])
            self._index, self._others = self._build(self._counted), {}
        return self._index

    def at(self, tau: float) -> Index:
        """The same passages with another synonymy threshold (this graph's own stays as it is)."""
        if not 0 < tau <= 1:
            raise BadInput(f"tau={tau} must be a cosine above 0 and at most 1")
        index = self.index()
        if tau == self.tau:
            return index
        if tau not in self._others:
            edges = self._synonymy(index.nodes, tau)
            parts = (index.passages, index.nodes, index.facts, index.D, index.H, index.T, edges, index.vectors)
            self._others[tau] = Index(*parts)
        return self._others[tau]

    def _build(self, counted: _Counted) -> Index:
        nodes = tuple(counted.nodes)
        edges = self._synonymy(nodes, self.tau)
        passages, facts = tuple(counted.passages), tuple(counted.facts)
        return Index(passages, nodes, facts, *counted.matrices(), edges, self._phrases.vectors(nodes))

    def _synonymy(self, nodes: Sequence[str], tau: float) -> sparse.csr_array:
        import numpy as np
        from scipy import sparse

        pairs = self._phrases.pairs(nodes, tau)
        eligible = np.array([letters(phrase) > 2 for phrase in nodes], dtype=bool)
        kept = synonyms.capped(pairs, eligible, self.most)
        shape = (len(nodes), len(nodes))
        half = sparse.coo_array((kept.cosine, (kept.first, kept.second)), shape=shape)
        return sparse.csr_array(half + half.T)


class _Counted:
    """Passages counted in order: numbers of nodes and facts are given at their first appearance."""

    def __init__(self) -> None:
        self.last = -1
        self.passages: list[int] = []
        self.nodes: dict[str, int] = {}
        self.facts: dict[Triple, int] = {}
        self._stated: list[tuple[int, int]] = []  # passage row, fact
        self._named: list[tuple[int, int]] = []  # fact, node
        self._together: list[tuple[int, int]] = []  # node, node: one a triple

    def append(self, item: int, triples: Sequence[Triple]) -> None:
        row, self.last = len(self.passages), item
        self.passages.append(item)
        for triple in triples:
            ends = [self.nodes.setdefault(phrase, len(self.nodes)) for phrase in (triple.subject, triple.object)]
            fact = self.facts.setdefault(triple, len(self.facts))
            self._stated.append((row, fact))
            self._named += [(fact, node) for node in ends]
            if ends[0] != ends[1]:
                self._together.append((ends[0], ends[1]))

    def matrices(self) -> tuple[sparse.csr_array, sparse.csr_array, sparse.csr_array]:
        """D, H and T."""
        from scipy import sparse

        sizes = len(self.passages), len(self.facts), len(self.nodes)
        stated, named = (_sums(*part) for part in ((self._stated, sizes[:2]), (self._named, sizes[1:])))
        stated.data[:] = 1.0
        named.data[:] = 1.0
        pairs = _sums(self._together, (sizes[2], sizes[2]))
        return stated, named, sparse.csr_array(pairs + pairs.T)


def _sums(places: list[tuple[int, int]], shape: tuple[int, int]) -> Any:
    """A sparse matrix with one added at every place."""
    import numpy as np
    from scipy import sparse

    where = np.array(places, dtype=np.int64).reshape(-1, 2)
    matrix = sparse.csr_array((np.ones(len(where)), (where[:, 0], where[:, 1])), shape=shape)
    matrix.sum_duplicates()
    return matrix


class _Phrases:
    """Every phrase ever met with its vector, and the pairs found alike so far; both grow and are never recomputed."""

    def __init__(self, encode: Callable[[Sequence[str]], np.ndarray]):
        self._encode = encode
        self._row: dict[str, int] = {}
        self._vectors: np.ndarray | None = None
        self._pairs, self._compared, self._floor = synonyms.nothing(), 0, 1.0

    def vectors(self, phrases: Sequence[str]) -> np.ndarray:
        import numpy as np

        new = [phrase for phrase in phrases if phrase not in self._row]
        if new:
            fresh = np.ascontiguousarray(self._encode(new), dtype=np.float32)
            self._vectors = fresh if self._vectors is None else np.concatenate([self._vectors, fresh])
            self._row |= {phrase: len(self._row) + i for i, phrase in enumerate(new)}
        if self._vectors is None:
            return np.empty((0, 0), dtype=np.float32)
        return self._vectors[[self._row[phrase] for phrase in phrases]]

    def pairs(self, phrases: Sequence[str], tau: float) -> synonyms.Pairs:
        """Pairs among ``phrases`` with cosine >= tau, as positions in ``phrases``."""
        import numpy as np

        self.vectors(phrases)
        if self._vectors is None:
            return synonyms.nothing()
        if tau < self._floor:
            self._pairs, self._compared, self._floor = synonyms.nothing(), 0, tau
        if self._compared < len(self._vectors):
            new = synonyms.alike(self._vectors, self._floor, self._compared)
            self._pairs, self._compared = synonyms.joined(self._pairs, new), len(self._vectors)
        place = np.full(len(self._row), -1, dtype=np.int64)
        place[[self._row[phrase] for phrase in phrases]] = np.arange(len(phrases))
        held = self._pairs.at_least(tau)
        ends = np.sort(np.stack([place[held.first], place[held.second]]), axis=0)
        here = ends[0] >= 0
        order = np.lexsort((ends[0][here], ends[1][here]))
        first, second, cosine = (part[here][order] for part in (ends[0], ends[1], held.cosine))
        return synonyms.Pairs(first, second, cosine)
