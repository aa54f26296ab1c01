"""FlashAttention's and FlashAttention-2's loops in plain torch, side by side: forward, and both backward passes.

All heads of a tile are one product, key heads are shared by index (GQA), causal is aligned bottom-right (query i sees
keys j <= i + Nk - Nq). Any float dtype; float64 is the specification. Slower than ``workbench_kernels.attention``: its
purpose is to follow the papers' pseudo-code line by line and to count what the loops visit.

Dao 2023 prints the rescaling in Algorithm 1 as diag(exp(m_old - m_new))^-1; the inverse is a misprint, O is multiplied
by exp(m_old - m_new).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from workbench.errors import BadInput
from workbench.systems.io_counts import Tiling

ORDERS = ("v1", "v2")


@dataclass
class Visits:
    """Tiles computed without a mask, computed with one, and skipped."""

    plain: int = 0
    masked: int = 0
    skipped: int = 0


@dataclass(frozen=True)
class Result:
    """``out`` (B, Nq, H, d), natural-log ``lse`` (B, Nq, H), and what the loops visited."""

    out: Tensor
    lse: Tensor
    visits: Visits = field(default_factory=Visits)


def forward(q: Tensor, k: Tensor, v: Tensor, tiling: Tiling, *, order: str = "v2", causal: bool = False) -> Result:
    """Algorithm 1 of either paper.

    "v1": key blocks outside, O normalised after every tile, l and m kept. "v2": row blocks outside, O unscaled, two
    loops (the tiles that no mask touches, then those on the diagonal), normalised once.

    Args:
        q: (B, Nq, H, d). k, v: (B, Nk, Hkv, d), H a multiple of Hkv.

    Raises:
        BadInput: shapes that do not fit, or an unknown order.
    """
    _check(q, k, v)
    if order not in ORDERS:
        raise BadInput(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
    walk = _Walk(q, k, v, tiling, causal)
    return walk.first() if order == "v1" else walk.second()


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    found: Result,
    grad: Tensor,
    tiling: Tiling,
    *,
    causal: bool = False,
    two_passes: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Algorithm 2 of Dao 2023: dQ, dK, dV from out, lse and dO (B, Nq, H, d).

    Column blocks outside; dQ is added to from all of them (five products a tile). With ``two_passes`` a second walk
    with row blocks outside computes dQ alone: seven products, one writer for every number.
    """
    _check(q, k, v)
    walk = _Walk(q, k, v, tiling, causal)
    return walk.gradients(found, grad, two_passes)


