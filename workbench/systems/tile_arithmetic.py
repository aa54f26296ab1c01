"""Operations of one attention tile outside the matrix products, in FlashAttention's form and in FlashAttention-2's.

The closed forms (our choice of what counts: one elementary operation on one number; scaling a score and subtracting
the maximum is one multiply-add) are held to :func:`run`, which really computes the tile
with every elementwise operation going through a counter.

FlashAttention (Dao et al. 2022, Algorithm 1) keeps O normalised: it scales the old output and the new product, adds
them and divides, for each of B_r x d entries. FlashAttention-2 (Dao 2023, Algorithm 1) keeps O unscaled, multiplies it
by exp(m_old - m_new) and divides once, after the last tile.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from workbench.errors import BadInput

VERSIONS = ("v1", "v2")
#: TFLOP/s of matrix products and of other float32 arithmetic on an A100 (Dao 2023, Sec. 3.1).
A100 = (312.0, 19.5)
#: Stands in for -inf where a subtraction of two infinities would give NaN, and for a row sum of zero.
LOWEST, TINY = -1e30, 1e-30


def matmul_flops(rows: int, cols: int, d: int) -> int:
    """Both products of a tile, a multiply-add counted twice: 4 B_r B_c d."""
    return 4 * rows * cols * d


def other_operations(version: str, rows: int, cols: int, d: int) -> int:
    """4 B_r B_c + 6 B_r in common; v1 adds 4 B_r d + 8 B_r, v2 adds B_r d + 3 B_r."""
    _known(version)
    _sizes(rows, cols, d)
    extra = 4 * rows * d + 8 * rows if version == "v1" else rows * d + 3 * rows
    return 4 * rows * cols + 6 * rows + extra


def last_operations(version: str, rows: int, d: int) -> int:
    """Once a row block, after its last tile: v2 divides O and forms the log-sum-exp (B_r d + 3 B_r); v1 is done."""
    _known(version)
    return rows * d + 3 * rows if version == "v2" else 0


def relative_time(
    version: str, rows: int, cols: int, d: int, *, matmul: float = A100[0], other: float = A100[1]
) -> tuple[float, float]:
    """(matrix products, everything else) of one tile, in operations / (10^12 a second): only ratios mean anything.

    Assumes that the two kinds of units do not overlap, as the paper's argument does.
    """
    if matmul <= 0 or other <= 0:
        raise BadInput(f"throughputs must be greater than 0, got matmul={matmul}, other={other}")
    return matmul_flops(rows, cols, d) / matmul, other_operations(version, rows, cols, d) / other


def gain(rows: int, cols: int, d: int, *, matmul: float = A100[0], other: float = A100[1]) -> float:
    """Time of a v1 tile / time of a v2 tile by :func:`relative_time`: what the first tweak alone is worth."""
    times = {v: sum(relative_time(v, rows, cols, d, matmul=matmul, other=other)) for v in VERSIONS}
    return times["v1"] / times["v2"]


# -- the same, executed -----------------------------------------------------------------------------------------------


@dataclass
class Counter:
    """Elementwise operations: every method computes something and adds the size of what it computed."""

    count: int = 0

    def of(self, result: Tensor) -> Tensor:
        """``result`` cost one operation an entry."""
        self.count += result.numel()
        return result

    def reduced(self, result: Tensor, source: Tensor) -> Tensor:
        """A reduction costs one operation an entry of its source."""
        self.count += source.numel()
        return result

    def scaled(self, scores: Tensor, scale: float, plus: Tensor) -> Tensor:
        """scale * scores + plus, one multiply-add an entry."""
        return self.of(torch.addcmul(plus, scores, torch.as_tensor(scale, dtype=scores.dtype)))


@dataclass
class Rows:
    """Running maximum m, sum l and output O of one row block (B_r rows), and the operations they cost."""

    m: Tensor
    total: Tensor
    out: Tensor
    counter: Counter = field(default_factory=Counter)
    tiles: int = 0

    @classmethod
    def start(cls, rows: int, d: int, dtype: torch.dtype = torch.float64) -> Rows:
        m = torch.full((rows, 1), -torch.inf, dtype=dtype)
        return cls(m, torch.zeros_like(m), torch.zeros(rows, d, dtype=dtype))


def run(
    version: str, q: Tensor, k: Tensor, v: Tensor, cols: int, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Rows]:
    """One row block q (B_r, d) over all keys k, v (N, d) in tiles of ``cols``.

    ``mask`` (B_r, N), True = see. Returns out (B_r, d), lse (B_r,) and the row state with its counter. Where rows see
    nothing out is 0 and lse -inf.
    """
    _known(version)
    if q.dim() != 2 or k.shape != v.shape or q.shape[1] != k.shape[1]:
        raise BadInput(f"q, k, v must be (B_r, d), (N, d), (N, d); got {[tuple(x.shape) for x in (q, k, v)]}")
    state, tile = Rows.start(len(q), v.shape[1], q.dtype), {"v1": _first, "v2": _second}[version]
    for start in range(0, len(k), cols):
        here = slice(start, start + cols)
        scores = q @ k[here].T
        if mask is not None:
            scores = scores.masked_fill(~mask[:, here], -torch.inf)
        tile(state, scores, v[here], q.shape[1] ** -0.5)
        state.tiles += 1
    if version == "v2":
        _normalise(state)
        lse = state.m
    else:
        lse = state.m + state.total.log()
    return state.out, lse[:, 0], state


def _first(state: Rows, scores: Tensor, values: Tensor, scale: float) -> None:
    """Algorithm 1 of Dao et al. 2022, lines 10 to 13."""
    c = state.counter
    highest = c.of(c.reduced(scores.amax(1, keepdim=True), scores) * scale)
    here = c.of(highest.clamp_min(LOWEST))  # a row without keys in this tile
    m = c.of(torch.maximum(state.m, highest))
    safe = c.of(m.masked_fill(c.of(torch.isneginf(m)), 0.0))
    weights = c.of(c.scaled(scores, scale, c.of(-here)).exp())
    before = c.of(c.of(state.m - safe).exp())
    now = c.of(c.of(highest - safe).exp())
    old = c.of(before * state.total)
    fresh = c.of(now * c.reduced(weights.sum(1, keepdim=True), weights))
    total = c.of(old + fresh)
    divide = c.of(total.clamp_min(TINY))
    product = weights @ values
    mixed = c.of(c.of(state.out * old) + c.of(product * now))
    state.out = c.of(mixed / divide)
    state.m, state.total = m, total


def _second(state: Rows, scores: Tensor, values: Tensor, scale: float) -> None:
    """Algorithm 1 of Dao 2023, lines 8 to 10; alpha O + P V is one accumulating product, its scaling is counted."""
    c = state.counter
    highest = c.of(c.reduced(scores.amax(1, keepdim=True), scores) * scale)
    m = c.of(torch.maximum(state.m, highest))
    safe = c.of(m.masked_fill(c.of(torch.isneginf(m)), 0.0))
    weights = c.of(c.scaled(scores, scale, c.of(-safe)).exp())
    before = c.of(c.of(state.m - safe).exp())
    row_sum = c.reduced(weights.sum(1, keepdim=True), weights)
    state.total = c.of(c.of(before * state.total) + row_sum)
    state.out = torch.addmm(c.of(state.out * before), weights, values)
    state.m = m


def _normalise(state: Rows) -> None:
    """Lines 12 and 13: O / l and L = m + log l."""
    c = Counter()
    state.out = c.of(state.out / c.of(state.total.clamp_min(TINY)))
    state.m = c.of(state.m + c.of(state.total.log()))
    state.counter.count += c.count


def _known(version: str) -> None:
    if version not in VERSIONS:
        raise BadInput(f"version must be one of {', '.join(VERSIONS)}, got {version!r}")


def _sizes(rows: int, cols: int, d: int) -> None:
    for name, value in (("rows", rows), ("cols", cols), ("d", d)):
        if value < 1:
            raise BadInput(f"{name} must be >= 1, got {value}")
