"""Coding fields (macs) of Sparsey: binary weights, many macs side by side as one set of arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workbench.checks import whole
from workbench.errors import BadInput
from workbench.memory.associative._csa import Csa, draw, largest, win_probabilities

#: How winners are chosen while learning: by the CSA, uniformly, or always the largest V.
SELECTIONS = ("csa", "random", "max")


@dataclass(frozen=True)
class Codes:
    """What macs answered to one input; M macs of Q CMs of K cells.

    winners (M, Q) cell numbers, -1 where the mac is not active; active (M,) bool; g, eta (M,), 0 and 1 where not
    active; v, rho (M, Q, K).
    """

    winners: np.ndarray
    active: np.ndarray
    g: np.ndarray
    eta: np.ndarray
    v: np.ndarray
    rho: np.ndarray


@dataclass(frozen=True)
class Decay:
    """Weights fade t steps after they were last set: w = (1 + c/T) / (1 + c/(T - t)), 0 from t >= T.

    horizon: T in stored items. convexity: c. A weight that is set again before T is permanent.
    """

    horizon: int
    convexity: float = 1.0

    def __post_init__(self) -> None:
        whole("horizon", self.horizon, 1)
        if not 0 <= self.convexity < np.inf:
            raise BadInput(f"convexity must be finite and >= 0, got {self.convexity}")

    def strength(self, age: np.ndarray) -> np.ndarray:
        left = np.maximum(self.horizon - age, 0.0)
        safe = np.where(left > 0, left, 1.0)
        return np.where(left > 0, (1 + self.convexity / self.horizon) / (1 + self.convexity / safe), 0.0)


class Macs:
    """M macs over fields of R inputs each, with Q CMs of K cells.

    Args:
        fields: (M, R) input indices that each mac sees.
        n_inputs: N, length of the input.
        q, k: CMs and cells per CM.
        csa: constants of the draw.
        pi: (least, most) active inputs in the field with which a mac answers; most None is R.
        freeze: mean weight from which a mac learns no more (None: never).
        freeze_by: "mac", or "cell": each cell by the mean of its own weights.
        exponents: powers of the U (from below), H (previous code) and D (from above) sums in V.
        horizontal: learn weights from the previous code (H). above: cells of the mac above (D), 0 for none.
        decay: fading of weights (None: they stay).
    """

    def __init__(
        self,
        fields: np.ndarray,
        n_inputs: int,
        q: int,
        k: int,
        csa: Csa,
        *,
        pi: tuple[int, int | None] = (1, None),
        freeze: float | None = None,
        freeze_by: str = "mac",
        exponents: tuple[float, float, float] = (1.0, 1.0, 1.0),
        horizontal: bool = False,
        above: int = 0,
        decay: Decay | None = None,
    ):
        self.fields = _checked_fields(fields, n_inputs)
        q, k = whole("q", q, 1), whole("k", k, 2)
        if freeze is not None and not 0.0 < freeze <= 1.0:
            raise BadInput(f"freeze is a mean weight in (0, 1], got {freeze}")
        if freeze_by not in ("mac", "cell"):
            raise BadInput(f"freeze_by must be 'mac' or 'cell', got {freeze_by!r}")
        self.n_inputs, self.q, self.k, self.csa = n_inputs, q, k, csa
        self.pi = (pi[0], self.fields.shape[1] if pi[1] is None else pi[1])
        if not 1 <= self.pi[0] <= self.pi[1]:
            raise BadInput(f"pi must be 1 <= least <= most, got {pi}")
        self.freeze, self.freeze_by, self.exponents, self.decay = freeze, freeze_by, exponents, decay
        m, r, cells = *self.fields.shape, q * k
        self.w = np.zeros((m, r, cells), np.float32)
        self.w_h = np.zeros((m, cells, cells), np.float32) if horizontal else None
        self.w_d = np.zeros((m, above, cells), np.float32) if above else None
        self.steps = 0
        self._set_at = np.full(self.w.shape, -1, np.int32) if decay else None
        self._permanent = np.zeros(self.w.shape, bool) if decay else None

    def __len__(self) -> int:
        return len(self.fields)

    def nbytes(self) -> int:
        return sum(array.nbytes for array in (self.w, self.w_h, self.w_d) if array is not None)

    # ---- seeing ---------------------------------------------------------------------------------------------------

    def familiarity(
        self, x: np.ndarray, before: np.ndarray | None = None, over: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(active (M,), V (M, Q, K)) of a binary input (N,), given the previous code and the code above.

        ``before`` (M, Q) winners, ``over`` (D,) binary. A signal that is absent is left out of the product.
        """
        seen = x[self.fields]
        count = seen.sum(1)
        active = (count >= self.pi[0]) & (count <= self.pi[1])
        v = self._share(seen, self.w) ** self.exponents[0]
        if before is not None and self.w_h is not None and (before >= 0).any():
            v = v * self._share(self.cells(before), self.w_h) ** self.exponents[1]
        if over is not None and self.w_d is not None and over.any():
            v = v * self._share(np.broadcast_to(over, (len(self), len(over))), self.w_d) ** self.exponents[2]
        return active, v.reshape(len(self), self.q, self.k)

    def recalled(self, before: np.ndarray) -> np.ndarray:
        """V (M, Q, K) by the previous code alone: what comes next when nothing is seen."""
        if self.w_h is None:
            raise BadInput("these macs have no horizontal weights; make them with horizontal=True")
        return (self._share(self.cells(before), self.w_h) ** self.exponents[1]).reshape(len(self), self.q, self.k)

    @staticmethod
    def _share(on: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Sum of the weights from active inputs over their number: (M, Q K) in [0, 1]."""
        total = np.matmul(on[:, None, :].astype(np.float32), weights)[:, 0].astype(float)
        return total / np.maximum(on.sum(1), 1)[:, None]

    def cells(self, winners: np.ndarray) -> np.ndarray:
        """Winners (M, Q) as binary cells (M, Q K); -1 is nobody."""
        one_hot = winners[..., None] == np.arange(self.k)
        return one_hot.reshape(*winners.shape[:-1], self.q * self.k)

    def code(
        self,
        x: np.ndarray,
        rng: np.random.Generator,
        *,
        learning: bool,
        select: str = "csa",
        before: np.ndarray | None = None,
        over: np.ndarray | None = None,
    ) -> Codes:
        """Winners for ``x``: drawn by macs that learn, the largest V otherwise (a frozen mac only recognises)."""
        active, v = self.familiarity(x, before, over)
        g, eta, _, rho = win_probabilities(v, self.csa)
        if not learning or select == "max":
            winners = largest(v, rng)
        else:
            drawn = draw(rho if select == "csa" else np.full_like(rho, 1.0 / self.k), rng)
            winners = np.where(self.open_cells().max(1)[:, None], drawn, largest(v, rng))
        return Codes(
            np.where(active[:, None], winners, -1), active, np.where(active, g, 0.0), np.where(active, eta, 1.0), v, rho
        )

    # ---- learning -------------------------------------------------------------------------------------------------

    def open_cells(self) -> np.ndarray:
        """Which cells still learn, (M, Q K) bool."""
        cells = (len(self), self.q * self.k)
        if self.freeze is None:
            return np.ones(cells, bool)
        if self.freeze_by == "cell":
            return self.w.mean(1) < self.freeze
        return np.broadcast_to((self.w.mean((1, 2)) < self.freeze)[:, None], cells)

    def learn(
        self, x: np.ndarray, codes: Codes, before: np.ndarray | None = None, over: np.ndarray | None = None
    ) -> int:
        """Weights from every active input to every winner become 1; returns how many were new.

        Every fading weight is one step older afterwards.
        """
        self.steps += 1
        winners = self.cells(codes.winners) & self.open_cells()
        new = self._set(x[self.fields] & codes.active[:, None], winners)
        for weights, on in ((self.w_h, None if before is None else self.cells(before)), (self.w_d, over)):
            if weights is not None and on is not None:
                weights[np.broadcast_to(on, weights.shape[:2])[:, :, None] & winners[:, None, :]] = 1.0
        return new

    def _set(self, seen: np.ndarray, winners: np.ndarray) -> int:
        touched = seen[:, :, None] & winners[:, None, :]
        new = int((touched & (self.w == 0.0)).sum())
        if self.decay is None or self._set_at is None or self._permanent is None:
            self.w[touched] = 1.0
            return new
        again = touched & (self._set_at >= 0) & (self.steps - self._set_at < self.decay.horizon) & (self.w > 0)
        self._permanent |= again
        self._set_at[touched] = self.steps
        age = (self.steps - self._set_at).astype(float)
        fading = np.where(self._set_at >= 0, self.decay.strength(age), 0.0)
        self.w[...] = np.where(self._permanent, 1.0, fading)
        return new


def _checked_fields(fields: np.ndarray, n_inputs: int) -> np.ndarray:
    fields = np.asarray(fields)
    if fields.ndim != 2 or fields.size == 0 or not np.issubdtype(fields.dtype, np.integer):
        raise BadInput(f"fields must be whole numbers (macs, inputs of each), got shape {fields.shape}")
    if fields.min() < 0 or fields.max() >= n_inputs:
        raise BadInput(f"fields name inputs {fields.min()} to {fields.max()}, but there are {n_inputs}")
    return fields


def grid_fields(rows: int, columns: int, size: int, stride: int) -> np.ndarray:
    """Fields (M, size x size) of square patches that overlap on an image of rows x columns pixels."""
    if not 1 <= size <= min(rows, columns) or stride < 1:
        raise BadInput(f"patches of {size} pixels with stride {stride} do not fit an image of {rows} x {columns}")
    tops, lefts = range(0, rows - size + 1, stride), range(0, columns - size + 1, stride)
    patch = (np.arange(size)[:, None] * columns + np.arange(size)).ravel()
    return np.stack([patch + top * columns + left for top in tops for left in lefts])