class _Walk:
    """Tensors as (B, Hkv, G, N, d), key/value with G = 1, and the mask of a tile."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, tiling: Tiling, causal: bool):
        self.group = q.shape[2] // k.shape[2]
        self.q, self.k, self.v = _by_group(q, self.group), _by_group(k, 1), _by_group(v, 1)
        self.tiling, self.causal, self.scale = tiling, causal, q.shape[3] ** -0.5
        self.queries, self.keys = q.shape[1], k.shape[1]
        self.visits = Visits()

    def first(self) -> Result:
        out, m, total = self._start()
        for cols in self._blocks(self.keys, self.tiling.cols):
            for rows in self._blocks(self.queries, self.tiling.rows):
                if self._skips(rows, cols):
                    continue
                scores = self._scores(rows, cols)
                new_m = torch.maximum(m[..., rows, :], scores.amax(-1, keepdim=True))
                safe = _finite(new_m)
                weights, shrink = torch.exp(scores - safe), torch.exp(m[..., rows, :] - safe)
                new_total = shrink * total[..., rows, :] + weights.sum(-1, keepdim=True)
                mixed = total[..., rows, :] * shrink * out[..., rows, :] + weights @ self.v[..., cols, :]
                out[..., rows, :] = mixed / _nonzero(new_total)
                m[..., rows, :], total[..., rows, :] = new_m, new_total
        return self._result(out, m + total.log())

    def second(self) -> Result:
        out, m, total = self._start()
        for rows in self._blocks(self.queries, self.tiling.rows):
            blocks = self._blocks(self.keys, self.tiling.cols)
            inside = [cols for cols in blocks if not self._cuts(rows, cols)]
            diagonal = [cols for cols in blocks if self._cuts(rows, cols) and not self._skips(rows, cols)]
            here = (out[..., rows, :], m[..., rows, :], total[..., rows, :])
            for cols in [*inside, *diagonal]:
                here = self._fold(rows, cols, here)
            out[..., rows, :] = here[0] / _nonzero(here[2])
            m[..., rows, :], total[..., rows, :] = here[1:]
        return self._result(out, m + total.log())

    def _fold(self, rows: slice, cols: slice, state: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Lines 8 to 10: one more tile into the unscaled output, the maximum and the sum."""
        out, m, total = state
        scores = self._scores(rows, cols)
        new_m = torch.maximum(m, scores.amax(-1, keepdim=True))
        safe = _finite(new_m)
        weights, shrink = torch.exp(scores - safe), torch.exp(m - safe)
        return shrink * out + weights @ self.v[..., cols, :], new_m, shrink * total + weights.sum(-1, keepdim=True)

    def gradients(self, found: Result, grad: Tensor, two_passes: bool) -> tuple[Tensor, Tensor, Tensor]:
        grad, out = _by_group(grad, self.group), _by_group(found.out, self.group)
        lse = _by_group(found.lse[..., None], self.group)
        lse = lse.masked_fill(torch.isneginf(lse), torch.inf)  # a row that saw nothing: every probability 0
        delta = (grad * out).sum(-1, keepdim=True)
        dq, dk, dv = (torch.zeros_like(x) for x in (self.q, self.k, self.v))
        for cols in self._blocks(self.keys, self.tiling.cols):
            for rows in self._blocks(self.queries, self.tiling.rows):
                if not self._skips(rows, cols):
                    weights, slope = self._slopes(rows, cols, lse, grad, delta)
                    dv[..., cols, :] += (weights.mT @ grad[..., rows, :]).sum(2, keepdim=True)
                    dk[..., cols, :] += (slope.mT @ self.q[..., rows, :]).sum(2, keepdim=True) * self.scale
                    if not two_passes:
                        dq[..., rows, :] += slope @ self.k[..., cols, :] * self.scale
        if two_passes:
            for rows in self._blocks(self.queries, self.tiling.rows):
                for cols in self._blocks(self.keys, self.tiling.cols):
                    if not self._skips(rows, cols):
                        slope = self._slopes(rows, cols, lse, grad, delta)[1]
                        dq[..., rows, :] += slope @ self.k[..., cols, :] * self.scale
        return _back(dq), _back(dk), _back(dv)

    def _slopes(self, rows: slice, cols: slice, lse: Tensor, grad: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """(P, dS) of a tile, recomputed from the log-sum-exp."""
        weights = torch.exp(self._scores(rows, cols) - lse[..., rows, :])
        slope = grad[..., rows, :] @ self.v[..., cols, :].mT - delta[..., rows, :]
        return weights, weights * slope

    def _start(self) -> tuple[Tensor, Tensor, Tensor]:
        m = torch.full_like(self.q[..., :1], -torch.inf)
        return torch.zeros_like(self.q), m, torch.zeros_like(m)

    def _blocks(self, length: int, size: int) -> list[slice]:
        return [slice(start, min(start + size, length)) for start in range(0, length, size)]

    def _skips(self, rows: slice, cols: slice) -> bool:
        """Whether no query of the tile sees any of its keys."""
        skipped = self.causal and cols.start > rows.stop - 1 + self.keys - self.queries
        self.visits.skipped += skipped
        return skipped

    def _cuts(self, rows: slice, cols: slice) -> bool:
        """Whether the mask touches the tile."""
        return self.causal and cols.stop - 1 > rows.start + self.keys - self.queries

    def _scores(self, rows: slice, cols: slice) -> Tensor:
        scores = self.q[..., rows, :] @ self.k[..., cols, :].mT * self.scale
        if not self._cuts(rows, cols):
            self.visits.plain += 1
            return scores
        self.visits.masked += 1
        i = torch.arange(rows.start, rows.stop, device=scores.device)[:, None] + self.keys - self.queries
        j = torch.arange(cols.start, cols.stop, device=scores.device)[None, :]
        return scores.masked_fill(j > i, -torch.inf)

    def _result(self, out: Tensor, lse: Tensor) -> Result:
        return Result(_back(out), _back(lse)[..., 0], self.visits)


def _by_group(x: Tensor, group: int) -> Tensor:
    """(B, N, H, d) as (B, Hkv, G, N, d)."""
    return x.transpose(1, 2).unflatten(1, (-1, group))


def _back(x: Tensor) -> Tensor:
    return x.flatten(1, 2).transpose(1, 2)


def _finite(m: Tensor) -> Tensor:
    return m.masked_fill(torch.isneginf(m), 0.0)


def _nonzero(total: Tensor) -> Tensor:
    return total.masked_fill(total == 0, 1.0)


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 4 or not x.dtype.is_floating_point:
            raise BadInput(f"{name} must be floating point (batch, length, heads, d), got {x.dtype} {tuple(x.shape)}")
        if x.dtype != q.dtype or x.device != q.device:
            raise BadInput(f"{name} is {x.dtype} on {x.device} but q is {q.dtype} on {q.device}; they must agree")
    if k.shape != v.shape:
        raise BadInput(f"k and v must have one shape, got {tuple(k.shape)} and {tuple(v.shape)}")
    if (q.shape[0], q.shape[3]) != (k.shape[0], k.shape[3]):
        raise BadInput(f"q and k must share batch and d, got {tuple(q.shape)} and {tuple(k.shape)}")
    if q.shape[2] % k.shape[2]:
        raise BadInput(f"{q.shape[2]} query heads cannot be shared out over {k.shape[2]} key heads")
