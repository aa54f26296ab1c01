"""From a question's nodes to passages: personalisation, walk, passage scores; and everything about one retrieval."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

from workbench.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from workbench.memory.stores._hipporag_graph import Index

#: How mass gets from the question's nodes to others: the paper's walk and two of its ablations.
WALKS = ("pagerank", "query nodes", "neighbours")


@dataclass(frozen=True)
class Link:
    """One entity of the question and the node it stands for; ``cosine`` is the confidence in it."""

    entity: str
    phrase: str
    node: int
    cosine: float


def personalisation(index: Index, nodes: list[int], specificity: bool = True) -> np.ndarray:
    """(N,): s_i at the question's nodes (1 without specificity), 0 elsewhere; a node named twice counts once."""
    import numpy as np

    start = np.zeros(len(index.nodes))
    start[nodes] = index.specificity[nodes] if specificity else 1.0
    return start


def spread(
    index: Index,
    start: np.ndarray,
    *,
    walk: str = "pagerank",
    damping: float = 0.5,
    synonymy: bool = True,
    neighbour_share: float = 0.1,
    solver: str = "auto",
) -> np.ndarray:
    """(N,) mass on the phrases. "query nodes": the personalisation itself; "neighbours": plus a share of one step."""
    if walk not in WALKS:
        raise BadInput(f"walk={walk!r} is not one of {', '.join(map(repr, WALKS))}")
    walker = index.walker(synonymy)
    if walk == "pagerank":
        return walker.rank(start, damping, solver=solver)
    start = start / start.sum()
    return start if walk == "query nodes" else start + neighbour_share * (walker.transition @ start)


def minmax(scores: np.ndarray) -> np.ndarray:
    """Scores stretched to 0..1; zeros where all are equal (nothing is told apart)."""
    import numpy as np

    low, high = (float(scores.min()), float(scores.max())) if len(scores) else (0.0, 0.0)
    return (scores - low) / (high - low) if high > low else np.zeros_like(scores)


