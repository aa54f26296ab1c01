"""Personalised PageRank on an undirected weighted graph: a walk that returns to where the question starts.

One step is n' <- d W D^-1 n' + (1 - d) n / |n|, with W the symmetric weights, D the sums of its columns and n the
personalisation. ``d`` is the probability of *walking on*; 1 - d that of going back (the paper's prose calls the latter
damping; at 0.5 it is the same). What would leave a node without edges goes back to the personalisation.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from workbench.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    from scipy import sparse

SOLVERS = ("auto", "igraph", "power")


class Walker:
    """One graph prepared for many walks. ``weights`` is symmetric, non-negative, sparse (nodes, nodes)."""

    def __init__(self, weights: sparse.csr_array):
        import numpy as np
        from scipy import sparse

        weights = sparse.csr_array(weights)
        if weights.shape[0] != weights.shape[1]:
            raise BadInput(f"the weights of a graph are square, got shape {weights.shape}")
        if weights.nnz and (not np.isfinite(weights.data).all() or weights.data.min() < 0):
            raise BadInput("the weights of a graph must be finite and at least 0")
        if abs(weights - weights.T).sum() > 1e-9 * max(1.0, weights.sum()):
            raise BadInput("the weights must be symmetric: W[i, j] == W[j, i]")
        self.weights = weights
        out = np.asarray(weights.sum(axis=0)).ravel()
        self.dangling = out == 0
        scale = np.divide(1.0, out, out=np.zeros_like(out, dtype=float), where=~self.dangling)
        self.transition = sparse.csr_array(weights @ sparse.diags_array(scale))  # columns sum to 1
        self._graph: Any = None

    def __len__(self) -> int:
        return int(self.weights.shape[0])

    def steps(self, reset: np.ndarray, damping: float = 0.5) -> Iterator[np.ndarray]:
        """The walk itself, without end: step 0 is the normalised personalisation, then one vector a step (sum 1)."""
        start = self._start(reset, damping)
        yield from self._walk(start, start, damping)

    def _walk(self, now: np.ndarray, start: np.ndarray, damping: float) -> Iterator[np.ndarray]:
        while True:
            yield now
            lost = float(now[self.dangling].sum())
            now = damping * (self.transition @ now + lost * start) + (1 - damping) * start

    def rank(
        self,
        reset: np.ndarray,
        damping: float = 0.5,
        *,
        solver: str = "auto",
        tolerance: float = 1e-10,
        most_steps: int = 10_000,
    ) -> np.ndarray:
        """Where the walk is in the long run: (nodes,) float64, sums to 1.

        ``solver``: "power" walks :meth:`steps` until the vector is within ``tolerance`` of its limit in L1; "igraph"
        (prpack, as the released code; an extra) gets there by another way, and as prpack stops about 1e-8 short on
        graphs of 16,000 nodes, a few steps of the walk bring it within the same tolerance; "auto" is igraph when it
        is installed. Raises BadInput for a personalisation that is negative, of another length or zero everywhere,
        and for a damping outside [0, 1).
        """
        if solver not in SOLVERS:
            raise BadInput(f"solver={solver!r} is not one of {', '.join(SOLVERS)}")
        start = self._start(reset, damping)
        if solver == "auto":
            solver = "igraph" if importlib.util.find_spec("igraph") else "power"
        first = self._prpack(start, damping) if solver == "igraph" else start
        return self._power(first, start, damping, tolerance, most_steps)

    def _power(
        self, first: np.ndarray, start: np.ndarray, damping: float, tolerance: float, most_steps: int
    ) -> np.ndarray:
        """Stops when what is left to move, at most d / (1 - d) times the last move, is below the tolerance."""
        import numpy as np

        before = first
        for now in islice(self._walk(first, start, damping), 1, most_steps + 1):
            if damping / (1 - damping) * float(np.abs(now - before).sum()) < tolerance:
                return now
            before = now
        raise BadInput(f"no convergence to {tolerance} in {most_steps} steps; allow more or lower damping={damping}")

    def _prpack(self, start: np.ndarray, damping: float) -> np.ndarray:
        import numpy as np

        if damping == 0 or not self.weights.nnz:  # prpack divides by zero
            return start
        if self._graph is None:
            self._graph = self._igraph()
        graph, heavy = self._graph
        found = graph.personalized_pagerank(
            damping=damping, directed=False, reset=start.tolist(), weights=heavy, implementation="prpack"
        )
        return np.asarray(found)

    def _igraph(self) -> tuple[Any, list[float]]:
        try:
            import igraph
        except ImportError as error:
            raise BadInput('solver="igraph" needs the package igraph: pip install igraph, or use "power"') from error
        from scipy import sparse

        upper = sparse.coo_array(sparse.triu(self.weights))
        edges = list(zip(upper.row.tolist(), upper.col.tolist()))
        return igraph.Graph(n=len(self), edges=edges), upper.data.tolist()

    def _start(self, reset: np.ndarray, damping: float) -> np.ndarray:
        import numpy as np

        if not 0 <= damping < 1:
            raise BadInput(f"damping={damping} must be at least 0 and below 1 (the probability of walking on)")
        start = np.asarray(reset, dtype=np.float64)
        if start.shape != (len(self),):
            raise BadInput(f"the personalisation needs one number for each of {len(self)} nodes, got {start.shape}")
        total = float(start.sum())
        if not np.isfinite(start).all() or (start < 0).any() or total <= 0:
            raise BadInput("the personalisation must be finite, at least 0, and above 0 somewhere")
        return start / total