@dataclass(frozen=True, eq=False)
class Trace:
    """Everything about one retrieval.

    ``scores`` (P,) rank the passages (rows of ``index``); ``how`` says by what: "graph", "graph + flat" (ensemble),
    "dense" or "bm25" (fallback, and ``note`` says why), "nothing" (an empty memory). ``start`` and ``mass`` (N,) are
    the personalisation and what the walk made of it; None when nothing was walked. ``by`` found the entities.
    """

    query: str
    index: Index
    scores: np.ndarray
    how: str
    note: str = ""
    by: str = ""
    links: tuple[Link, ...] = ()
    start: np.ndarray | None = None
    mass: np.ndarray | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def order(self) -> np.ndarray:
        """Rows of the passages, best first; equal scores in the order of their ids."""
        import numpy as np

        return np.argsort(-self.scores, kind="stable")

    @property
    def ids(self) -> list[int]:
        """Item ids of the passages, best first."""
        return [self.index.passages[row] for row in self.order]

    def passages(self, top: int = 10) -> pd.DataFrame:
        """rank, id, score, phrases (those that brought most of it, with their share) of the best passages."""
        import pandas as pd

        rows = []
        for rank, row in enumerate(self.order[:top].tolist(), 1):
            shares = self.shares(row).head(4)
            told = ", ".join(f"{phrase} {share:.0%}" for phrase, share in zip(shares["phrase"], shares["share"]))
            rows.append((rank, self.index.passages[row], float(self.scores[row]), told))
        return pd.DataFrame(rows, columns=["rank", "id", "score", "phrases"])

    def shares(self, row: int) -> pd.DataFrame:
        """phrase, mass, times, share: what each phrase of a passage brought to its score, largest first."""
        import numpy as np
        import pandas as pd

        mass = self.mass if self.mass is not None else np.zeros(len(self.index.nodes))
        part = self.index.P[[row]].tocoo()
        brought = part.data * mass[part.col]
        total = float(brought.sum()) or 1.0
        columns = {"phrase": [self.index.nodes[node] for node in part.col], "mass": mass[part.col], "times": part.data}
        return pd.DataFrame({**columns, "share": brought / total}).sort_values("share", ascending=False, kind="stable")

    def phrases(self, top: int | None = None) -> pd.DataFrame:
        """node, phrase, passages (|P_i|), specificity, degree, synonyms, mass, role, in (item ids); by mass."""
        import numpy as np
        import pandas as pd

        index = self.index
        mass = self.mass if self.mass is not None else np.zeros(len(index.nodes))
        nodes = np.argsort(-mass, kind="stable")[:top]
        cues = {link.node for link in self.links}
        role = ["query node" if n in cues else "reached" if mass[n] > 0 else "not reached" for n in nodes.tolist()]
        return pd.DataFrame(
            {
                "node": nodes,
                "phrase": [index.nodes[n] for n in nodes],
                "passages": index.spread[nodes],
                "specificity": index.specificity[nodes],
                "degree": np.diff(index.W.indptr)[nodes],
                "synonyms": np.diff(index.S.indptr)[nodes],
                "mass": mass[nodes],
                "role": role,
                "in": [index.holding(n) for n in nodes.tolist()],
            }
        )

    def changes(self, flat: np.ndarray, top: int = 10, also: Collection[int] = ()) -> pd.DataFrame:
        """id, before (rank by ``flat`` scores), after (rank here): passages in either top, and ids of ``also``."""
        import numpy as np
        import pandas as pd

        ranks = np.empty((2, len(self.scores)), dtype=np.int64)
        for place, order in enumerate((np.argsort(-flat, kind="stable"), self.order)):
            ranks[place][order] = np.arange(1, len(order) + 1)
        rows = [
            (item, *map(int, ranks[:, row]))
            for item, row in self.index.row.items()
            if ranks[:, row].min() <= top or item in also
        ]
        return pd.DataFrame(rows, columns=["id", "before", "after"]).sort_values("after", ignore_index=True)

    def steps(self, count: int = 12) -> list[np.ndarray]:
        """The walk's first ``count`` vectors after the personalisation, which comes first; empty without a walk."""
        if self.start is None or self.mass is None or len(self.start) != len(self.index.nodes):
            return []
        walker = self.index.walker(self.settings.get("synonymy", True))
        return list(islice(walker.steps(self.start, self.settings.get("damping", 0.5)), count + 1))

    def frames(self, top: int = 40, count: int = 12) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Nodes and edges for ``workbench.views.graph.node_link``: the ``top`` phrases of the end, step by step."""
        import pandas as pd

        shown = self.phrases(top)
        steps = self.steps(count)
        rows = [
            (node, phrase, float(vector[node]), role if vector[node] > 0 else "not reached", step, passages)
            for step, vector in enumerate(steps)
            for node, phrase, role, passages in zip(shown["node"], shown["phrase"], shown["role"], shown["passages"])
        ]
        nodes = pd.DataFrame(rows, columns=["id", "label", "size", "group", "step", "passages"])
        return nodes, edges(self.index, set(shown["node"]), self.settings.get("synonymy", True))


def edges(index: Index, nodes: set[int], synonymy: bool = True) -> pd.DataFrame:
    """source, target, weight, kind ("triple", "synonym"), label (relations) of the edges among ``nodes``."""
    import pandas as pd
    from scipy import sparse

    said: dict[tuple[int, int], list[str]] = {}
    for fact in index.facts:
        ends = sorted((index.position[fact.subject], index.position[fact.object]))
        if nodes.issuperset(ends):
            said.setdefault((ends[0], ends[1]), []).append(fact.relation)
    rows: list[tuple[int, int, float, str, str]] = []
    for kind, matrix in (("triple", index.T), ("synonym", index.S)):
        part = sparse.coo_array(sparse.triu(matrix))
        for a, b, weight in zip(part.row.tolist(), part.col.tolist(), part.data.tolist()):
            if a in nodes and b in nodes and (synonymy or kind == "triple"):
                label = " / ".join(said.get((a, b), [])) if kind == "triple" else "alike"
                rows.append((a, b, weight, kind, label))
    return pd.DataFrame(rows, columns=["source", "target", "weight", "kind", "label"])
